"""`mcjepa explain` and `mcjepa diff` on small real datasets, runs, weights and scores, in folders and on s3."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcjepa.data_prep.storage import open_store
from mcjepa.pipeline.cli.main import main
from mcjepa.pipeline.lineage.artifact import Start
from mcjepa.pipeline.lineage.chain import explain
from mcjepa.pipeline.lineage.difference import compare
from mcjepa.pipeline.lineage.recipes import changes, governing, history
from mcjepa.pipeline.run.folder import BAD_STEPS
from tests.data_prep.small_corpora import build_dataset, clip_settings, make_videos
from tests.evals.flow_layouts import write_all
from tests.pipeline.small_recipe import REPOSITORY, write_small_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NO_NUMBER = ("place", "conduct")
TRAININGS: tuple[tuple[str, ...], ...] = (
    ("whole",),
    ("resumed", "train.steps=2"),
    ("resumed", "train.optimizer.encoder_lr=7.0e-5"),
)
"""A run's name and its overrides, in processes of their own: an engine's groups last as long as their process."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps, one of 2 steps that was resumed with another rate, and a score of the first one's weights."""
    root = tmp_path_factory.mktemp("lineage")
    recipe = write_small_recipe(root)
    for name, *overrides in TRAININGS:
        words = [f"train.run={root}/{name}", f"tracking.uri=sqlite:///{root}/{name}.db", *overrides]
        argv = [sys.executable, "-m", "mcjepa", "train", str(recipe), *words]
        done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    data, weights = write_all(root / "data"), root / "whole/weights/step-000000004"
    words = [
        "--data",
        str(data),
        "--set",
        "middlebury",
        "subset=true",
        "pictures=0",
        "baselines=[zero]",
        "--threads",
        "1",
        "--tracking",
        f"sqlite:///{root}/whole.db",
    ]
    assert main(["eval", "flow", str(weights), *words, "--out", str(root / "eval/step-000000004")]) == 0
    return root


def what_matters(comparison: Any) -> list[tuple[str, Any, Any]]:
    """Key and values of the differences that can change a number."""
    found = (each for each in comparison.differences if each.category not in NO_NUMBER)
    return [(each.key, each.first, each.second) for each in found]


def test_a_score_is_traced_to_the_data_through_weights_and_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, score = str(root / "whole"), str(root / "eval/step-000000004")
    assert main(["explain", score, "--beside", run, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    chain = found["chain"]
    assert [link["kind"] for link in chain] == ["dataset", "dataset", "run", "weights", "score"]
    assert [link["name"] for link in chain] == ["clips", "images", "whole", "step-000000004", "step-000000004"]
    record = json.loads((root / "whole/run.json").read_text())
    assert [link["identity"] for link in chain[:2]] == record["dataset_ids"] and chain[2]["identity"] == record[
        "run_id"
    ]
    card = json.loads((root / "eval/step-000000004/scores.json").read_text())["scores"][0]["card"]
    assert chain[3]["identity"] == card["weights_digest"] == chain[4]["weights"]
    assert record["mcjepa.host"] in chain[2]["written"] and record["mcjepa.user"] in chain[4]["written"]
    assert found["changed"] == []
    assert found["missing"] == [f"dataset {name}: the list of inputs, inputs.jsonl.gz" for name in ("clips", "images")]
    assert main(["explain", score]) == 0  # the weights are elsewhere: said, not guessed
    printed = capsys.readouterr().out
    assert f"MISSING          the weights {card['weights_digest']}: not found" in printed and printed.count("-> ") == 0


def test_what_was_changed_since_is_named_and_ends_with_4(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "whole", tmp_path / "whole")
    weights = tmp_path / "whole/weights/step-000000004"
    content = bytearray((weights / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (weights / "model.safetensors").write_bytes(content)
    recipe = yaml.safe_load((tmp_path / "whole/recipe.yaml").read_text())
    shutil.copytree(root / "datasets", tmp_path / "datasets")
    shard = tmp_path / "datasets/images/shards/image-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    (tmp_path / "datasets/clips/shards/clip-000002.tar").unlink()
    for stream, name in (("pairs", "clips"), ("views", "images")):
        recipe["train"]["stream"][stream][0]["location"] = str(tmp_path / "datasets" / name)
    for path in (tmp_path / "whole/recipe.yaml", *(tmp_path / "whole/recipes").glob("*.yaml")):
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    chain = explain(str(weights))
    clips, images, _, found = chain
    (said,) = found.changed
    assert said.endswith(
        f"the run's checkpoint of that step says {explain(str(root / 'whole/weights/step-000000004'))[-1].identity}"
    )
    assert "shard clip-000002" in clips.missing
    assert images.changed == [f"image-000001 has {shard.stat().st_size} bytes, expected {shard.stat().st_size + 512}"]
    assert main(["explain", str(weights)]) == 4


def test_a_run_that_went_to_another_machine_has_not_changed(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "whole", tmp_path / "whole", ignore=shutil.ignore_patterns("spool"))
    present = tmp_path / "whole/recipe.yaml"
    recipe = yaml.safe_load(present.read_text())
    recipe["train"]["checkpoint"] |= {"scratch": "/local/2", "grace_s": 110}
    recipe["train"]["stream"]["store"]["cache_dir"] = "/local/2/shards"
    present.write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert explain(str(tmp_path / "whole"))[-1].changed == []
    shutil.copy(present, tmp_path / "whole/recipes/000001-from-step-000000000.yaml")
    found = compare(str(root / "whole"), str(tmp_path / "whole"))
    assert {each.key for each in found.differences} == {
        "train.checkpoint.scratch", "train.checkpoint.grace_s", "train.stream.store.cache_dir",
    }  # fmt: skip
    assert what_matters(found) == []
    recipe["train"]["optimizer"]["encoder_lr"] = 0.5
    present.write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert explain(str(tmp_path / "whole"))[-1].changed == ["recipe.yaml is not the recipe that its last start kept"]


def test_a_run_resumed_with_another_rate_and_more_steps_differs_in_these_alone(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(str(root / "whole"), str(root / "resumed"))
    rate = yaml.safe_load((root / "whole/recipe.yaml").read_text())["train"]["optimizer"]["encoder_lr"]
    assert what_matters(found) == [  # it was planned for 2 steps at first, which its schedule of rates went by
        ("train.optimizer.encoder_lr", rate, f"{rate}, 7e-05 from step 3"),
        ("train.steps", 4, "2, 4 from step 3"),
    ]
    assert main(["diff", str(root / "whole"), str(root / "resumed")]) == 0
    printed = capsys.readouterr().out
    assert printed.index("optimisation (how it was trained):") < printed.index("place (where it lies")
    assert main(["diff", str(root / "whole"), str(root / "datasets/clips")]) == 2
    assert "is a run" in capsys.readouterr().err


def test_runs_of_one_name_are_told_apart_by_their_ids_or_the_digest_of_their_checkpoint(
    root: Path, tmp_path: Path
) -> None:
    for name in ("whole", "resumed"):
        shutil.copytree(root / name, tmp_path / name / "run", ignore=shutil.ignore_patterns("spool"))
        shutil.copytree(root / name / "weights/step-000000004", tmp_path / f"of-{name}")
        config = json.loads((tmp_path / f"of-{name}/config.json").read_text())
        config["lineage"]["run"] = "run"
        (tmp_path / f"of-{name}/config.json").write_text(json.dumps(config))
    first, second = str(tmp_path / "of-whole"), str(tmp_path / "of-resumed")
    beside = [str(tmp_path / "whole/run"), str(tmp_path / "resumed/run")]
    assert [explain(second, places)[-2].location for places in (beside, beside[::-1])] == 2 * [beside[1]]
    found = [key for key, _, _ in what_matters(compare(first, second, beside))]
    assert found == ["sha256", "train.optimizer.encoder_lr", "train.steps"]
    assert explain(second, beside[:1])[-1].missing and len(explain(second, beside[:1])) == 1
    config["lineage"]["run_id"] = "0" * 32  # the run was written to MLflow anew since
    (tmp_path / "of-resumed/config.json").write_text(json.dumps(config))
    assert explain(second, beside)[-2].location == beside[1]


def test_recipes_of_several_starts_are_told_with_their_steps() -> None:
    """A start that went back overrules what began at its first step or behind it."""

    def start(after: int, rate: float, **more: Any) -> Start:
        return Start(after_step=after, recipe={"out": "/o", "train": {"lr": rate, "run": "/o/run", **more}})

    starts = [start(0, 1.0), start(6, 2.0), start(4, 3.0, crop=8)]
    assert [each.after_step for each in governing(starts)] == [0, 4]
    assert history(starts)["train.lr"] == "1.0, 3.0 from step 5"
    assert history(starts)["train.run"] == "${out}/run"
    assert changes(starts) == {"train.lr": "1.0, 3.0 from step 5", "train.crop": "absent, 8 from step 5"}
    assert changes(starts[:1]) == {}


def test_two_datasets_that_differ_by_one_file_differ_in_that_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_videos(tmp_path / name)
    shutil.copy(tmp_path / "b/a.mp4", tmp_path / "b/deep/c.MP4")
    for name in ("a", "b"):
        build_dataset(tmp_path / "of" / name, clip_settings(tmp_path / name))
    chain = explain(str(tmp_path / "of/a"))
    assert chain[0].missing == chain[0].changed == []
    assert chain[0].facts["inputs looked at"] == "lengths of 3 of 3"
    ((key, first, second),) = what_matters(compare(str(tmp_path / "of/a"), str(tmp_path / "of/b")))
    assert key == "input 0-videos/deep/c.MP4" and first.startswith("ok, sha256 ") and second != first
    assert what_matters(compare(str(tmp_path / "of/a"), str(tmp_path / "of/a"))) == []
    (tmp_path / "a/b.mp4").unlink()
    (tmp_path / "a/a.mp4").write_bytes(b"short")
    again = explain(str(tmp_path / "of/a"))[0]
    assert again.missing == [f"0-videos/b.mp4 at {tmp_path}/a/b.mp4"]
    assert again.changed[0].startswith("0-videos/a.mp4 has 5 bytes, had ")


def test_a_run_on_s3_is_explained_and_differs_from_a_folder_only_in_its_place(root: Path, s3: str) -> None:
    store = open_store(s3)
    for path in sorted((root / "resumed").rglob("*")):
        key = path.relative_to(root / "resumed").as_posix()
        if path.is_file() and not key.startswith((BAD_STEPS, "spool")):
            store.write(key, path.read_bytes())
    chain = explain(f"{s3}/weights/step-000000004")
    assert [link.kind for link in chain] == ["dataset", "dataset", "run", "weights"]
    assert chain[-1].changed == [] and chain[2].location == s3
    assert what_matters(compare(f"{s3}/weights/step-000000004", str(root / "resumed/weights/step-000000004"))) == []
    found = [key for key, _, _ in what_matters(compare(str(root / "whole"), s3))]
    assert found == ["train.optimizer.encoder_lr", "train.steps"]


def address_of(uri: str, stage: str) -> str:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (newest, *_) = client.search_runs(["1"], filter_string=f"tags.`mcjepa.stage` = '{stage}'")
    return f"runs:/{newest.info.run_id}"


def test_runs_are_read_by_their_address_in_mlflow_with_and_without_their_folders(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: f"sqlite:///{root}/{name}.db" for name in ("whole", "resumed")}
    training, scoring, resumed = (
        address_of(places[name], stage) for name, stage in (("whole", "train"), ("whole", "eval"), ("resumed", "train"))
    )
    assert main(["explain", training, "--tracking", places["whole"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["chain"][-1]
    assert (found["location"], f"runs:/{found['identity']}") == (str(root / "whole"), training)
    assert [link.kind for link in explain(scoring, tracking=places["whole"])][-3:] == ["run", "weights", "score"]
    fresh = explain(str(root / "resumed"))[-1]
    shutil.move(root / "resumed", root / "away")
    try:
        found = explain(resumed, tracking=places["resumed"])[-1]
        assert (found.record, found.starts) == (fresh.record, fresh.starts) and found.missing == []
        assert found.facts["steps"] == "4, finished" and found.location == f"{resumed} at {places['resumed']}"
        by_files = what_matters(compare(str(root / "away"), str(root / "whole")))
        assert what_matters(compare(resumed, str(root / "whole"), tracking=places["resumed"])) == by_files != []
    finally:
        shutil.move(root / "away", root / "resumed")
    assert main(["explain", training]) == 2 and "expected --tracking URI" in capsys.readouterr().err
    assert main(["explain", "runs:/none", "--tracking", places["whole"]]) == 2
    assert "does not show run none" in capsys.readouterr().err


def test_a_place_that_holds_nothing_known_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tmp_path)]) == 2 and "expected scores, weights, a run" in capsys.readouterr().err
    assert main(["explain", str(tmp_path / "none")]) == 2 and "no folder" in capsys.readouterr().err
