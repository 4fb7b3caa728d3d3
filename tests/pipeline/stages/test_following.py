"""What is printed after a stage: three commands that are understood and mean the run that has just ended."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from mcjepa.pipeline.cli.main import parse
from mcjepa.pipeline.recipe.files import write_plain
from mcjepa.pipeline.recipe.recipe import load_recipe
from mcjepa.pipeline.stages import following


def _parsed(commands: following.Following) -> list[Any]:
    assert len(commands) == 3 and all(purpose for _, purpose in commands)
    return [parse(shlex.split(command)[1:]) for command, _ in commands]


def test_every_stage_says_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, plain = load_recipe("quickstart", ["out=my results", "train.steps=7"])
    write_plain(plain, Path("my results/run/recipe.yaml"))
    write_plain(plain, Path("my results/resolved-recipe.yaml"))
    weights = Path("my results/run/weights/step-000000007")
    card, plan, train = _parsed(following.after_prep(["quickstart", "out=my results", "train.steps=7"]))
    assert [card.command, plan.command, train.command] == ["prep", "plan", "train"]
    assert load_recipe(train.recipe, train.overrides)[1] == plain and train.ranks == 0
    scored, shown, exported = _parsed(following.after_training(recipe, weights))
    assert load_recipe(scored.recipe, scored.overrides)[1] == plain
    assert shown.target == "my results/run" and exported.checkpoint == str(weights)
    shown, compared, _ = _parsed(following.after_evaluation(recipe, str(weights)))
    assert load_recipe(shown.target, [])[1] == plain and compared.folders == ["my results/eval"]
    shown, inferred, longer = _parsed(following.after_quickstart(recipe, weights))
    assert shown.target == "my results" and inferred.weights == str(weights)
    assert longer.out == "my results-longer" and longer.overrides == ["train.steps=3000"]


def test_stages_of_a_quickstart_leave_that_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(following.WITHIN_CHAIN, "1")
    assert following.after_prep(["quickstart"]) == ()
