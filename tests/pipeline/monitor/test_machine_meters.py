"""Records of ranks and nodes, counted operations, the profiler's window."""

from __future__ import annotations

import gzip
import json
import resource
from pathlib import Path

import pytest
import torch

from mcjepa.pipeline.engine.engine import World
from mcjepa.pipeline.monitor.meters import NODE_METERS, RANK_METERS, MachineMeters, summarise
from mcjepa.pipeline.monitor.throughput import FlopCounter, ProfileWindow, peak_tflops
from mcjepa.pipeline.settings.monitor import ProfileConfig

ALONE = World(0, 1, 0, torch.device("cpu"))


def test_this_machines_load_is_recorded_under_its_name(tmp_path: Path) -> None:
    values = MachineMeters(ALONE, tmp_path).gather(0.25, 2)
    assert values["data_wait_share"] == 0.25 and 0.01 < values["memory_gib"] < 1000
    (memory,) = [v for name, v in values.items() if name.endswith("/system_memory_usage_percentage")]
    assert 0 < memory <= 100
    assert not any("gpu_utilization" in name for name in values)


def test_the_worst_rank_is_named_and_many_nodes_are_summed_up() -> None:
    rows = torch.zeros(40, len(RANK_METERS) + len(NODE_METERS))
    rows[:, 2] = torch.arange(40) / 100
    rows[:, 3] = 1.0
    rows[::2, 4] = torch.arange(20.0)
    heads = {f"node{n}": 2 * n for n in range(20)}
    values = summarise(rows, heads)
    assert values["data_wait_share"] == pytest.approx(0.39) and values["data_wait_share_worst_rank"] == 39
    assert values["system/greatest/cpu_utilization_percentage"] == 19
    assert values["corrupt_samples"] == 40.0
    assert values["system/mean/cpu_utilization_percentage"] == 9.5
    few = summarise(rows, dict(list(heads.items())[:3]))
    assert few["system/node2/cpu_utilization_percentage"] == 2


def test_operations_of_a_product_and_a_convolution_are_counted_forward_and_backward() -> None:
    counter = FlopCounter()
    x, w = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    image, kernel = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3, requires_grad=True)
    with counter.forward():
        loss = (x @ w).sum() + torch.nn.functional.conv2d(image, kernel, padding=1).sum()
    counter.before_backward(loss)
    loss.backward()
    counter.after_backward()
    product, convolution = 2 * 3 * 5 * 7, 2 * 2 * 6 * 4 * 9 * 64
    assert counter.total == 3 * product + 2 * convolution  # of the image no gradient is wanted


def test_a_recipes_peak_wins_and_fp32_has_none() -> None:
    assert peak_tflops("NVIDIA H100 80GB HBM3", "bf16", 0.0) == 989.0
    assert peak_tflops("NVIDIA H100 80GB HBM3", "bf16", 500.0) == 500.0
    assert peak_tflops("NVIDIA H100 80GB HBM3", "fp32", 0.0) == 0.0
    assert peak_tflops("cpu", "bf16", 0.0) == 0.0
    named = {"NVIDIA A100-SXM4-80GB": 312.0, "NVIDIA GeForce RTX 4090": 165.0, "NVIDIA L40S": 362.0, "Tesla T4": 65.0}
    named |= {"NVIDIA H100 PCIe": 756.0, "AMD Instinct MI300X": 1307.0, "AMD Instinct MI250X / MI250": 383.0}
    alike = ("NVIDIA RTX A1000", "NVIDIA RTX A3000 Laptop GPU", "NVIDIA RTX A4000", "NVIDIA T400 4GB")
    assert {name: peak_tflops(name, "bf16", 0.0) for name in (*named, *alike)} == named | dict.fromkeys(alike, 0.0)


def test_the_profiler_writes_the_steps_of_its_window_only(tmp_path: Path) -> None:
    window = ProfileWindow(ProfileConfig(start_step=2, steps=2), tmp_path, 0, torch.device("cpu"))
    for step in range(6):
        window.begin(step)
        with torch.profiler.record_function(f"step {step}"):
            torch.ones(8) @ torch.ones(8)
    window.end()
    (trace,) = (tmp_path / "profile").glob("*.json.gz")
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert {f"step {step}" for step in range(6)} & names == {"step 2", "step 3"}
    assert "aten::dot" in trace.with_suffix("").with_suffix(".txt").read_text()


def test_a_full_disk_costs_the_profile_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    window = ProfileWindow(ProfileConfig(start_step=0, steps=1), tmp_path, 0, torch.device("cpu"))
    window.begin(0)
    torch.ones(8) @ torch.ones(8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # no file may grow: a real failure
    try:
        window.begin(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    window.end()
    assert "profile of steps 0 to 0 is not kept" in caplog.text


def test_other_ranks_and_no_start_profile_nothing(tmp_path: Path) -> None:
    for config, rank in ((ProfileConfig(), 0), (ProfileConfig(start_step=0, ranks=(1,)), 0)):
        window = ProfileWindow(config, tmp_path, rank, torch.device("cpu"))
        window.begin(0)
        window.end()
    assert list(tmp_path.iterdir()) == []
