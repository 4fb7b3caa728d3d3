"""`mcjepa ui`: the link that is printed shows the runs of a recipe as a table, in a real browser."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import yaml

from mcjepa.pipeline.cli.main import main
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.exits import OK, USAGE
from mcjepa.pipeline.stages.interface import Interface, serve
from mcjepa.pipeline.tracking import Tracker
from tests.evals.report.browser import Browser, find_chromium
from tests.processes import wait_until_ended

EXPERIMENT = "mcjepa"
START_S, LOOKS, LOOK_EVERY_S = 180.0, 300, 0.2
WINDOW = (2600, 900)  # columns beyond the window are not drawn


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe with its three stages recorded, beside a run of another recipe."""
    content = {
        "base": "quickstart",
        "name": "mine",
        "out": str(tmp_path / "out"),
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db", "artifacts": str(tmp_path / "artifacts")},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    metrics = {"prep": {"clips/samples": 64.0}, "train": {"loss/loss": 0.125}, "eval": {"flow/moving-photos/epe": 1.75}}
    for stage, values in metrics.items():
        _record(tmp_path, f"{stage} mine", {"mcjepa.stage": stage, "mcjepa.recipe": "mine"}, values)
    _record(tmp_path, "train other", {"mcjepa.stage": "train", "mcjepa.recipe": "other"}, {"loss/loss": 9.0})
    return path


def _record(folder: Path, name: str, tags: dict[str, str], values: dict[str, float]) -> None:
    uri, artifacts = f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts")
    tracker = Tracker(uri, EXPERIMENT, artifacts, run_name=name, run_id=None, tags=tags)
    tracker.metrics(values, 1)
    tracker.end()


@pytest.fixture
def link(recipe: Path, tmp_path: Path) -> Iterator[str]:
    """What the command prints; its server stands meanwhile, and nothing of it afterwards."""
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "mcjepa", "ui", str(recipe)],
            stdout=subprocess.PIPE, stderr=log, text=True, cwd=tmp_path,
        )  # fmt: skip
    assert child.stdout is not None
    try:
        yield child.stdout.readline().strip()
        family = [*_children(child.pid)]
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=30) == OK, (tmp_path / "log").read_text()
        assert wait_until_ended(family, within_s=5) == []
    finally:
        child.kill()


def _children(pid: int) -> list[object]:
    import psutil

    return list(psutil.Process(pid).children(recursive=True))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_browser_sees_the_three_runs_with_names_times_and_metrics(link: str) -> None:
    program = find_chromium()
    if program is None:
        reason = "no Chromium here (Debian: apt-get install chromium)"
        if os.environ.get("MCJEPA_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    assert link.startswith("http://127.0.0.1:")
    with Browser(program) as browser:
        browser.visit(link, *WINDOW)
        seen = ""
        for _ in range(LOOKS):
            seen = browser.run("document.body.innerText")
            if all(word in seen for word in ("eval mine", "1.75")):
                break
            time.sleep(LOOK_EVERY_S)
    for word in ("prep mine", "train mine", "eval mine", "0.125", "1.75", "64", "ago", "s\n"):
        assert word in seen, f"no {word!r} in:\n{seen}"
    assert "train other" not in seen and "Detect issues" not in seen


def test_a_server_that_stands_is_named_and_none_is_started(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mcjepa.pipeline.stages import interface

    seen: list[str] = []
    found = interface.look_up(f"sqlite:///{tmp_path}/mlflow.db", EXPERIMENT, "mine")
    monkeypatch.setattr(interface, "look_up", lambda uri, *_: (seen.append(uri), found)[1])
    monkeypatch.setattr(interface, "share_view", lambda *_: False)  # a server that lets us read alone
    assert main(["ui", str(recipe), "tracking.uri=http://mlflow.example:5000"]) == OK
    assert seen == ["http://mlflow.example:5000"]
    printed = capsys.readouterr().out.strip()
    address, _, query = printed.partition("?")
    assert address == f"http://mlflow.example:5000/#/experiments/{found.experiment_id}/runs"
    assert parse_qs(query)["searchFilter"] == ["tags.`mcjepa.recipe` = 'mine'"]


def test_nothing_recorded_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "quickstart", f"out={tmp_path}"]) == USAGE
    assert "has recorded nothing yet" in capsys.readouterr().err
    assert main(["ui", str(tmp_path)]) == USAGE
    assert "name a recipe" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_there_is_none_of_is_refused() -> None:
    with pytest.raises(UsageError, match="--port 99999, expected 1 to 65535"):
        serve(Interface("sqlite:///none.db", "#"), 99999, print)
