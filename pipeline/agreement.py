"""All ranks of a run begin with the same code, recipe and datasets, or none of them does.

A node with another version of the code, or a rank with another learning rate, would train along without a word.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcjepa.data_prep.code import code_digest, code_name
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.run.recipes import flatten
from mcjepa.pipeline.world import World, gather_all

MOST_NAMED = 3
"""Differences that an error names."""


@dataclass(frozen=True)
class _Start:
    host: str
    code: str
    code_digest: str
    facts_digest: str


def require_same_start(facts: Mapping[str, Any], world: World, what: str) -> None:
    """Compares code and facts of all ranks; every rank calls it, and it ends the same way on all.

    Args:
        facts: plain data, such as a recipe or the ids of its datasets.
        world: the ranks.
        what: `facts` in a word, for the error.

    Raises:
        UsageError: ranks differ; the message names up to three of the differences, each with its hosts.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    starts = gather_all(_Start(socket.gethostname(), code_name(), code_digest(), digest), world)
    odd = [rank for rank, start in enumerate(starts) if start.code_digest != starts[0].code_digest]
    if odd:
        raise UsageError(
            f"rank {odd[0]} on {starts[odd[0]].host} runs {starts[odd[0]].code}, rank 0 on {starts[0].host} runs "
            f"{starts[0].code}, expected the same code on all ranks; install one version on every node"
        )
    odd = [rank for rank, start in enumerate(starts) if start.facts_digest != starts[0].facts_digest]
    if odd:
        raise UsageError(_differences(gather_all(flatten(facts), world), starts, odd[0], what))


def _differences(facts: list[dict[str, Any]], starts: list[_Start], rank: int, what: str) -> str:
    ours, theirs = facts[0], facts[rank]
    keys = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    named = "; ".join(f"{key} is {theirs.get(key)} there and {ours.get(key)} here" for key in keys[:MOST_NAMED])
    more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
    return (
        f"rank {rank} on {starts[rank].host} has another {what} than rank 0 on {starts[0].host}: {named}{more}; "
        "expected the same on all ranks; start all of them with one command line and file"
    )
