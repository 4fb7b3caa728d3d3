"""What a start of a training does not load, and that the compiler is there where it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import sys, torch
from mcjepa.pipeline.engine.engine import build_engine, start_world, stop_world
from mcjepa.pipeline.engine.imports import DYNAMO, defer_compiler
from mcjepa.pipeline.recipe.recipe import load_recipe
from mcjepa.model.mcjepa import MCJEPA
recipe, _ = load_recipe("quickstart", [])
world = start_world(recipe.train.engine)
engine = build_engine(MCJEPA(recipe.model), recipe.train, world)
weight = next(engine.module.parameters())
before = weight.detach().clone()
engine.backward(sum(p.sum() for p in engine.module.parameters()))
engine.step()
assert not torch.equal(before, weight)
"""
NOTHING_LOADED = "assert not [n for n in sys.modules if n.startswith((DYNAMO + '.', 'torch._inductor', 'mlflow'))]\n"
COMPILES = """
counted = torch.compile(lambda x: x + 1, backend=lambda graph, inputs: graph.forward)
assert counted(torch.ones(2)).tolist() == [2, 2]
assert sys.modules[DYNAMO] is torch._dynamo and torch._dynamo.__file__
"""
SUBMODULE = """
import torch._dynamo.utils
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"] and torch._dynamo.utils.__spec__.loader.path
assert torch._dynamo.utils.counters is sys.modules["torch._dynamo.convert_frame"].counters
assert torch._dynamo.__file__
"""


@pytest.mark.slow
def test_a_step_of_an_engine_loads_neither_a_compiler_nor_mlflow_and_one_that_is_asked_for_is_real() -> None:
    subprocess.run([sys.executable, "-c", BEGIN + NOTHING_LOADED + COMPILES + "stop_world()"], check=True, timeout=300)


def test_a_module_of_the_deferred_compiler_is_loaded_once_and_within_the_real_one() -> None:
    begin = "import sys, torch\nfrom mcjepa.pipeline.engine.imports import defer_compiler\ndefer_compiler()\n"
    subprocess.run([sys.executable, "-c", begin + SUBMODULE], check=True, timeout=300)
