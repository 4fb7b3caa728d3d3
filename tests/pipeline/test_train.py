"""The training run on real datasets and the real engine: resuming, stopping, bad steps, records."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_recipe import train_small, write_small_recipe

from mcjepa.cluster.restarts import Outcome, judge
from mcjepa.data_prep.storage import open_store
from mcjepa.pipeline.checkpoint import complete_checkpoints, newest_weights
from mcjepa.pipeline.run.folder import parse_metrics, read_metrics

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of a very small model on small datasets, everything below one folder."""
    return write_small_recipe(tmp_path_factory.mktemp("train"))


def run(recipe: Path, name: str, *overrides: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Trains in the folder `name` below the recipe's."""
    folder = recipe.parent / name
    return train_small(recipe, folder, f"tracking.uri=sqlite:///{folder}.db", *overrides, ranks=ranks)


def losses(recipe: Path, name: str) -> dict[int, float]:
    """Loss of every step."""
    return {int(r["step"]): r["loss"] for r in read_metrics(recipe.parent / name / "logs" / "metrics.jsonl")}


def test_a_run_stopped_half_way_continues_bit_for_bit_in_the_same_mlflow_run(recipe: Path) -> None:
    whole = run(recipe, "whole")
    assert whole.returncode == 0, whole.stderr
    first = run(recipe, "halves", "train.checkpoint.every_steps=2", "train.max_bad_steps=3")
    assert first.returncode == 0, first.stderr
    folder = recipe.parent / "halves"
    before = json.loads((folder / "run.json").read_text())["run_id"]
    newest, older = complete_checkpoints(folder)
    assert (newest.step, older.step) == (4, 2)
    damaged = folder / newest.key / "state-00000-of-00001.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    second = run(recipe, "halves", "train.checkpoint.every_steps=2", "train.max_bad_steps=3")
    assert second.returncode == 0, second.stderr
    assert "does not count" in second.stderr and "from step 2" in second.stderr
    assert losses(recipe, "halves") == losses(recipe, "whole")
    assert json.loads((folder / "run.json").read_text())["run_id"] == before
    weights = [newest_weights(recipe.parent / name) for name in ("halves", "whole")]
    assert weights[0] and weights[1]
    assert (weights[0] / "model.safetensors").read_bytes() == (weights[1] / "model.safetensors").read_bytes()


@pytest.mark.parametrize("ranks", [1, 2])
def test_turns_of_a_stream_whose_terms_begin_later_update_nothing(recipe: Path, ranks: int) -> None:
    motion = ("regression", "reconstruction", "smoothness", "cycle", "vc")
    late = [f"train.terms.{name}.start_step=3" for name in motion]
    words = ["train.stream.sampling=alternate-batch", "train.steps=6", "train.checkpoint.every_steps=2", *late]
    done = run(recipe, f"turns-{ranks}", *words, ranks=ranks)
    assert done.returncode == 0, done.stderr
    found = losses(recipe, f"turns-{ranks}")
    assert found[2] == 0.0 and all(found[step] > 0.0 for step in (1, 3, 4, 5, 6))


@pytest.mark.parametrize("stage", [0, 2])
def test_two_ranks_see_the_same_losses_as_one(recipe: Path, stage: int) -> None:
    one = run(recipe, f"one-{stage}", f"train.engine.zero_stage={stage}")
    two = run(recipe, f"two-{stage}", f"train.engine.zero_stage={stage}", ranks=2)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    found, expected = losses(recipe, f"two-{stage}"), losses(recipe, f"one-{stage}")
    assert set(found) == set(expected) == {1, 2, 3, 4}
    assert all(found[step] == pytest.approx(expected[step], rel=1e-4) for step in expected)


def test_a_run_of_three_ranks_goes_on_with_six_of_which_three_have_no_pairs_as_on_one(recipe: Path) -> None:
    """Ranks cut the step and not the lanes: any number that fits the batches sees the same samples."""
    sizes = (*("train.stream.pair_batch=3", "train.stream.view_batch=12"), "train.steps=4")
    sizes += ("train.checkpoint.every_steps=2", "train.checkpoint.keep_last=9")
    assert run(recipe, "alone", *sizes).returncode == 0
    for ranks, begins in ((3, 0), (6, 2)):
        for later in complete_checkpoints(recipe.parent / "resized") if begins else ():
            if later.step > begins:
                shutil.rmtree(recipe.parent / "resized" / later.key)
        done = run(recipe, "resized", *sizes, ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert not begins or f"from step {begins}" in done.stderr
    found, expected = losses(recipe, "resized"), losses(recipe, "alone")
    assert set(found) == set(expected) == {1, 2, 3, 4}
    assert all(found[step] == pytest.approx(expected[step], rel=1e-4) for step in expected)


def test_a_run_in_the_first_order_of_samples_goes_on_in_it(recipe: Path) -> None:
    old = "train.stream.order_version=1"
    assert run(recipe, "old", old).returncode == 0
    folder = recipe.parent / "continued"
    assert run(recipe, "continued", old).returncode == 0
    newest, _ = complete_checkpoints(folder)
    assert "version" not in newest.record["facts"]["order"]  # as runs wrote it that know no other
    shutil.rmtree(folder / newest.key)
    done = run(recipe, "continued")
    assert done.returncode == 0 and "goes on in version 1 of the order" in done.stderr, done.stderr
    assert losses(recipe, "continued") == losses(recipe, "old")
    assert run(recipe, "new").returncode == 0
    assert losses(recipe, "new") != losses(recipe, "old")


def test_zero_3_in_bf16_trains_and_writes_whole_weights(recipe: Path) -> None:
    done = run(recipe, "zero3", "train.engine.zero_stage=3", "train.engine.precision=bf16", ranks=2)
    assert done.returncode == 0, done.stderr
    from mcjepa.model import pretrained

    weights = newest_weights(recipe.parent / "zero3")
    assert weights is not None
    assert all(bool(p.isfinite().all()) and p.numel() > 0 for p in pretrained.load(weights).parameters())


def test_steps_that_are_not_finite_are_written_down_and_end_the_run(recipe: Path) -> None:
    done = run(recipe, "bad", "train.terms.reconstruction.weight=1.0e+39", "train.max_bad_steps=2")
    assert done.returncode == 3, done.stderr
    assert "in a row had a non-finite loss" in done.stderr and "Traceback" not in done.stderr
    records = sorted((recipe.parent / "bad" / "bad_steps").glob("*.json"))
    assert len(records) == 2
    assert len(json.loads(records[0].read_text())["samples"]["pairs"]) == 4


def test_other_datasets_and_another_seed_are_refused_on_resuming(recipe: Path) -> None:
    assert run(recipe, "resume", "train.steps=2").returncode == 0
    other = run(
        recipe, "resume", "train.stream.views=[{location: '" + str(recipe.parent / "datasets" / "clips") + "'}]"
    )
    assert other.returncode == 2 and "resume refused: dataset_ids" in other.stderr
    seed = run(recipe, "resume", "train.seed=5")
    assert seed.returncode == 2 and "resume refused: seed is 5" in seed.stderr
    order = run(recipe, "resume", "train.stream.window=3")
    assert order.returncode == 2 and "resume refused: order" in order.stderr
    model = run(recipe, "resume", "model.expander.widths=[16,24]")
    assert model.returncode == 2 and "resume refused: model.expander.widths: [16, 16] -> [16, 24]" in model.stderr
    asked = "train.allow_model_changes=[expander.widths]"
    model = run(recipe, "resume", "model.expander.widths=[16,24]", asked)
    assert model.returncode == 2 and "resume refused: parameter expander" in model.stderr
    shorter = run(recipe, "resume", "train.steps=1")
    assert shorter.returncode == 2 and "is at step 2, and the recipe ends it after 1" in shorter.stderr
    assert [path.name for path in (recipe.parent / "resume" / "recipes").iterdir()] == [
        "000001-from-step-000000000.yaml"
    ]  # fmt: skip


def test_a_world_that_does_not_divide_the_batches_is_refused(recipe: Path) -> None:
    done = run(recipe, "world", ranks=3)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_slurms_variables_start_two_ranks_of_one_world(recipe: Path) -> None:
    import random

    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"SLURM_JOB_ID": str(random.randrange(10**6)), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}
    environment["SLURM_NODELIST"] = "localhost"
    words = [sys.executable, "-m", "mcjepa", "train", str(recipe), "train.steps=2"]
    words += [f"train.run={recipe.parent / 'slurm'}", f"tracking.uri=sqlite:///{recipe.parent}/slurm.db"]
    ranks = [
        subprocess.Popen(words, cwd=REPOSITORY, env={**environment, "SLURM_PROCID": rank, "SLURM_LOCALID": rank})
        for rank in "01"
    ]
    assert [rank.wait(200) for rank in ranks] == [0, 0]
    [checkpoint] = complete_checkpoints(recipe.parent / "slurm")
    assert checkpoint.record["world_size"] == 2 and sorted(losses(recipe, "slurm")) == [1, 2]


def test_a_port_in_use_is_one_line(recipe: Path) -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        environment["MASTER_PORT"] = str(listener.getsockname()[1])
        words = [
            sys.executable,
            "-m",
            "mcjepa",
            "train",
            str(recipe),
            f"train.run={recipe.parent / 'port'}",
        ]
        done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is in use" in done.stderr and "Traceback" not in done.stderr


def test_a_run_that_ends_at_a_spike_is_not_started_again_by_itself(recipe: Path) -> None:
    guard = [f"train.guards.spikes.{each}" for each in ("window=3", "least=3", "z=0.01", "action=stop")]
    spiked = run(recipe, "spiked", "train.steps=20", *guard)  # any rise of a term is one
    assert "was not taken" in spiked.stderr and "had a spike" in spiked.stderr, spiked.stderr
    assert spiked.returncode == 2 and judge("train", 1, [Outcome(0, spiked.returncode)]) == "failed"


def test_a_best_metric_that_no_record_has_ends_the_run_behind_its_first_save(recipe: Path) -> None:
    settings = ["train.steps=6", "train.checkpoint.every_steps=2", "train.meters.every=2"]
    wrong = run(recipe, "mistyped", *settings, "train.checkpoint.best_metric=los")
    assert wrong.returncode == 2 and "best_metric is 'los'" in wrong.stderr, wrong.stderr
    assert "did you mean 'loss'?" in wrong.stderr
    assert [each.step for each in complete_checkpoints(recipe.parent / "mistyped")] == [2]
    mended = run(recipe, "mistyped", *settings, "train.checkpoint.best_metric=loss")
    assert mended.returncode == 0, mended.stderr


def test_a_run_on_s3_that_comes_back_to_a_machine_keeps_what_others_did_meanwhile(recipe: Path, s3: str) -> None:
    store, records = open_store(s3), {}
    for steps, machine in ((2, "a"), (4, "b"), (6, "a")):
        scratch = recipe.parent / f"machine-{machine}"
        words = (f"train.run={s3}", f"train.steps={steps}", f"train.checkpoint.scratch={scratch}")
        done = train_small(recipe, scratch, *words)
        assert done.returncode == 0, done.stderr
        records[steps] = store.read("logs/metrics.jsonl").decode()
        assert records[steps] == (scratch / "logs" / "metrics.jsonl").read_text()
    assert records[4].startswith(records[2]) and records[6].startswith(records[4])
    assert [int(record["step"]) for record in parse_metrics(records[6])] == [1, 2, 3, 4, 5, 6]
