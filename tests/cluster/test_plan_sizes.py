"""`mcjepa plan` for the paper's recipe on 1, 8, 64 and 512 nodes: what it says is true, and what it advises helps."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mcjepa.cluster.preflight.data import (
    CacheFacts,
    CheckFacts,
    ClusterFacts,
    StreamFacts,
    read_finding,
    requests_finding,
    start_finding,
)
from mcjepa.cluster.preflight.findings import Finding, errors_of
from mcjepa.cluster.preflight.run import HostFacts, host_finding
from mcjepa.data_prep.dataset.manifest import (
    DatasetManifest,
    ShardEntry,
    Totals,
    compute_dataset_id,
    write_manifest,
)
from mcjepa.pipeline.launch.fitting import find_remedies, find_world, fitting_cluster
from mcjepa.pipeline.launch.preflight import Setting, preflight
from mcjepa.pipeline.recipe.recipe import load_recipe
from mcjepa.pipeline.settings.stream import StreamConfig
from mcjepa.pipeline.settings.train import TrainConfig
from mcjepa.pipeline.step.micro_batches import check_micro_batches
from mcjepa.pipeline.stream.order import fitting_world_sizes

SIZES = (1, 8, 64, 512)
IMAGES = StreamFacts(
    name="views", datasets=1, samples=1_281_167, shards=1252, bytes=141 * 10**9, batch=384, lanes=64,
    steps_per_epoch=3336, tail=143, passes=1, remote=True, manifest_bytes=160_000,
)  # fmt: skip
BILLION = replace(
    IMAGES, samples=10**9, shards=10**6, bytes=40 * 10**12, batch=4096, steps_per_epoch=244_140,
    manifest_bytes=131_000_000,
)  # fmt: skip
SAMPLED, NO_CACHE = CheckFacts("sampled", 480, 512, 4), CacheFacts("", 0)


def publish_on_paper(location: str, kind: str, shards: int, samples: int, shard_bytes: int) -> None:
    """A manifest alone: a plan reads no shard that is not there."""
    entries = tuple(
        ShardEntry(f"{kind}-{number:06d}", f"{number:064x}", shard_bytes, samples) for number in range(shards)
    )
    total = samples * shards
    totals = Totals(shards, total, shards * shard_bytes, total, total, 0, 0)
    assert write_manifest(
        location, DatasetManifest(kind, compute_dataset_id(entries), "p", "i", "d", "e", {}, entries, totals)
    )


def setting(nodes: int, step_s: float | None = 0.4) -> Setting:
    return Setting(ClusterFacts(nodes, 8 * nodes, 8), None, step_s, brief=True)


def test_the_papers_recipe_at_all_sizes(s3: str, tmp_path: Path) -> None:
    publish_on_paper(f"{s3}/images", "image", 1252, 1024, 112_640_000)
    publish_on_paper(f"{s3}/clips", "clip", 70, 64, 78_000_000)
    words = [
        f"train.stream.views=[{{location: {s3}/images}}]", f"train.stream.pairs=[{{location: {s3}/clips}}]",
        f"train.run={tmp_path}/run", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
    ]  # fmt: skip
    recipe, _ = load_recipe("paper", words)
    found: dict[int, dict[str, list[Finding]]] = {}
    for nodes in SIZES:
        for finding in preflight(recipe, setting(nodes)):
            found.setdefault(nodes, {}).setdefault(finding.topic, []).append(finding)
    for nodes in SIZES:
        wrong = [finding.topic for each in found[nodes].values() for finding in errors_of(each)]
        assert wrong == ([] if nodes <= 8 else ["world size"])
        hours = 333_800 * 0.4 / 3600
        assert f"{hours * 8 * nodes:.1f} GPU-hours on {nodes} node(s)" in found[nodes]["time"][0].found
        assert f"{2 * nodes} and" in found[nodes]["start"][0].found  # gets of both manifests
        assert "980 a second" in found[nodes]["requests"][0].found  # 392 samples in 0.4 s
        assert "a node of 8 ranks" in found[nodes]["host memory"][0].found
    assert "none on 56, which take part in the sums alone" in found[8]["batch"][0].found
    assert found[64]["world size"][0].fix.startswith(
        "ask for --nodes 48 (384 ranks); or set train.stream.view_batch=512 "
    )
    assert "train.stream.view_batch=4096 (1 of the views a rank)" in found[512]["world size"][0].fix
    assert list(tmp_path.rglob("manifests*")) == []  # no index stays: a plan leaves nothing behind


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("nodes", SIZES)
@pytest.mark.parametrize(
    "stream",
    [
        StreamConfig(),
        StreamConfig(order_version=1),
        StreamConfig(view_batch=0),
        StreamConfig(pair_batch=0),
        StreamConfig(pair_batch=12, view_batch=20),
        StreamConfig(pair_batch=48, view_batch=96, order_version=1),
    ],
)
def test_what_is_advised_helps(nodes: int, stream: StreamConfig, parts: int) -> None:
    cluster = ClusterFacts(nodes, 8 * nodes, 8)
    if cluster.ranks in fitting_world_sizes(stream.batches, stream.order_version):
        return
    remedies = find_remedies(cluster, stream, parts)
    assert remedies or parts > 1
    for remedy in remedies:
        batches, version, ranks = dict(stream.batches), stream.order_version, cluster.ranks
        for name, value in re.findall(r"train\.stream\.(pair|view)_batch=(\d+)", remedy):
            batches[f"{name}s"] = int(value)
        if "order_version=2" in remedy:
            version = 2
        if number := re.search(r"--nodes (\d+) \((\d+) ranks\)", remedy):
            assert int(number[1]) * 8 == int(number[2])
            ranks = int(number[2])
        elif number := re.search(r"--ranks (\d+)", remedy):
            ranks = int(number[1])
        assert ranks in fitting_world_sizes(batches, version)
        changed = replace(stream, **{f"{name[:-1]}_batch": batch for name, batch in batches.items()})
        check_micro_batches(changed, ranks, parts)


def test_of_order_1_no_batch_is_advised_beyond_its_lanes() -> None:
    (remedy,) = find_remedies(ClusterFacts(64, 512, 8), StreamConfig(order_version=1))
    assert remedy == "ask for --nodes 1 (8 ranks)"
    lanes = find_remedies(ClusterFacts(8, 64, 8), StreamConfig(order_version=1))
    assert any("train.stream.order_version=2: one of order 1 keeps its lanes" in each for each in lanes)


def test_only_the_nearest_numbers_are_listed() -> None:
    config = TrainConfig(run="r", steps=1, stream=StreamConfig())
    (error,) = errors_of(find_world(ClusterFacts(64, 512, 8), config))
    assert error.expected == "a number of ranks that fits: … 96, 128, 192, 384"
    assert fitting_cluster(ClusterFacts(64, 512, 8), config) == ClusterFacts(48, 384, 8)
    assert fitting_cluster(ClusterFacts(8, 64, 8), config) == ClusterFacts(8, 64, 8)


def test_a_million_shards_are_compared_by_two_thousand_listings() -> None:
    cluster = ClusterFacts(512, 4096, 8)
    finding = start_finding([BILLION], cluster, SAMPLED)
    assert finding.severity == "ok" and "check=sampled: 2084 listings and 152.6 MiB of shards" in finding.found
    assert "512 and 62.5 GiB of all nodes" in finding.found
    assert "512 listings" in start_finding([BILLION], ClusterFacts(1, 1, 1), SAMPLED).found
    assert "0 listings" in start_finding([BILLION], cluster, CheckFacts("none", 480, 0, 0)).found
    full = start_finding([IMAGES], cluster, CheckFacts("full", 480, 512, None))
    assert "3 listings and 131.3 GiB of shards" in full.found
    assert "no request" in start_finding([replace(BILLION, remote=False)], cluster, SAMPLED).found


def test_of_more_ranks_than_pairs_the_first_node_reads_them_all() -> None:
    pairs = replace(IMAGES, name="pairs", batch=8, lanes=8, samples=44_800, shards=700, bytes=44_800 * 10**6)
    cluster, cache = ClusterFacts(8, 64, 8), CacheFacts("/disk", 10**12)
    assert "7.6 MiB a step, 7.6 MiB of it on the node" in read_finding([pairs], cluster, 0.4, 1e9).found
    assert "7.6 MiB a step, 1.9 MiB of it on the node" in read_finding([pairs], ClusterFacts(4, 8, 8), 0.4, 1e9).found
    assert "700 gets of whole shards an epoch" in requests_finding([pairs], cluster, cache, 0.4).found


def test_streams_that_take_turns_are_read_half_as_often() -> None:
    views = replace(IMAGES, turns=2)
    assert "384 reads a step" in requests_finding([IMAGES], ClusterFacts(1, 8, 8), NO_CACHE, 0.4).found
    found = requests_finding([views], ClusterFacts(1, 8, 8), NO_CACHE, 0.4).found
    assert f"{384 * 3336} ranged reads an epoch" in found and "192 reads a step, 480 a second" in found
    assert "20.2 MiB a step" in read_finding([views], ClusterFacts(1, 8, 8), 0.4, 1e9).found


def test_requests_beyond_what_a_bucket_names_are_a_warning() -> None:
    cluster = ClusterFacts(8, 64, 8)
    many = requests_finding([BILLION], cluster, NO_CACHE, 0.4)
    assert many.severity == "warning" and "1.02e+04 a second" in many.found and "cache_dir" in many.fix
    cached = requests_finding([BILLION], cluster, CacheFacts("/ssd", 1 << 40), 0.4)
    assert cached.severity == "ok" and "gets of whole shards an epoch" in cached.found
    assert "from 0.74 s a step on" in requests_finding([BILLION], cluster, NO_CACHE, None).found
    assert requests_finding([IMAGES], cluster, NO_CACHE, 0.4).severity == "ok"
    assert requests_finding([replace(IMAGES, remote=False)], cluster, NO_CACHE, 0.4).found.endswith("none")


def test_memory_of_a_node_holds_saves_in_the_background() -> None:
    host = HostFacts(
        ranks=8, index_bytes=70 * 10**6, order_bytes=8 * 10**6, workers=2, step_bytes=30 * 10**6, prefetch=2
    )
    alone = host_finding(host)
    assert alone.severity == "ok" and "background" not in alone.found and "16 loading process(es)" in alone.found
    with_copies = host_finding(replace(host, copy_bytes=(3 << 30, 1 << 30)))
    assert "25.0 GiB of copies" in with_copies.found
    assert host_finding(replace(host, copy_bytes=(3 << 30, 1 << 30), node_bytes=20 << 30)).severity == "error"
    assert host_finding(replace(host, node_bytes=20 << 30)).severity == "ok"
