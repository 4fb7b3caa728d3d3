"""One line where another process of the run has ended, a recipe cannot be read, or nobody reads the output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mcjepa.cluster.local import last_line, run_ranks
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.recipe import load_recipe
from mcjepa.pipeline.stages.training import explain_loss, ranks_to_start


@pytest.mark.parametrize(
    ("tasks", "environment", "ranks"),
    [("1", {}, 3), ("4", {}, 1), ("1", {"RANK": "0", "WORLD_SIZE": "1"}, 1)],
    ids=["the shell of srun --pty", "a task of several", "a rank of torchrun"],
)
def test_only_a_process_that_nobody_started_as_a_rank_starts_ranks(
    tasks: str, environment: dict[str, str], ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    slurm |= {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": tasks, "SLURM_NODELIST": "n1"}
    for name, value in (slurm | environment).items():
        monkeypatch.setenv(name, value)
    config = load_recipe("quickstart", [])[0].train
    assert config is not None and ranks_to_start(config, 3) == ranks


def test_a_killed_loading_process_is_named_with_what_it_used() -> None:
    said = explain_loss("DataLoader worker (pid 123) is killed by signal: Killed. ", "3")
    assert "of rank 3 on" in said and "(pid 123) was ended by signal Killed" in said
    assert "out of memory is the usual cause" in said and "MiB are free now" in said
    assert "(pid 12, 34) was ended;" in explain_loss("DataLoader worker (pid(s) 12, 34) exited unexpectedly", "0")


def test_a_step_that_does_not_fit_is_said_with_what_makes_it_smaller() -> None:
    cuda = "CUDA out of memory. Tried to allocate 96.00 GiB. GPU 0 has a total capacity of 79.11 GiB\nSee docs"
    cpu = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    for reason in (cuda, cpu):
        said = explain_loss(reason, "0")
        assert "rank 0 on" in said and "lower train.stream.pair_batch" in said and "\n" not in said
    assert "Tried to allocate 96.00 GiB" in explain_loss(cuda, "0")


def test_a_lost_rank_is_said_and_anything_else_stays_what_it_is() -> None:
    gloo = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:6152\nat x"
    assert "rank 1 on" in explain_loss(gloo, "1") and "\n" not in explain_loss(gloo, "1")
    assert explain_loss("shape mismatch", "0") == ""


def test_a_rank_that_is_killed_from_outside_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import os, signal, time\n"
        "print('step 7 of 9', flush=True)\n"
        "time.sleep(0.2 if os.environ['RANK'] == '1' else 60)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    code = run_ranks([sys.executable, "-c", program], 2, grace_s=0.5, logs=lambda rank: tmp_path / f"{rank}.log")
    said = capsys.readouterr().err
    assert code == -9 and "rank 1 of 2 on" in said and "was ended by SIGKILL" in said
    assert "out of memory is the usual cause; its last line: step 7 of 9" in said
    assert last_line(tmp_path / "absent") == ""


def test_a_recipe_that_is_no_utf_8_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes("base: quickstart\nname: caf\xe9\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"recipe\.yaml, line 2: byte 0xe9 is no UTF-8"):
        load_recipe(str(path), [])


def test_a_single_view_is_refused() -> None:
    with pytest.raises(UsageError, match=r"view_batch is 1, expected 0 or at least 2"):
        load_recipe("quickstart", ["train.stream.view_batch=1"])


def test_a_reader_that_leaves_is_no_traceback() -> None:
    words = [sys.executable, "-m", "mcjepa", "recipe", "paper", "--keys"]
    command = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1)
    assert command.stdout is not None and command.stderr is not None
    command.stdout.close()
    assert (command.stderr.read(), command.wait()) == ("", 141)
