"""Judging a run before it is queued: each finding at its edge."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mcjepa.cluster.preflight.data import (
    CacheFacts,
    ClusterFacts,
    StreamFacts,
    cache_finding,
    loading_finding,
    node_bytes,
    read_finding,
    stream_findings,
    world_findings,
)
from mcjepa.cluster.preflight.findings import Finding, errors_of, findings_table
from mcjepa.cluster.preflight.memory import EngineFacts, ModelSize, StepMemory, estimate_memory, memory_finding
from mcjepa.cluster.preflight.run import (
    Destination,
    RunFacts,
    checkpoint_finding,
    destination_finding,
    interruption_finding,
    shared_finding,
    terms_finding,
    time_finding,
)
from mcjepa.pipeline.launch.facts import file_system
from mcjepa.pipeline.stream.order import SampleOrder, SourceCounts

VIEWS = StreamFacts(
    name="views", datasets=1, samples=1000, shards=10, bytes=10 << 30, batch=32, lanes=32, steps_per_epoch=31,
    tail=8, passes=1, remote=True,
)  # fmt: skip
RUN = RunFacts(
    steps=1000, every_steps=100, kept=2, grace_s=60.0, elements=10**8, ranks=8, nodes=1, accelerators=8, step_s=0.5
)
MODEL, NOTHING = ModelSize((10**7, 1000), 0), StepMemory(0, 0, 0, 0)


@pytest.mark.parametrize(("ranks", "fits"), [(1, True), (8, True), (6, False), (16, False)])
def test_ranks_must_divide_the_batches_of_both_streams(ranks: int, fits: bool) -> None:
    findings = world_findings(ClusterFacts(1, ranks, 8), {"pairs": (8, 8), "views": (384, 64)}, (1, 2, 4, 8), 1)
    assert (errors_of(findings) == []) == fits
    if not fits:
        assert findings[0].expected == "a number of ranks that fits: 1, 2, 4, 8"


@pytest.mark.parametrize(("ranks", "lanes", "advised"), [(8, 64, 0), (128, 64, 0), (6, 64, 60), (96, 64, 96)])
def test_ranks_that_read_more_lanes_than_they_need_are_a_warning(ranks: int, lanes: int, advised: int) -> None:
    findings = world_findings(ClusterFacts(1, ranks, 8), {"views": (384, lanes)}, (ranks,), 1)
    warnings = [finding for finding in findings if finding.severity == "warning"]
    assert [finding.fix for finding in warnings] == [f"set train.stream.lanes={advised}"] * bool(advised)
    assert not advised or f"each rank reads {lanes // math.gcd(ranks, lanes)} of 64 lanes" in warnings[0].found


def test_micro_batches_must_divide_a_ranks_share() -> None:
    (error,) = errors_of(world_findings(ClusterFacts(1, 2, 0), {"pairs": (8, 8)}, (1, 2), 3))
    assert error.topic == "batch" and error.expected == "a divisor of 4"


def test_ranks_without_pairs_are_allowed_and_counted() -> None:
    streams = {"pairs": (8, 8), "views": (384, 64)}
    findings = world_findings(ClusterFacts(8, 64, 8), streams, (64,), 1)
    assert [finding.severity for finding in findings] == ["ok"] * 3
    assert findings[1].found.startswith("pairs: 1 sample on 8 ranks, none on 56") and "6 samples" in findings[2].found
    (error,) = errors_of(world_findings(ClusterFacts(8, 64, 8), streams, (64,), 2))
    assert error.expected == "1 micro-batch"


def test_data_that_fill_no_batch_are_a_warning() -> None:
    (finding,) = stream_findings(replace(VIEWS, passes=4, remote=False), ClusterFacts(1, 1, 0))
    assert finding.severity == "warning" and "4 times in a batch" in finding.found


@pytest.mark.parametrize(("shards", "nodes"), [(100, 4), (64, 8), (1000, 2), (7, 4), (90, 3), (90, 24)])
def test_a_nodes_bytes_are_enough_for_what_the_order_reads_there(shards: int, nodes: int) -> None:
    """Against the real order: which shards do a node's ranks touch in an epoch."""
    counts = np.full(shards, 50)
    order = SampleOrder([SourceCounts(tuple(counts.tolist()))], batch=48, window=64, seed=5, lanes=16)
    ranks, ends = 2 * nodes, np.cumsum(counts)
    touched = set()
    for rank in (0, 1):  # those of the first node
        for step in range(order.steps_per_epoch):
            epoch, ids = order.step_samples(step, rank=rank, world_size=ranks)
            touched |= set(np.searchsorted(ends, order.sample_indexes(epoch, ids), side="right").tolist())
    stream = replace(VIEWS, shards=shards, bytes=shards * 1000, lanes=order.lanes, batch=48)
    expected = node_bytes(stream, ClusterFacts(nodes, ranks, 0))
    assert len(touched) * 1000 <= expected <= 1000 * (len(touched) + 4 * order.lanes)


def test_a_cache_that_is_absent_or_too_small_is_a_warning_that_says_how_much() -> None:
    cluster = ClusterFacts(2, 16, 8)
    assert cache_finding([VIEWS], cluster, CacheFacts("", 0)).severity == "warning"
    small = cache_finding([VIEWS], cluster, CacheFacts("/ssd", 1 << 30))
    assert small.severity == "warning" and "cache_gib=10" in small.fix
    assert cache_finding([VIEWS], cluster, CacheFacts("/ssd", 10 << 30)).severity == "ok"
    assert cache_finding([replace(VIEWS, remote=False)], cluster, CacheFacts("", 0)).severity == "ok"


def test_a_store_slower_than_the_steps_is_a_warning() -> None:
    cluster = ClusterFacts(1, 8, 8)
    needed = 32 * (10 << 30) / 1000  # bytes a step
    assert read_finding([VIEWS], cluster, 1.0, needed * 1.1).severity == "ok"
    slow = read_finding([VIEWS], cluster, 1.0, needed / 2)
    assert slow.severity == "warning" and "2 s a step" in slow.fix
    assert read_finding([VIEWS], cluster, None, 1.0).severity == "warning"


def test_zero_stages_cut_what_they_say() -> None:
    eight = [estimate_memory(MODEL, NOTHING, EngineFacts(s, "fp32", 8, True, bucket_elements=1)) for s in range(4)]  # type: ignore[arg-type]
    n = MODEL.elements
    assert [e.optimizer for e in eight] == [8 * n, n, n, n]
    assert eight[0].total == 4 * n + 8 * n + 8 * n
    assert eight[2].total < eight[1].total < eight[0].total
    whole_bucket = estimate_memory(MODEL, NOTHING, EngineFacts(2, "fp32", 8, True))
    assert whole_bucket.total - eight[2].total == 4 * (500_000_000 - 1)
    for stage, width in ((2, 8), (3, 6)):  # of both types: as measured on a CPU, 4.0 and 3.0 GB
        bf16 = estimate_memory(MODEL, NOTHING, EngineFacts(stage, "bf16", 8, True))  # type: ignore[arg-type]
        one = estimate_memory(MODEL, NOTHING, EngineFacts(stage, "fp32", 8, True))  # type: ignore[arg-type]
        assert bf16.total - one.total == (width - 4) * 500_000_000
    half = estimate_memory(MODEL, NOTHING, EngineFacts(2, "fp16", 8, True, bucket_elements=1))
    assert half.parameters == 2 * n + 4 * (n // 8)


def test_too_little_memory_is_refused_with_what_would_help() -> None:
    step = StepMemory(30 << 30, 30 << 30, 30 << 30, 0)
    engine = EngineFacts(2, "bf16", 8, True)
    finding = memory_finding(estimate_memory(MODEL, step, engine), engine, "48 views", 24 << 30, 1)
    assert finding.severity == "error" and "activation_checkpointing" in finding.fix
    bucket = memory_finding(estimate_memory(MODEL, NOTHING, engine), engine, "1 view", 2 << 30, 1)
    assert bucket.severity == "error" and "reduce_bucket_size" in bucket.fix
    assert memory_finding(estimate_memory(MODEL, step, engine), engine, "", 80 << 30, 1).severity == "ok"
    assert memory_finding(estimate_memory(MODEL, step, engine), engine, "", None, 1).severity == "warning"


def test_ranks_of_a_node_without_gpus_share_its_memory() -> None:
    engine = EngineFacts(0, "fp32", 4, False)
    estimate = estimate_memory(MODEL, NOTHING, engine)
    assert memory_finding(estimate, engine, "", 1200 << 20, 1).severity == "ok"
    assert memory_finding(estimate, engine, "", 1200 << 20, 4).severity == "error"


def test_a_checkpoint_that_takes_longer_than_the_grace_time_is_refused() -> None:
    assert checkpoint_finding(RUN, 100e6).severity == "ok"  # 0.55 GB by rank 0
    slow = checkpoint_finding(RUN, 5e6)
    assert slow.severity == "error" and "grace_s" in slow.fix
    assert checkpoint_finding(RUN, None).severity == "ok"


def test_a_save_in_the_background_states_its_memory_and_may_have_to_be_waited_for() -> None:
    behind = replace(RUN, background=True)
    assert (
        "from a copy in memory of 143.1 MiB a rank and 381.5 MiB more on rank 0"
        in checkpoint_finding(behind, None).found
    )
    assert checkpoint_finding(RUN, 12e6).severity == "ok"  # 46 s of 60
    assert checkpoint_finding(behind, 12e6).severity == "error"


def test_time_and_loss_are_said_or_said_to_be_unknown() -> None:
    assert "8.3 min" not in time_finding(RUN).found and "1.1 GPU-hours" in time_finding(RUN).found
    assert "3 time limit(s)" in time_finding(replace(RUN, time_limit_s=200.0)).found
    assert time_finding(replace(RUN, step_s=None)).severity == "warning"
    assert "100 steps, 50 s" in interruption_finding(RUN).found
    assert interruption_finding(replace(RUN, step_s=60.0)).severity == "warning"


def test_the_table_names_every_finding_and_wraps_at_its_column() -> None:
    lines = findings_table([Finding("memory", "ok", "word " * 60), Finding("lanes", "error", "6", "8", "start 8")])
    assert lines[0].startswith("ok      memory          word") and all(len(line) <= 116 for line in lines)
    assert lines[-1].strip() == "expected 8; start 8" and lines[-1].index("expected") == lines[0].index("word")


def test_places_without_room_are_refused() -> None:
    assert destination_finding(Destination("run", "/run", 10, "", 5)).severity == "ok"
    assert destination_finding(Destination("run", "/run", 10, "", 11)).severity == "error"
    assert destination_finding(Destination("run", "s3://b/p", None, "cannot be written: denied")).severity == "error"


def test_a_run_of_several_nodes_on_one_machines_disk_is_a_warning(tmp_path: Path) -> None:
    table = tmp_path / "mounts"
    table.write_text(
        f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\ntmpfs {tmp_path}/memory tmpfs rw 0 0\n"
    )
    (tmp_path / "memory").mkdir()
    kinds = [
        file_system(str(place), str(table)) for place in ("/", tmp_path / "run" / "x", tmp_path / "memory" / "run")
    ]
    assert kinds == ["ext4", "nfs4", "tmpfs"]
    assert [shared_finding("/run", kind).severity for kind in (*kinds, "")] == ["warning", "ok", "warning", "ok"]
    assert file_system("/", str(tmp_path / "absent")) == ""


def test_a_weighted_term_that_never_begins_is_a_warning() -> None:
    assert terms_finding("").severity == "ok"
    assert terms_finding("vc at step 9").severity == "warning"


@pytest.mark.parametrize(
    ("workers", "cores", "step_s", "advice"),
    [
        (2, 12, 0.03, "set train.stream.workers=6"),
        (2, 3, 0.03, "set train.stream.workers=6, and ask for 7 cores a rank (cpus_per_task of the site)"),
        (6, 8, 0.03, ""),
        (0, 2, 2.0, ""),
        (0, 2, 1.0, "set train.stream.workers=1"),
        (2, 12, None, ""),
    ],
)
def test_loading_processes_must_keep_up_with_the_steps(
    workers: int, cores: int, step_s: float | None, advice: str
) -> None:
    """The paper's rank: 0.175 s of a core for a step."""
    finding = loading_finding(0.175, workers, cores, step_s)
    assert (finding.severity, finding.fix) == ("warning" if advice else "ok", advice)
