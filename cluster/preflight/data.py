"""Data against cluster: do lanes, batches, shards and caches fit the number of ranks and nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mcjepa.cluster.preflight.findings import Finding, readable_bytes, readable_seconds

BESIDE = 0.1
"""Share of a step that loading may take in the training process itself."""
INDEX_BYTES = 70
"""Of a shard in the index of a manifest that a node's processes share."""
BUCKET_READS_S = 5500
"""Reads a second that S3 services name for a prefix."""
SHOWN = 4
"""Of the numbers of ranks that fit: the nearest below and above those asked for."""


@dataclass(frozen=True)
class ClusterFacts:
    """Where the run is to be."""

    nodes: int
    ranks: int
    """Of the whole run."""
    gpus_per_node: int
    """0: it computes on CPUs."""

    @property
    def ranks_per_node(self) -> int:
        """Ranks on the fullest node."""
        return -(-self.ranks // self.nodes)


@dataclass(frozen=True)
class StreamFacts:
    """One stream of the run, as it is published."""

    name: str
    """`pairs` or `views`."""
    datasets: int
    samples: int
    shards: int
    bytes: int
    """Of all its shards."""
    batch: int
    """Samples per step over all ranks."""
    lanes: int
    steps_per_epoch: int
    tail: int
    """Samples that an epoch leaves out because they fill no batch."""
    passes: int
    """How often an epoch takes as many samples as there are; above 1 where they fill no batch."""
    remote: bool
    """Whether it lies in a bucket."""
    manifest_bytes: int = 0
    """Of its datasets' manifests."""
    turns: int = 1
    """Steps in which it takes part once: 2 where pairs and views alternate."""

    @property
    def sample_bytes(self) -> float:
        """Mean length of a sample."""
        return self.bytes / self.samples

    def nodes(self, cluster: ClusterFacts) -> int:
        """Nodes that read it: of more ranks than samples the first ones."""
        return -(-min(self.batch, cluster.ranks) // cluster.ranks_per_node)

    def node_samples(self, cluster: ClusterFacts) -> int:
        """Samples a step of the node that has most."""
        return min(self.batch, cluster.ranks_per_node * -(-self.batch // cluster.ranks))


@dataclass(frozen=True)
class CacheFacts:
    """The node's disk cache of shards."""

    folder: str
    """Empty: none."""
    bytes: int


def world_findings(
    cluster: ClusterFacts,
    streams: dict[str, tuple[int, int]],
    fitting: Sequence[int],
    parts: int,
    remedies: Sequence[str] = (),
) -> list[Finding]:
    """Whether ranks divide batches (or are more than the pairs), and suit lanes, and micro-batches divide shares.

    Args:
        cluster: where.
        streams: stream -> samples per step and lanes; of the streams that the run has.
        fitting: numbers of ranks that the batches allow, least first.
        parts: micro-batches a step.
        remedies: what makes the ranks fit, each by itself, the nearest first; where they do not.
    """
    ranks = cluster.ranks
    words = ", ".join(f"{name} {batch} a step in {lanes} lanes" for name, (batch, lanes) in streams.items())
    found = f"{ranks} ranks on {cluster.nodes} nodes; {words}"
    if ranks not in fitting:
        below, above = [n for n in fitting if n < ranks], [n for n in fitting if n > ranks]
        near = [*below[-SHOWN:], *above[:SHOWN]]
        expected = f"a number of ranks that fits: {'… ' * (len(below) > SHOWN)}{', '.join(map(str, near))}"
        return [Finding("world size", "error", found, expected, "; or ".join(remedies))]
    findings = [Finding("world size", "ok", found)]
    for name, (batch, lanes) in streams.items():
        if lanes % ranks and ranks % lanes:
            findings.append(
                Finding(
                    "lanes", "warning", f"{name}: each rank reads {_lanes_of(1, ranks, lanes)} of {lanes} lanes",
                    f"lanes that {ranks} ranks divide, or that divide them: a rank then reads as few shards as can be",
                    f"set train.stream.lanes={ranks * max(lanes // ranks, 1)}",
                )
            )  # fmt: skip
        share = -(-batch // ranks)
        if ranks > batch:
            findings.append(
                Finding(
                    "batch", "ok" if parts == 1 else "error",
                    f"{name}: 1 sample on {batch} ranks, none on {ranks - batch}, which take part in the sums alone",
                    *(("1 micro-batch", "set train.engine.accumulation_steps=1") if parts > 1 else ()),
                )
            )  # fmt: skip
        elif share % parts:
            findings.append(
                Finding(
                    "batch", "error", f"{name}: a rank's {share} samples per step in {parts} micro-batches",
                    f"a divisor of {share}", "change train.engine.accumulation_steps",
                )
            )  # fmt: skip
        else:
            findings.append(Finding("batch", "ok", f"{name}: {share // parts} samples per rank and micro-batch"))
    return findings


def _lanes_of(ranks_together: int, ranks: int, lanes: int) -> int:
    """How many lanes neighbouring ranks read: rank r takes the samples k = r mod `ranks`, from the lanes k mod `lanes`.

    >>> _lanes_of(1, 8, 64), _lanes_of(8, 64, 64), _lanes_of(8, 128, 64), _lanes_of(1, 6, 64), _lanes_of(3, 3, 64)
    (8, 8, 8, 32, 64)
    """
    shared = math.gcd(ranks, lanes)
    return min(ranks_together, shared) * lanes // shared


def stream_findings(stream: StreamFacts, cluster: ClusterFacts) -> list[Finding]:
    """What an epoch of a stream is, and whether its shards suit so many lanes."""
    findings = []
    found = (
        f"{stream.name}: {stream.samples} samples in {stream.shards} shards of {stream.datasets} datasets, "
        f"{readable_bytes(stream.bytes)} ({readable_bytes(stream.sample_bytes)} a sample); "
        f"{stream.steps_per_epoch} steps per epoch, {stream.tail} samples left out"
    )
    if stream.passes > 1:
        findings.append(
            Finding(
                "epoch", "warning", f"{found}; every sample comes {stream.passes} times in a batch",
                f"at least {stream.batch} samples", "prepare more data or lower the batch",
            )
        )  # fmt: skip
    else:
        findings.append(Finding("epoch", "ok", found))
    if stream.remote and stream.shards < cluster.nodes:
        findings.append(
            Finding(
                "shards", "warning", f"{stream.name}: {stream.shards} shards for {cluster.nodes} nodes",
                "several shards per node: whole shards are copied to every node that reads a part of one",
                "prepare with a smaller inputs_per_shard",
            )
        )  # fmt: skip
    return findings


def node_bytes(stream: StreamFacts, cluster: ClusterFacts) -> float:
    """Bytes of shards that a node touches in an epoch: its lanes' stretches, cut shards whole.

    The lanes of a node's ranks are the same in every epoch. Each is a stretch of the dataset with one shard more than
    fits at its ends.
    """
    lanes = _lanes_of(cluster.ranks_per_node, cluster.ranks, stream.lanes)
    shards = min(stream.shards / stream.lanes + 1, stream.shards)
    return min(lanes * shards, stream.shards) * stream.bytes / stream.shards


def cache_finding(streams: list[StreamFacts], cluster: ClusterFacts, cache: CacheFacts) -> Finding:
    """Whether what a node reads in an epoch fits into its cache."""
    remote = [stream for stream in streams if stream.remote]
    if not remote:
        return Finding("cache", "ok", "all datasets lie in folders: none is needed")
    needed = sum(node_bytes(stream, cluster) for stream in remote)
    found = f"a node reads {readable_bytes(needed)} of shards per epoch"
    if not cache.folder:
        requests = sum(stream.batch for stream in remote)
        return Finding(
            "cache", "warning", f"{found}, and keeps none: {requests} ranged reads of the bucket a step",
            "a folder on the node's own disk", "set train.stream.store.cache_dir (or shard_cache of the site)",
        )  # fmt: skip
    found += f"; {cache.folder} keeps {readable_bytes(cache.bytes)}"
    if needed > cache.bytes:
        return Finding(
            "cache", "warning", found, "room for all: else the bucket is read anew in every epoch",
            f"set train.stream.store.cache_gib={-(-needed // 2**30):.0f}, or use more nodes",
        )  # fmt: skip
    return Finding("cache", "ok", found)


@dataclass(frozen=True)
class CheckFacts:
    """What a start compares with the manifests (`stream.store.check`)."""

    name: str
    shards_a_list: int
    """Shards whose lengths a request to a bucket tells."""
    lists_a_rank: int
    """The most such requests of a rank, for each stream; 0: none."""
    digests: int | None
    """Shards of a stream that are read whole; None: all."""


def start_finding(streams: list[StreamFacts], cluster: ClusterFacts, check: CheckFacts) -> Finding:
    """What a start asks of the bucket: each node reads the manifests once, all ranks compare their share of the shards.

    Args:
        streams: the run's.
        cluster: where.
        check: how much is compared.
    """
    remote = [stream for stream in streams if stream.remote]
    if not remote:
        return Finding("start", "ok", "all datasets lie in folders: no request to a bucket")
    manifests, datasets = sum(each.manifest_bytes for each in remote), sum(each.datasets for each in remote)
    lists = sum(min(-(-each.shards // check.shards_a_list), check.lists_a_rank * cluster.ranks) for each in remote)
    whole = sum(each.bytes * (1 if check.digests is None else min(check.digests / each.shards, 1.0)) for each in remote)
    return Finding(
        "start",
        "ok",
        f"each node reads the manifests once: {datasets} gets and {readable_bytes(manifests)}, "
        f"{datasets * cluster.nodes} and {readable_bytes(manifests * cluster.nodes)} of all nodes; "
        f"check={check.name}: {lists} listings and {readable_bytes(whole)} of shards, shared among the ranks",
    )


def requests_finding(
    streams: list[StreamFacts], cluster: ClusterFacts, cache: CacheFacts, step_s: float | None
) -> Finding:
    """Reads that the steps send to a bucket, against what S3 services name as their limit.

    Args:
        streams: the run's.
        cluster: where.
        cache: of a node.
        step_s: seconds per step; None: not known.
    """
    remote = [stream for stream in streams if stream.remote]
    if not remote:
        return Finding("requests", "ok", "all datasets lie in folders: none")
    steps = max(stream.steps_per_epoch for stream in remote)
    samples, turns = sum(stream.batch for stream in remote), max(stream.turns for stream in remote)
    shards = sum(
        min(node_bytes(stream, cluster) * stream.shards / stream.bytes, stream.shards) * stream.nodes(cluster)
        for stream in remote
    )
    sidecars = sum(stream.shards for stream in remote)
    if cache.folder:
        found, reads = f"{shards:.0f} gets of whole shards an epoch, all nodes", shards / steps / turns
    else:
        found, reads = f"{samples * steps} ranged reads an epoch, all nodes", samples / turns
    found += f", and {sidecars} sidecars or more; {reads:.3g} reads a step"
    if step_s is None:
        return Finding(
            "requests",
            "ok",
            f"{found}; at most {BUCKET_READS_S} a second from {reads / BUCKET_READS_S:.2g} s a step on",
        )
    found += f", {reads / step_s:.3g} a second"
    if reads / step_s > BUCKET_READS_S:
        fix = "use larger shards" if cache.folder else "set train.stream.store.cache_dir (or shard_cache of the site)"
        return Finding(
            "requests", "warning", found, f"at most {BUCKET_READS_S} a second, which S3 services name for a prefix",
            f"{fix}: nodes then get whole shards, or spread the data over several datasets",
        )  # fmt: skip
    return Finding("requests", "ok", found)


def read_finding(
    streams: list[StreamFacts], cluster: ClusterFacts, step_s: float | None, rate: float | None
) -> Finding:
    """What the steps ask of the store against what it was measured to give.

    Args:
        streams: the run's.
        cluster: where; the share of the node that reads most is compared, as the rate is one machine's.
        step_s: seconds per step; None: not known.
        rate: bytes a second that this machine read; None: not measured.
    """
    step_bytes = sum(stream.batch * stream.sample_bytes / stream.turns for stream in streams)
    node_share = sum(stream.node_samples(cluster) * stream.sample_bytes / stream.turns for stream in streams)
    found = f"{readable_bytes(step_bytes)} a step, {readable_bytes(node_share)} of it on the node that reads most"
    if rate is None or step_s is None:
        missing = "the rate of the store" if step_s is not None else "the time of a step"
        return Finding("reading", "warning", f"{found}; {missing} is not known", "", "give --step-s S or --measure")
    found += f": {readable_bytes(node_share / step_s)}/s; the store gave {readable_bytes(rate)}/s here"
    if node_share / step_s > rate:
        return Finding(
            "reading", "warning", found, "a store that is quicker than the steps: they will wait for data",
            f"cache shards on the nodes, use more nodes, or expect {readable_seconds(node_share / rate)} a step",
        )  # fmt: skip
    return Finding("reading", "ok", found)


def loading_finding(load_s: float | None, workers: int, cores: int, step_s: float | None) -> Finding:
    """Whether a rank's loading processes keep up with its steps.

    Args:
        load_s: seconds of a core that the rank's share of a step takes to read, decode and augment; None: not known.
        workers: its loading processes; 0: it loads between its steps.
        cores: that the rank has.
        step_s: seconds per step; None: not known.
    """
    own = f"{workers} loading process(es)" if workers else "no loading process"
    if load_s is None:
        return Finding("loading", "ok", f"{own} a rank on {cores} core(s); what a step takes to load is not known")
    found = f"a rank's step takes {load_s:.2g} s of a core to load; {own} a rank on {cores} core(s)"
    if step_s is None:
        return Finding("loading", "ok", f"{found} keep up with steps of {load_s / max(workers, 1):.2g} s or more")
    needed = math.ceil(load_s / step_s)
    if workers >= needed or (not workers and load_s < BESIDE * step_s):
        return Finding("loading", "ok", found)
    advice = f"set train.stream.workers={needed}"
    if cores <= needed:
        advice += f", and ask for {needed + 1} cores a rank (cpus_per_task of the site)"
    return Finding(
        "loading", "warning", found, f"{needed} loading process(es) for steps of {step_s:.2g} s: they will wait", advice
    )
