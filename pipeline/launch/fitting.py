"""Which ranks fit a run's batches, and what makes others fit: only what does, found by asking the rule itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mcjepa.cluster.preflight.data import ClusterFacts, world_findings
from mcjepa.cluster.preflight.findings import Finding, errors_of
from mcjepa.pipeline.settings.stream import StreamConfig
from mcjepa.pipeline.settings.train import TrainConfig
from mcjepa.pipeline.stream.order import ORDER_VERSION, fitting_world_sizes, lanes_for


def find_world(cluster: ClusterFacts, config: TrainConfig) -> list[Finding]:
    """Whether the ranks can share the run's steps."""
    stream = config.stream
    version = stream.order_version
    streams = {name: (batch, stream.lanes or lanes_for(batch, version)) for name, batch in stream.batches.items()}
    fitting = fitting_world_sizes(stream.batches, version)
    parts = config.engine.accumulation_steps
    remedies = () if cluster.ranks in fitting else find_remedies(cluster, stream, parts)
    return world_findings(cluster, streams, fitting, parts, remedies)


def fitting_cluster(cluster: ClusterFacts, config: TrainConfig) -> ClusterFacts:
    """The cluster with the most ranks, of those asked for, that the batches allow; its memory can be counted."""
    for ranks in reversed(fitting_world_sizes(config.stream.batches, config.stream.order_version)):
        nodes = min(cluster.nodes, -(-ranks // cluster.ranks_per_node))
        smaller = dataclasses.replace(cluster, ranks=ranks, nodes=nodes)
        if ranks <= cluster.ranks and not errors_of(find_world(smaller, config)):
            return cluster if ranks == cluster.ranks else smaller
    return dataclasses.replace(cluster, ranks=1, nodes=1)


def find_remedies(cluster: ClusterFacts, stream: StreamConfig, parts: int = 1) -> list[str]:
    """What makes the run fit, each by itself: the most nodes below those asked for, another order, other batches.

    Args:
        cluster: whose ranks do not fit.
        stream: of the run.
        parts: micro-batches a step, which have to divide a rank's share.
    """
    version, ranks = stream.order_version, cluster.ranks
    fitting = [n for n in fitting_world_sizes(stream.batches, version) if _parts_fit(n, stream.batches, parts)]
    return [
        *_other_ranks(cluster, fitting),
        *_new_order(ranks, stream, parts),
        *_other_batches(ranks, stream.batches, version, parts),
    ]


def _parts_fit(ranks: int, batches: Mapping[str, int], parts: int) -> bool:
    """Whether micro-batches divide the ranks' shares."""
    return all(-(-batch // ranks) % parts == 0 for batch in batches.values())


def _other_ranks(cluster: ClusterFacts, fitting: list[int]) -> list[str]:
    """The nearest number below, of whole nodes where one is."""
    below = [ranks for ranks in fitting if ranks < cluster.ranks]
    whole = [ranks for ranks in below if ranks % cluster.ranks_per_node == 0]
    if whole:
        return [f"ask for --nodes {whole[-1] // cluster.ranks_per_node} ({whole[-1]} ranks)"]
    return [f"ask for --ranks {below[-1]}"] if below else []


def _new_order(ranks: int, stream: StreamConfig, parts: int) -> list[str]:
    """Order 2, where the lanes of order 1 are all that is in the way."""
    fits = ranks in fitting_world_sizes(stream.batches) and _parts_fit(ranks, stream.batches, parts)
    if stream.order_version == ORDER_VERSION or not fits:
        return []
    return [f"begin a new run with train.stream.order_version={ORDER_VERSION}: one of order 1 keeps its lanes"]


def _other_batches(ranks: int, batches: Mapping[str, int], version: int, parts: int) -> list[str]:
    """The nearest batch that the ranks fit: of the views, else of the pairs, else of both; none where none helps."""
    least = ranks * parts
    near = {
        name: sorted({max(batch // least, 1) * least, -(-batch // least) * least}, key=lambda size: abs(size - batch))
        for name, batch in batches.items()
    }
    views = [{"views": size} for size in near.get("views", ())]
    pairs = [{"pairs": size} for size in near.get("pairs", ())]
    both = [{**first, **second} for first in pairs for second in views]
    for changed in (*views, *pairs, *both):
        asked = {**batches, **changed}
        if ranks in fitting_world_sizes(asked, version) and _parts_fit(ranks, asked, parts):
            keys = " ".join(f"train.stream.{name[:-1]}_batch={size}" for name, size in changed.items())
            shares = " and ".join(f"{size // ranks} of the {name}" for name, size in changed.items())
            return [f"set {keys} ({shares} a rank): another batch is another experiment, the learning rate with it"]
    return []
