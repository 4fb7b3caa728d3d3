"""Who makes the shards: the shard maker, and Ray's tasks around it."""
