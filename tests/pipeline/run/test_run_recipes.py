"""What a continued run does otherwise is said, kept beside its steps, and refused where it would change the weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.recipe import load_recipe
from mcjepa.pipeline.run.recipes import RunRecipes, check_model_changes, check_steps_left, say_changes


def recipe_with(*overrides: str) -> dict[str, Any]:
    return load_recipe("quickstart", overrides)[1]


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "recipes").iterdir())


def test_changes_are_said_by_key_with_both_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipes = RunRecipes(tmp_path)
    recipes.keep(recipe_with("train.optimizer.encoder_lr=0.001"), 0)
    found = recipes.continuation(recipe_with("train.optimizer.encoder_lr=0.002", "train.engine.precision=bf16"), 4)
    assert [change.key for change in found.changes] == ["train.engine.precision", "train.optimizer.encoder_lr"]
    with caplog.at_level("WARNING"):
        say_changes(found)
    assert "train.optimizer.encoder_lr: 0.001 -> 0.002" in caplog.text and "from step 4" in caplog.text
    same = recipes.continuation(recipe_with("train.optimizer.encoder_lr=0.001"), 4)
    assert same.changes == () and not same.other_recipe


def test_a_run_that_moves_to_another_machine_has_the_same_recipe(tmp_path: Path) -> None:
    recipes, here = RunRecipes(tmp_path), recipe_with("train.checkpoint.scratch=/local/1")
    recipes.keep(here, 0)
    folders = ("train.checkpoint.scratch=/local/2", "train.stream.store.cache_dir=/local/2/shards")
    there = recipe_with(*folders, "train.checkpoint.grace_s=110")
    found = recipes.continuation(there, 4)
    assert found.changes == () and not found.other_recipe
    recipes.keep(there, 4)
    assert names(tmp_path) == ["000001-from-step-000000000.yaml"]


def test_every_recipe_stays_beside_the_steps_that_it_governed(tmp_path: Path) -> None:
    recipes, first, second = RunRecipes(tmp_path), recipe_with(), recipe_with("train.optimizer.encoder_lr=0.002")
    recipes.keep(first, 0)
    recipes.keep(first, 4)
    assert names(tmp_path) == ["000001-from-step-000000000.yaml"]
    assert recipes.continuation(second, 4).changes
    recipes.keep(second, 4)  # it dies before its first save, and the first recipe comes back
    back = recipes.continuation(first, 4)
    assert back.changes == () and back.other_recipe
    recipes.keep(first, 4)
    recipes.keep(second, 8)
    assert names(tmp_path) == [
        f"{number:06d}-from-step-{step:09d}.yaml" for number, step in ((1, 0), (2, 4), (3, 4), (4, 8))
    ]
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == yaml.safe_load(
        (tmp_path / "recipes" / "000004-from-step-000000008.yaml").read_text()
    )
    assert recipes.continuation(first, 12).changes[0].before == 0.002
    recipes.keep(second, 4)  # the one of step 8 was damaged: it governs from 4 on now
    assert names(tmp_path)[-1] == "000005-from-step-000000004.yaml"


def test_a_run_of_an_earlier_release_is_compared_with_its_recipe_yaml(tmp_path: Path) -> None:
    before = copy.deepcopy(recipe_with())
    del before["train"]["allow_model_changes"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(before, sort_keys=False))
    found = RunRecipes(tmp_path).continuation(recipe_with("train.seed=5"), 3)
    assert [str(change) for change in found.changes] == [
        "train.allow_model_changes: absent -> []", "train.seed: 0 -> 5",
    ]  # fmt: skip
    (tmp_path / "recipe.yaml").write_bytes(b"\xff")
    assert RunRecipes(tmp_path).continuation(recipe_with(), 3).changes == ()


def test_another_meaning_of_the_weights_is_refused_unless_asked_for_by_name(tmp_path: Path) -> None:
    recipes = RunRecipes(tmp_path)
    recipes.keep(recipe_with("model.flow.match=raw"), 0)
    changed = recipes.continuation(recipe_with("model.flow.match=cosine", "model.flow.search_range=3"), 4)
    with pytest.raises(UsageError, match=r"flow\.match: raw -> cosine.*allow_model_changes=\[flow\.match,flow\.search"):
        check_model_changes(changed, [])
    with pytest.raises(UsageError, match=r"allow_model_changes=\[flow\.search_range\]"):
        check_model_changes(changed, ["flow.match"])
    check_model_changes(changed, ["flow.match", "model.flow.search_range"])
    costs = ("model.loss.smoothness_edge=3", "model.encoder.activation_checkpointing=true")
    objective = recipes.continuation(recipe_with("model.flow.match=raw", *costs), 4)
    assert len(objective.changes) == 2
    check_model_changes(objective, [])


def test_a_finished_run_is_not_made_the_result_of_another_recipe(tmp_path: Path) -> None:
    recipes = RunRecipes(tmp_path)
    recipes.keep(recipe_with("train.terms.cycle.weight=0.1"), 0)
    other = recipes.continuation(recipe_with("train.terms.cycle.weight=0.3"), 4)
    check_steps_left(other, 5, ())
    with pytest.raises(UsageError, match=r"all 4 steps .*\(train.terms.cycle.weight: 0.1 -> 0.3\)"):
        check_steps_left(other, 4, ())
    use = ("train.terms.cycle.weight=0.1", "train.log_every=7", "model.flow.finest_passes=3", "train.run=elsewhere")
    check_steps_left(recipes.continuation(recipe_with(*use), 4), 4, ())
