"""Encoder and estimator as compiled parts: whole graphs, the same numbers, names and hooks."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters

from mcjepa.model.config import EncoderConfig, ExpanderConfig, FlowConfig, ModelConfig
from mcjepa.model.mcjepa import MCJEPA, TERMS
from mcjepa.pipeline.engine.engine import build_engine, compile_parts, seed_step, start_world, stop_world
from mcjepa.pipeline.engine.state import parameter_shapes
from mcjepa.pipeline.monitor.throughput import FlopCounter
from mcjepa.pipeline.settings.train import EngineConfig, TrainConfig
from mcjepa.pipeline.step.step import run_step
from mcjepa.pipeline.stream.batches import PairBatch, StepBatch, ViewBatch

_SEEDED = torch.Generator().manual_seed(0)
# Smooth: in noise a rounding may decide whether a pixel counts as visible, and losses jump.
FRAMES, VIEWS = (
    F.interpolate(torch.rand(count, 3, 6, 6, generator=_SEEDED), size, mode="bilinear").unflatten(0, (2, -1))
    for count, size in ((2, (64, 96)), (6, (33, 32)))
)


def small_model() -> MCJEPA:
    """Of all kinds of layers one; its flow does not start on the cells' centres, where gradients jump."""
    torch.manual_seed(0)
    encoder = EncoderConfig(
        stem_channels=(4, 8), stage_channels=(8, 8, 8, 8), depths=(1, 1, 1, 1), drop_path=0.1, layer_scale=0.5
    )
    flow = FlowConfig(
        search_range=1, widths=(8, 8), width_factor=1.0, context_widths=(8, 8), context_dilations=(1, 2),
        coarsest_stride=8,
    )  # fmt: skip
    model = MCJEPA(ModelConfig(encoder=encoder, flow=flow, expander=ExpanderConfig(widths=(16, 16)))).train()
    with torch.no_grad():
        for parameter in model.flow_estimator.residual.context[-1].parameters():
            parameter.normal_(std=0.1)
    return model


def pass_through(model: MCJEPA, *, low: bool) -> tuple[dict[str, Tensor], Tensor]:
    """All terms, and the sum of the gradients of two backward passes through one forward pass."""
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        out = model(tuple(FRAMES), tuple(VIEWS), dict.fromkeys(TERMS, 1.0))
    out.loss.backward(retain_graph=True)  # as the meters of the tasks' gradients do
    out.loss.backward()
    return out.terms, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("low", [False, True])
def test_compiled_parts_are_whole_graphs_that_give_the_same(low: bool) -> None:
    model = small_model()
    compiled = copy.deepcopy(model)
    counters.clear()
    torch._dynamo.reset()
    compile_parts(compiled, fullgraph=True, backend="aot_eager")
    terms, gradient = pass_through(model, low=low)
    found, found_gradient = pass_through(compiled, low=low)
    bound = 2e-2 if low else 1e-5  # of bf16, whose correlation is rounded elsewhere
    for name, term in terms.items():
        torch.testing.assert_close(found[name], term, rtol=bound, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    assert float((found_gradient - gradient).norm() / gradient.norm()) < bound
    assert counters["stats"]["unique_graphs"] == 3 and not counters["graph_break"]  # frames, views; estimator
    assert compiled.state_dict().keys() == model.state_dict().keys()


def test_hooks_see_a_compiled_encoder() -> None:
    model = small_model()
    seen: list[int] = []
    compile_parts(model, backend="eager")
    for _ in range(2):  # also one that comes after the compilation
        model.encoder.register_forward_hook(lambda _module, _inputs, levels: seen.append(len(levels)))
        model.forward_pyramid(FRAMES[0])
    assert seen == [6, 6, 6]


def _train(_rank: int, folder: str) -> None:
    """Two steps of an engine, as it is and compiled; the second one's operations are counted."""
    torch.compile = partial(torch.compile, backend="aot_eager")  # what `compile_parts` calls; needs no compiler
    found = {}
    world = start_world(EngineConfig(precision="fp32", threads=1))
    for compiled in (False, True):
        config = EngineConfig(zero_stage=1, precision="fp32", threads=1, compile=compiled)
        engine = build_engine(small_model(), TrainConfig(run="none", steps=2, engine=config), world)
        engine.train()
        losses, counter = [], FlopCounter()
        for step in range(2):
            seed_step(0, step, 0)
            names = tuple("abc")
            batch = StepBatch(step, PairBatch(*FRAMES, names[:1]), ViewBatch(*VIEWS, names))
            tap = counter if step else None
            result = run_step(engine, batch, dict.fromkeys(TERMS, 1.0), stop_requested=False, tap=tap)
            losses.append(float(result.output.loss.detach()))
        found[str(compiled)] = {"losses": losses, "flops": counter.total, "shapes": parameter_shapes(engine)}
    Path(folder, "found.json").write_text(json.dumps(found))
    stop_world()


@pytest.mark.slow
def test_an_engine_trains_compiled_parts_alike_and_its_operations_are_counted(tmp_path: Path) -> None:
    mp.spawn(_train, args=(str(tmp_path),), nprocs=1)
    plain, compiled = json.loads((tmp_path / "found.json").read_text()).values()
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert compiled["losses"][1] != compiled["losses"][0] and compiled["shapes"] == plain["shapes"]
    assert compiled["flops"] == pytest.approx(plain["flops"], rel=0.05) and plain["flops"] > 0
