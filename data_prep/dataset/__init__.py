"""A dataset in its store: manifest, shards, inputs; published, audited, revised."""
