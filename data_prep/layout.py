"""Names of a dataset's files below its root; docs/formats.md says what is in them.

plan.json, plan.jsonl.gz             the plan: written first
shards/clip-000123.tar, .json        samples and their sidecar
leakage.jsonl.gz, duplicates.jsonl.gz, dropped.jsonl.gz
inputs.jsonl.gz                      what became of every input
manifest.json                        written last; manifest-000002.json, inputs-000002.jsonl.gz …: later revisions
"""

from __future__ import annotations

PLAN_NAME = "plan.json"
PLAN_INPUTS_NAME = "plan.jsonl.gz"
MANIFEST_NAME = "manifest.json"
INPUTS_NAME = "inputs.jsonl.gz"
DUPLICATES_NAME = "duplicates.jsonl.gz"
LEAKAGE_NAME = "leakage.jsonl.gz"
SHARD_FOLDER = "shards"


def shard_name(kind: str, number: int) -> str:
    """Name of a shard.

    >>> shard_name("clip", 12)
    'clip-000012'
    """
    return f"{kind}-{number:06d}"


def shard_key(name: str) -> str:
    """Key of a shard's tar in its dataset's store.

    >>> shard_key("clip-000001")
    'shards/clip-000001.tar'
    """
    return f"{SHARD_FOLDER}/{name}.tar"


def sidecar_key(name: str) -> str:
    """Key of a shard's sidecar in its dataset's store."""
    return f"{SHARD_FOLDER}/{name}.json"


def manifest_key(revision: int) -> str:
    """Key of a revision's manifest.

    >>> manifest_key(1), manifest_key(2)
    ('manifest.json', 'manifest-000002.json')
    """
    return MANIFEST_NAME if revision == 1 else f"manifest-{revision:06d}.json"


def inputs_key(revision: int) -> str:
    """Key of a revision's list of inputs."""
    return INPUTS_NAME if revision == 1 else f"inputs-{revision:06d}.jsonl.gz"


def dropped_key(revision: int) -> str:
    """Key of a revision's list of dropped samples; absent when there are none."""
    return "dropped.jsonl.gz" if revision == 1 else f"dropped-{revision:06d}.jsonl.gz"


def duplicates_key(revision: int) -> str:
    """Key of a revision's list of repeated inputs; absent where nobody looked for them."""
    return DUPLICATES_NAME if revision == 1 else f"duplicates-{revision:06d}.jsonl.gz"
