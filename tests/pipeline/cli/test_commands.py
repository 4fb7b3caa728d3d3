"""The table of commands, its exit codes, and processes that import nothing from the current folder."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mcjepa.cluster import local, restarts
from mcjepa.pipeline import exits
from mcjepa.pipeline.cli.commands import COMMANDS, GROUPS, Command
from mcjepa.pipeline.cli.main import main, one_line, parse
from mcjepa.pipeline.errors import RunError
from tests.pipeline.small_recipe import write_small_recipe

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_a_handler_and_an_example_that_it_understands(command: Command) -> None:
    module, function = command.handler.split(":")
    assert callable(getattr(importlib.import_module(f"mcjepa.pipeline.cli.{module}"), function))
    for example in command.example.split("\n"):
        words = shlex.split(example)
        assert words[0] == "mcjepa" and " ".join(words[1:]).startswith(command.name)
        assert parse(words[1:]).handler == command.handler


def test_every_group_has_verbs_and_no_name_is_used_twice() -> None:
    names = [command.name for command in COMMANDS]
    assert len(set(names)) == len(names)
    assert {name.split()[0] for name in names if " " in name} == set(GROUPS)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["trian"], "no command 'trian': did you mean 'train'?"),
        (["-v", "lanch", "train"], "no command 'lanch': did you mean 'launch'?"),
        (["prep", "staus", "quickstart"], "no verb 'staus' of `mcjepa prep`: did you mean 'status'?"),
        (["drill", "zzz"], "no verb 'zzz' of `mcjepa drill`: expected one of preempt, node-loss, storage"),
        (["train", "quikstart"], "did you mean 'quickstart'?"),
        (["launch", "train", "quickstart", "--site", "slrm"], "did you mean 'slurm'?"),
        (["train", "quickstart", "--rnaks", "2"], "`mcjepa train` has no option '--rnaks': did you mean '--ranks'?"),
        (["eval", "vos", "w", "--data", "d", "--set", "s", "--perset=crw"], "did you mean '--preset'?"),
        (["--verison"], "`mcjepa` has no option '--verison': did you mean '--version'?"),
        (["explain", "a", "b"], "`mcjepa explain` takes no 'b'; `mcjepa explain --help` says what it takes"),
        (["train", "quickstart", "--ranks", "-1"], "--ranks: '-1', expected a whole number, 0 or more"),
        (["train"], "the following arguments are required: RECIPE\n"),
        (["eval", "all", "quickstart", "a.b={c:", "d=1}", "--json", "e", "f"], "`mcjepa eval all` takes no 'e'"),
        (["eval", "all", "quickstart", "--poll-s", "-1"], "--poll-s: '-1', expected seconds as a number, 0 or more"),
        (["eval", "all", "quickstart", "--patience-s", "nan"], "--patience-s: 'nan', expected seconds"),
        (["plan", "quickstart", "--memory-gib", "nan"], "--memory-gib: 'nan', expected a number"),
        (
            ["eval", "probe", "w", "--data", "d", "--set", "vocc"],
            "--set has no data set 'vocc': did you mean 'voc2012'?",
        ),
        (["eval", "finetune", "w", "--data", "d", "--set", "camvidd"], "did you mean 'camvid'?"),
        (["eval", "vos", "nano", "--data", "d", "--set", "davis", "--out", __file__], "is a file, expected a folder"),
        (["eval", "compare", "=outputs"], "'=outputs' names no evaluation, expected DIR or LABEL=DIR"),
    ],
)
def test_a_mistyped_name_is_answered_by_the_nearest(
    words: list[str], advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(words)
    except SystemExit as end:
        code = end.code
    assert code == exits.USAGE and advice in capsys.readouterr().err


def test_an_error_has_one_piece_of_advice() -> None:
    for error, told in (
        (OSError(28, "No space left on device", "a"), "No space left on device at a; free some space and rerun"),
        (PermissionError(13, "Permission denied", "a"), "Permission denied at a; check the path and its permissions"),
        (OSError("no folder below /t; expected to write\n there; set TMPDIR"),) * 2,
        (RunError("the run ended; expected more; see its log"), "the run ended; expected more; see its log"),
    ):
        assert one_line(error) == " ".join(str(told).split())


def test_a_folder_that_was_removed_under_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["recipe", "quickstart"]) == exits.REJECTED
    assert "the current folder was removed" in capsys.readouterr().err


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_no_error(closed: str) -> None:
    script = f"{shlex.quote(sys.executable)} -m mcjepa recipe quickstart {closed}"
    assert subprocess.run(["sh", "-c", script], cwd=REPOSITORY, stdout=subprocess.DEVNULL).returncode == exits.OK


def test_an_interrupt_before_the_command_has_begun_is_no_traceback() -> None:
    code = (
        "import signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'argparse': signal.raise_signal(signal.SIGINT)\n"
        "sys.modules.pop('argparse', None); sys.meta_path.insert(0, Interrupting())\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mcjepa.__main__ import main; sys.exit(main())"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (exits.INTERRUPTED, "")


@pytest.mark.parametrize("rank", [{}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_an_interrupt_that_a_library_swallows_while_it_loads_is_not_lost(tmp_path: Path, rank: dict[str, str]) -> None:
    code = (
        "import signal, sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        try:\n"
        "            if name == 'torch': signal.raise_signal(signal.SIGINT)\n"
        "        except BaseException: pass\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mcjepa.__main__ import main; sys.exit(main())"
    )
    words = ["train", "quickstart", f"out={tmp_path}"]
    ended = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=REPOSITORY, env={**os.environ, **rank}, capture_output=True, text=True
    )
    assert ended.returncode == exits.INTERRUPTED and "interrupted" in ended.stderr, ended.stderr


def test_help_is_a_word_too(capsys: pytest.CaptureFixture[str]) -> None:
    for words, mark in ((["help"], "exit codes:"), (["help", "prep", "run"], "usage: mcjepa prep run ")):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == exits.OK and mark in capsys.readouterr().out


def test_locally_started_ranks_get_the_very_words_of_their_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], int]] = []

    def start(argv: Sequence[str], ranks: int, **_: object) -> int:
        started.append((list(argv), ranks))
        return 130

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("mcjepa.pipeline.launch.ranks.run_ranks", start)
    words = ["-v", "train", str(write_small_recipe(tmp_path)), "--ranks", "2", "train.steps=2", "--json"]
    assert main(words) == 130
    assert started == [([sys.executable, "-m", "mcjepa", *words], 2)]


def test_the_runbook_lists_every_exit_code_with_its_meaning() -> None:
    text = (REPOSITORY / "docs" / "runbook.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|$", text, re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == exits.MEANINGS


def test_jobs_judge_exit_codes_as_commands_mean_them() -> None:
    """`cluster` knows no other room, so it has numbers of its own."""
    assert (restarts.USAGE, restarts.REJECTED, restarts.PARTIAL) == (exits.USAGE, exits.REJECTED, exits.PARTIAL)
    assert local.INTERRUPTED == exits.INTERRUPTED


def test_no_command_writes_an_exit_code_as_a_number() -> None:
    written = [
        f"{path.name}:{node.lineno}"
        for path in (REPOSITORY / "pipeline" / "cli").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant) and type(node.value.value) is int
    ]
    assert written == []


@pytest.mark.parametrize("how", ["module", "script"])
def test_nothing_is_imported_from_the_current_folder(how: str, tmp_path: Path) -> None:
    for name in ("argparse", "yaml", "pydantic", "queue", "copy", "numpy", "torch"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the trap {name}.py was imported')\n")
    start = {
        "module": [sys.executable, "-m", "mcjepa"],
        "script": [sys.executable, "-c", "from mcjepa.__main__ import main; raise SystemExit(main())"],
    }[how]
    answer = subprocess.run([*start, "recipe", "quickstart"], cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0 and answer.stdout.startswith("name: quickstart"), answer.stderr
    code = "import os, mcjepa.__main__; print(os.environ['PYTHONSAFEPATH'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "1"
