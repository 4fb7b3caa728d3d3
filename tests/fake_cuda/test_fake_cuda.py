"""Steps, updates and what evaluations compute on device "cuda" without a GPU: no tensor is on the wrong device.

`shim.cpp` makes a CPU build of torch believe in a GPU, `driver.py` runs on fake tensors there. What is computed is not
seen, and neither are kernels, collectives, pinned memory or the engine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def build_shim(folder: Path) -> Path:
    """Compiles it against torch's headers."""
    compiler = shutil.which("g++")
    if compiler is None:
        if os.environ.get("MCJEPA_REQUIRE_SERVICES") == "1":
            raise FileNotFoundError("no g++, expected one to build the shim of CUDA; apt-get install g++")
        pytest.skip("no g++ to build the shim of CUDA: apt-get install g++")
    root, library = Path(torch.__file__).parent, folder / "shim.so"
    words = [compiler, "-std=c++20", "-w", "-shared", "-fPIC", f"-I{root}/include", str(HERE / "shim.cpp")]
    done = subprocess.run(
        [*words, "-o", str(library), f"-L{root}/lib", "-ltorch_cpu", "-lc10"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return library


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Error of every case, empty where there was none."""
    if torch.version.cuda or torch.version.hip:
        pytest.skip("this torch is built for GPUs, expected a CPU build: the shim would meet the real hooks")
    shim = build_shim(tmp_path_factory.mktemp("shim"))
    words = [sys.executable, "-m", "tests.fake_cuda.driver", str(shim)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {case["case"]: case["error"] for case in map(json.loads, done.stdout.splitlines())}


def test_steps_of_every_recipe_and_what_is_computed_of_features_keep_to_the_gpu(found: dict[str, str]) -> None:
    assert {case: error[-1500:] for case, error in found.items() if error} == {}
    assert {"step in bf16", "step in fp16", "evaluation and infer", "propagation", "nearest neighbours"} <= found.keys()
    assert "step of configs/quickstart" in found and any(case.startswith("step of ablations/") for case in found)


def test_a_tensor_that_somebody_forgot_on_the_cpu_fails_the_step(found: dict[str, str]) -> None:
    assert found["a forgotten device is an error"] == ""
