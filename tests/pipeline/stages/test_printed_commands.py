"""What is printed as a command can be pasted and does the same again: the recipe's file, `out` and overrides in it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from mcjepa.cluster import batch
from mcjepa.evals.report.chain import Chain, commands_again
from mcjepa.pipeline.cli.main import main, parse
from mcjepa.pipeline.exits import OK
from mcjepa.pipeline.recipe.files import write_plain
from mcjepa.pipeline.recipe.recipe import load_recipe
from mcjepa.pipeline.stages import quickstart

OVERRIDES = ["train.steps=7", "prep.moving_photos.photos=['my photos']", "eval.probe.steps=90", "train.seed=3"]


def _understood(line: str) -> Any:
    words = shlex.split(line)
    assert words[0] == "mcjepa", line
    return parse(words[1:])


def _plain_of(arguments: Any) -> dict[str, Any]:
    return load_recipe(arguments.recipe, arguments.overrides)[1]


def test_the_reports_commands_name_all_that_was_done(tmp_path: Path) -> None:
    out = tmp_path / "my results"
    recipe, plain = load_recipe("quickstart", [f"out={out}", *OVERRIDES])
    assert recipe.train is not None
    resolved = write_plain(plain, out / "resolved-recipe.yaml")
    trained = write_plain(plain | {"train": {**plain["train"], "steps": 8}}, Path(recipe.train.run) / "recipe.yaml")
    chain = Chain(recipe.name, out, resolved, trained, {}, {"world_size": 2}, {}, (), "")
    commands = dict(commands_again(chain, f"{out}/run/weights/step-000000007"))
    assert shlex.split(commands["from this folder"]) == ["cd", str(Path.cwd())]
    prep, train, scored = (_understood(commands[name]) for name in ("build the datasets", "train", "evaluate"))
    assert _plain_of(prep) == _plain_of(scored) == plain and scored.weights.endswith("step-000000007")
    assert _plain_of(train) == plain | {"train": {**plain["train"], "steps": 8}} and train.ranks == 2


def test_a_quickstart_prints_stages_that_do_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my results"
    photos = tmp_path / "my photos"
    photos.mkdir()
    (photos / "one.jpg").write_bytes(b"")
    monkeypatch.setattr(quickstart, "run_command", lambda argv, **_: OK)
    monkeypatch.setattr("mcjepa.pipeline.stages.quickstart.finish_summary", lambda out, started: {})
    monkeypatch.setattr("mcjepa.pipeline.cli.train._print_summary", lambda recipe, summary: None)
    words = ["--out", str(out), "--images", str(photos), "train.steps=7"]
    assert main(["quickstart", *words]) == OK
    printed = [line[6:] for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    overrides = quickstart.quickstart_overrides(str(out), None, str(photos), ["train.steps=7"])
    stages = [_understood(line) for line in printed]
    assert [stage.command for stage in stages] == ["prep", "train", "eval"]
    assert all(_plain_of(stage) == load_recipe("quickstart", overrides)[1] for stage in stages)


def test_a_job_that_gives_up_names_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my jobs"
    monkeypatch.setattr("sys.argv", ["batch", "begin", str(folder), "2"])
    monkeypatch.setattr(batch, "begin", lambda *_: None)
    assert batch.main() == 1
    command = capsys.readouterr().err.split("`")[1]
    assert _understood(command).run == str(folder)
