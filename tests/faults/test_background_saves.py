"""Ctrl-C while a checkpoint is saved in the background, in a folder and on S3: what is there is whole, and the same
command goes on to the same losses."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from mcjepa.data_prep.storage import open_store
from mcjepa.pipeline.checkpoint.manifest import find_damage, list_checkpoints
from tests.faults.proxy import FaultProxy
from tests.rounds.train_kills import TrainingRun, make_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
TRIES = 4
STEPS = 80
"""Some seconds: a save of an early step ends before the last one."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """An uninterrupted run of one rank, which saves in the background."""
    root = tmp_path_factory.mktemp("background")
    recipe = make_recipe(root, steps=STEPS, checkpoint={"background": True})
    run = TrainingRun(recipe, str(root / "whole"), root / "whole-files")
    assert run.finish(ranks=1) == 0, run.log.read_text()
    assert sorted(run.losses()) == list(range(1, STEPS + 1))
    return run


def interrupted(run: TrainingRun, saving: bool) -> bool:
    """Starts a run and interrupts it in a save; whether that came in time. Nothing that is not whole may stay."""
    run.start(ranks=1)
    come = run.wait_for(run.being_uploaded if saving else run.being_saved, 0.0005)
    assert run.process
    if come:
        run.process.send_signal(signal.SIGINT)
    code, log = run.wait(), run.log.read_text()
    assert code in ((0, 130) if come else (0,)) and "Traceback" not in log, log
    store = open_store(run.location)
    complete = list_checkpoints(store)
    assert complete and all(find_damage(store, checkpoint) == "" for checkpoint in complete)
    folders = {key.split("/")[1] for key in store.list("checkpoints/")}
    assert folders == {f"step-{checkpoint.step:09d}" for checkpoint in complete}
    return code == 130


def goes_on(run: TrainingRun, whole: TrainingRun) -> None:
    """The same command ends the run, with the losses of one that was not interrupted."""
    done = max(checkpoint.step for checkpoint in list_checkpoints(open_store(run.location)))
    assert run.finish(ranks=1) == 0, run.log.read_text()
    assert f"from step {done}" in run.log.read_text() and run.losses() == whole.losses()


def test_ctrl_c_during_a_save_into_a_folder_leaves_whole_checkpoints_alone(whole: TrainingRun, tmp_path: Path) -> None:
    for number in range(TRIES):
        run = TrainingRun(whole.recipe, str(tmp_path / f"run-{number}"), tmp_path / f"files-{number}")
        if interrupted(run, saving=False):
            return goes_on(run, whole)
    raise AssertionError(f"no save was met in {TRIES} runs")


def test_ctrl_c_during_a_save_to_a_slow_store_waits_for_it_and_another_machine_goes_on(
    whole: TrainingRun, tmp_path: Path, s3: str, proxy: FaultProxy
) -> None:
    for number in range(TRIES):
        proxy.put_delay_s = 0.3
        run = TrainingRun(whole.recipe, f"{s3}/{number}", tmp_path / f"files-{number}")
        come = interrupted(run, saving=True)
        proxy.put_delay_s = 0.0
        if come:
            return goes_on(run, whole)
    raise AssertionError(f"no save was met in {TRIES} runs")


def test_a_store_that_has_no_time_left_keeps_the_checkpoint_before(
    whole: TrainingRun, tmp_path: Path, s3: str, proxy: FaultProxy
) -> None:
    """After its grace the run ends with one error, what was on its way does not count, and steps are trained again."""
    for number in range(TRIES):
        run = TrainingRun(whole.recipe, f"{s3}/{number}", tmp_path / f"files-{number}")
        if out_of_time(run, proxy):
            return goes_on(run, whole)
    raise AssertionError(f"every one of {TRIES} runs had ended before it could be interrupted")


def out_of_time(run: TrainingRun, proxy: FaultProxy) -> bool:
    """Starts a run and interrupts it once it has a checkpoint, its store too slow from then on; False: it came late."""
    run.start("train.checkpoint.grace_s=1", ranks=1)
    assert run.wait_for(lambda: bool(list_checkpoints(open_store(run.location))), 0.05)
    first = max(checkpoint.step for checkpoint in list_checkpoints(open_store(run.location)))
    proxy.put_delay_s = 20.0
    assert run.process
    run.process.send_signal(signal.SIGINT)
    code, log = run.wait(), run.log.read_text()
    proxy.put_delay_s = 0.0
    if code == 0:
        return False
    assert code == 3 and log.count("was not uploaded to") == 1 and "Traceback" not in log, log
    assert max(checkpoint.step for checkpoint in list_checkpoints(open_store(run.location))) >= first
    return True
