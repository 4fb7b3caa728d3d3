"""The recipes that ship: all of them valid, the paper's numbers those of its accounts, the others one step from it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.files import find_recipe, read_recipe, shipped_recipes, to_plain
from mcjepa.pipeline.recipe.recipe import Recipe, describe_keys, load_recipe
from mcjepa.pipeline.recipe.validation import json_schema
from mcjepa.pipeline.run.recipes import flatten

REPOSITORY = Path(__file__).resolve().parents[3]
PLACES = {"name", "out", "train.run", "tracking.uri", "tracking.artifacts"}
ABLATIONS = [name for name in shipped_recipes() if name.startswith("ablations/")]
EPOCH = 1_281_167 // 384  # steps
PAPER: dict[str, Any] = {
    "model.encoder.stem_channels": (48, 48),
    "model.encoder.stage_channels": (96, 192, 384, 768),
    "model.encoder.depths": (3, 3, 9, 3),
    "model.encoder.drop_path": 0.1,
    "model.encoder.layer_scale": 0.0,
    "model.flow.search_range": 4,
    "model.flow.width_factor": 2.0,
    "model.flow.widths": (128, 128, 96, 64, 32),
    "model.flow.context_dilations": (1, 2, 4, 8, 16, 1),
    "model.flow.normalize": True,
    "model.flow.match": "raw",
    "model.flow.finest_stride": 4,
    "model.flow.max_flow_px": 128.0,
    "model.expander.widths": (8192, 8192, 8192),
    "model.loss.photometric_l1": 1.0,
    "model.loss.photometric_l2": 1.0,
    "model.loss.photometric_ssim": 1.0,
    "model.loss.photometric_census": 0.0,
    "model.loss.smoothness_edge": 10.0,
    "model.loss.occlusion_scale": 0.01,
    "model.loss.occlusion_offset": 0.5,
    "model.loss.vc_variance": (0.01, 0.01, 0.01, 0.01, 0.001, 0.0001),
    "model.loss.vc_covariance": (0.04, 0.04, 0.001, 0.0, 0.0, 0.0),
    "model.loss.vicreg_invariance": 25.0,
    "model.loss.vicreg_variance": 25.0,
    "model.loss.vicreg_covariance": 1.0,
    "train.epochs": 100.0,
    "train.stream.view_batch": 384,
    "train.stream.pair_batch": 8,
    "train.stream.augment.view.size": 224,
    "train.stream.augment.view.area": (0.08, 1.0),
    "train.stream.augment.view.blur": (1.0, 0.1),
    "train.stream.augment.view.solarize": (0.0, 0.2),
    "train.stream.augment.view.grey": 0.2,
    "train.stream.augment.pair.crop": (384, 832),
    "train.terms.video_balance": 0.1,
    "train.terms.content.weight": 1.0,
    "train.terms.content.start_epoch": 0.0,
    "train.terms.regression.weight": 1.0,
    "train.terms.regression.start_epoch": 10.0,
    "train.terms.reconstruction.weight": 1.0,
    "train.terms.reconstruction.start_epoch": 10.0,
    "train.terms.smoothness.weight": 75.0,
    "train.terms.smoothness.start_epoch": 10.0,
    "train.terms.cycle.weight": 0.2,
    "train.terms.cycle.start_epoch": 10.0,
    "train.terms.vc.weight": 1.0,
    "train.terms.vc.start_epoch": 10.0,
    "train.terms.vc.warmup_epochs": 1.0,
    "train.optimizer.encoder_lr": 3e-4,
    "train.optimizer.estimator_lr": 1e-4,
    "train.optimizer.encoder_weight_decay": 1e-6,
    "train.optimizer.estimator_weight_decay": 1e-6,
    "train.optimizer.betas": (0.9, 0.999),
    "train.optimizer.warmup_epochs": 10.0,
    "eval.probe.levels": (3, 4, 5, 6),
    "eval.probe.steps": 40_000,
    "eval.probe.lr": 1e-4,
    "eval.probe.weight_decay": 0.05,
    "eval.probe.warmup_steps": 1500,
    "eval.probe.batch": 16,
    "eval.probe.crop_px": 512,
    "eval.vos.context_frames": 7,
    "eval.vos.top_k": 5,
    "eval.vos.radius_cells": 12,
    "eval.vos.temperature": 0.1,
    "eval.vos.short_side": 480,
}
"""What the accounts of the paper and its parents say (arXiv 2307.12698, VICReg, VICRegL, PWC-Net, ARFlow, DINO)."""


def resolved(name: str) -> dict[str, Any]:
    """Every value of a recipe by its dotted name."""
    return flatten(load_recipe(name, [])[1])


def changed(name: str) -> set[str]:
    """Names of the values that a recipe changes of the paper's; its own name and the place of its results aside."""
    ours, theirs = resolved(name), resolved("paper")
    assert ours.keys() == theirs.keys()
    return {key for key, value in ours.items() if value != theirs[key]} - PLACES


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_is_valid_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe, plain = load_recipe(name, [f"out={tmp_path}"])
    (tmp_path / "resolved.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    assert load_recipe(str(tmp_path / "resolved.yaml"), [])[0] == recipe
    assert recipe.name == name.rpartition("/")[2]


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_dataset_that_a_recipe_trains_on_is_one_that_it_makes(name: str) -> None:
    recipe, _ = load_recipe(name, [])
    assert recipe.prep is not None and recipe.train is not None
    made = {f"{recipe.prep.root}/{dataset}": config.kind for dataset, config in recipe.prep.datasets.items()}
    stream = recipe.train.stream
    assert {made[source.location] for source in stream.pairs} <= {"clip"}
    assert {made[source.location] for source in stream.views} <= {"image", "clip"}
    assert bool(stream.pairs) == bool(stream.pair_batch) and bool(stream.views) == bool(stream.view_batch)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_reader_and_set_that_a_recipe_names_exists(name: str) -> None:
    from mcjepa.data_prep.corpora import FLOW_SETS, INPUT_READERS, SEGMENTATION_SETS, VOS_SETS

    recipe, _ = load_recipe(name, [])
    assert recipe.prep is not None and recipe.eval is not None
    readers = {corpus.reader for dataset in recipe.prep.datasets.values() for corpus in dataset.corpora}
    assert readers <= set(INPUT_READERS)
    assert set(recipe.eval.flow.sets if recipe.eval.flow else ()) <= set(FLOW_SETS)
    assert recipe.eval.probe is None or recipe.eval.probe.set in SEGMENTATION_SETS
    assert recipe.eval.vos is None or recipe.eval.vos.set in VOS_SETS


def test_the_paper_s_numbers_are_those_of_its_accounts() -> None:
    assert EPOCH == 3336
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in resolved("paper").items()}
    assert {key: values[key] for key in PAPER} == PAPER


def test_the_paper_s_recipe_writes_its_numbers_out() -> None:
    """Not left to defaults, so that a reader sees them and a changed default changes no run of the paper."""
    written = flatten(read_recipe(find_recipe("paper")))
    assert set(PAPER) - {"train.terms.content.start_epoch"} <= set(written)


def test_the_paper_s_corpora_are_its_five_flow_sets_and_imagenet() -> None:
    recipe, _ = load_recipe("paper", [])
    assert recipe.prep is not None and recipe.train is not None
    assert set(recipe.prep.datasets) == {"imagenet", "sintel", "kitti", "chairs", "things3d", "hd1k"}
    repeats = {source.location.rpartition("/")[2]: source.repeat for source in recipe.train.stream.pairs}
    assert repeats == {"sintel": 1000, "kitti": 100, "chairs": 1, "things3d": 1, "hd1k": 1}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ablations/flow-start-0", {"train.terms"}),
        ("ablations/flow-start-30", {"train.terms"}),
        ("ablations/sampling-batch", {"train.stream.sampling"}),
        ("ablations/sampling-epoch", {"train.stream.sampling"}),
        ("ablations/no-cycle", {"train.terms.cycle.weight"}),
        ("ablations/cycle-1", {"train.terms.cycle.weight"}),
        ("ablations/balance-1", {"train.terms.video_balance"}),
        ("ablations/balance-hundredth", {"train.terms.video_balance"}),
        ("ablations/no-vc", {"train.terms.vc.weight"}),
        ("ablations/vc-coarsest", {"model.loss.vc_variance", "model.loss.vc_covariance"}),
        ("ablations/backbone-pwc", {"model.encoder"}),
        ("ablations/estimator-c1", {"model.flow.width_factor"}),
        ("ablations/estimator-no-norm", {"model.flow.normalize"}),
    ],
)
def test_an_ablation_changes_its_own_part_of_the_paper_and_nothing_else(name: str, parts: set[str]) -> None:
    different = changed(name)
    assert all(any(key == part or key.startswith(f"{part}.") for part in parts) for key in different), different
    assert all(any(key.startswith(part) for key in different) for part in parts), different


def test_every_ablation_is_tested_above() -> None:
    cases = test_an_ablation_changes_its_own_part_of_the_paper_and_nothing_else.pytestmark[0].args[1]  # type: ignore
    assert sorted(ABLATIONS) == sorted(name for name, _ in cases)


def test_recipes_over_the_paper_share_its_shards_and_keep_their_results_apart() -> None:
    over = [load_recipe(name, [])[0] for name in ("paper", "m-jepa", "vicreg", *ABLATIONS)]
    assert len({recipe.datasets for recipe in over}) == 1
    assert len({recipe.out for recipe in over}) == len({r.train.run for r in over if r.train}) == len(over)


def test_the_baselines_are_one_branch_of_the_paper_s() -> None:
    motion, content = load_recipe("m-jepa", [])[0].train, load_recipe("vicreg", [])[0].train
    assert motion is not None and content is not None
    assert motion.stream.view_batch == 0 and motion.terms.content.weight == 0
    flow = (motion.terms.regression, motion.terms.reconstruction, motion.terms.smoothness, motion.terms.cycle)
    assert all(term.weight > 0 and term.start_epoch == 0 for term in flow) and motion.terms.vc.start_epoch == 0
    assert (motion.steps, motion.optimizer.warmup_steps) == (100 * EPOCH, 10 * EPOCH)
    assert content.stream.pair_batch == 0 and content.terms.content.weight == 1
    warm = {"warmup_epochs": 0.0, "warmup_steps": 0}  # in epochs of the views, or steps where there are none
    assert to_plain(content.optimizer) | warm == to_plain(motion.optimizer) | warm


def test_the_cpu_recipe_keeps_the_model_losses_and_precision_of_the_paper() -> None:
    small, paper = load_recipe("paper-cpu", [])[0], load_recipe("paper", [])[0]
    assert small.model == paper.model
    assert small.train is not None and paper.train is not None
    assert small.train.engine == paper.train.engine
    for name in ("regression", "reconstruction", "smoothness", "cycle", "vc", "content"):
        ours, theirs = getattr(small.train.terms, name), getattr(paper.train.terms, name)
        assert ours.weight == theirs.weight and ours.start_step == ours.start_epoch == ours.warmup_epochs == 0


def test_shipped_recipes_in_folders_are_found_by_name_and_listed() -> None:
    assert find_recipe("ablations/no-vc").name == "no-vc.yaml"
    assert find_recipe("ablations/no-vc.yaml") == find_recipe("ablations/no-vc")
    with pytest.raises(UsageError, match=r"did you mean 'ablations/no-vc'"):
        find_recipe("ablations/nothing")
    for name in ("ablations", "ablations/../paper", "/ablations/no-vc", "ablations//no-vc"):
        with pytest.raises(UsageError, match=r"no recipe|no file"):
            find_recipe(name)


@pytest.mark.parametrize("key", ["train.init_from", "datasets", "out", "model.encoder.depths"])
def test_keys_are_printed_with_their_meaning(key: str) -> None:
    line = next(line for line in describe_keys(json_schema(Recipe)) if line.split(" ")[0] == key)
    assert len(line.split("  ", 1)[1]) > 20


@pytest.mark.slow
def test_a_wheel_brings_all_recipes_and_one_package(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns(".git", ".venv", "outputs", "__pycache__", ".*_cache", "build", "*.egg-info")
    shutil.copytree(REPOSITORY, tmp_path / "source", symlinks=True, ignore=ignored)
    words = [sys.executable, "-c", "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])", str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
    inside = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    assert {f"mcjepa/configs/{name}.yaml" for name in shipped_recipes()} <= inside
    assert {name.partition("/")[0] for name in inside if ".dist-info" not in name} == {"mcjepa"}
