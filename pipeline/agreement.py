"""Small facts that all ranks must agree on, between steps."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist

from mcjepa.pipeline.world import World

Fact = TypeVar("Fact")


def from_first_rank(fact: Fact, world: World) -> Fact:
    """Rank 0's fact on every rank."""
    if world.size == 1:
        return fact
    facts: list[Any] = [fact]
    dist.broadcast_object_list(facts, src=0, device=world.device)
    told: Fact = facts[0]
    return told


def of_all_ranks(fact: Fact, world: World) -> list[Fact]:
    """Every rank's fact, by rank, on every rank."""
    if world.size == 1:
        return [fact]
    facts: list[Any] = [None] * world.size
    dist.all_gather_object(facts, fact)
    return facts
