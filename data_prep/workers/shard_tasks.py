"""The functions that Ray's workers call: each works on one shard or part, and keeps its tools for the next one."""

from __future__ import annotations

from mcjepa.data_prep.plan.plan import ShardPlan
from mcjepa.data_prep.workers.shard_maker import ShardMaker, ShardResult, ShardWork

_MAKER: dict[ShardWork, ShardMaker] = {}
"""The maker of this process, with its decode child: one, of the dataset that is being made."""


def make_shard(work: ShardWork, plan: ShardPlan) -> ShardResult:
    """Make a shard with the decode child of this process."""
    if work not in _MAKER:
        for maker in _MAKER.values():
            maker.close()
        _MAKER.clear()
        _MAKER[work] = ShardMaker(work)
    return _MAKER[work].make(plan)
