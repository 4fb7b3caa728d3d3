"""The recipe that `mcjepa init` writes: its sizes by files, machine and time, and what it refuses."""

from __future__ import annotations

import shlex
import shutil
import struct
import zlib
from pathlib import Path

import pytest

from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.cli.main import main, parse
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.exits import OK
from mcjepa.pipeline.recipe.recipe import Recipe, load_recipe
from mcjepa.pipeline.stages import starter
from tests.own_files import write_own_files

STEP_S = 0.25


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_own_files(tmp_path_factory.mktemp("own files"))


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose steps take a known time."""
    monkeypatch.setattr(starter, "measure_model_s", lambda recipe: STEP_S)


def _write(folders: tuple[Path, Path], file: Path, minutes: float | None, site: str | None = None) -> Recipe:
    starter.write_starter(str(folders[0]), str(folders[1]), site, minutes, file)
    return load_recipe(str(file), [])[0]


def test_steps_fill_the_time_that_is_left_beside_the_starts(
    folders: tuple[Path, Path], tmp_path: Path, steady: None
) -> None:
    recipe = _write(folders, tmp_path / "mine.yaml", 10)
    assert recipe.train is not None and recipe.prep is not None and recipe.prep.moving_photos is not None
    assert recipe.name == "mine" and recipe.out.endswith("outputs/mine")
    assert recipe.train.steps == 1780  # 0.85 * (600 s - 75 s) / 0.25 s, whole tens
    assert recipe.prep.datasets["clips"].corpora[0].path == str(folders[0])
    assert recipe.prep.datasets["clips"].max_samples_per_input == 4096  # 1780 steps of 8 pairs of 3 videos: 4747
    assert recipe.prep.moving_photos.photos == (str(folders[1]),)
    assert recipe.prep.moving_photos.max_photos == 6 and recipe.prep.moving_photos.heldout_photos == 2
    assert recipe.train.stream.pair_batch == 8 and recipe.train.engine.precision == "fp32"


def test_the_least_time_trains_a_little_and_an_hour_more(
    folders: tuple[Path, Path], tmp_path: Path, steady: None
) -> None:
    least, hour = (_write(folders, tmp_path / f"{m}.yaml", m).train for m in (1, 60))
    assert least is not None and least.steps == 30  # 0.15 of the minute
    assert hour is not None and hour.steps == 11980


@pytest.mark.parametrize("size", [starter.TRIAL, starter.MINUTES, starter.HOUR])
def test_only_what_is_made_of_own_files_is_scored(
    size: starter.Size,
    folders: tuple[Path, Path],
    tmp_path: Path,
    steady: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An hour's recipe lies over `nano`, which scores data sets that nobody has here."""
    monkeypatch.setattr(starter, "choose_size", lambda *_: size)
    scored = _write(folders, tmp_path / "own.yaml", 60).eval
    assert scored is not None and scored.flow is not None and scored.probe is not None and scored.vos is not None
    made = scored.flow.sets["moving-photos"]
    assert scored.flow.sets == {"moving-photos": made} and made.endswith("outputs/own/corpus/moving-photos")
    assert scored.probe.root == scored.vos.root == made
    assert scored.probe.set == scored.vos.set == "moving-photos" and not scored.flow.subset


def test_a_site_with_gpus_gets_its_batch_and_its_words(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, file = tmp_path / "site.yaml", tmp_path / "own.yaml"
    site.write_text("kind: slurm\ndefault: {gpus: 'a100:4', nodes: 2, time_min: 30}\n")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    made = starter.write_starter(str(folders[0]), str(folders[1]), str(site), None, file)
    train = load_recipe(str(file), [])[0].train
    assert train is not None and train.stream.pair_batch == 16 * 8 and train.engine.precision == "bf16"
    assert made.minutes == 30 and train.steps == 3060  # 0.85 of half an hour of 0.5 s each
    assert "assumed" in file.read_text() and any("assumed" in warning for warning in made.warnings)
    assert made.commands[-1] == shlex.join(["mcjepa", "launch", "all", str(file), "--site", str(site)])


def test_the_commands_it_prints_are_understood_with_blanks_in_their_names(
    folders: tuple[Path, Path], tmp_path: Path, steady: None, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "a 📷 # folder"
    place.mkdir()
    file, photos = str(place / "my own.yaml"), place / "photos"
    shutil.copytree(folders[1], photos)
    assert main(["init", "--videos", str(folders[0]), "--images", str(photos), "--out", file]) == OK
    generated = load_recipe(file, [])[0].prep
    assert generated and generated.moving_photos and generated.moving_photos.photos == (str(photos),)
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  mcjepa")]
    understood = [parse(shlex.split(line)[1:]) for line in printed]
    assert [arguments.command for arguments in understood] == ["prep", "train", "eval"]
    assert {arguments.recipe for arguments in understood} == {file}


def _png_header(width: int, height: int) -> bytes:
    """A grey PNG of that size without pixels."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT": b""}
    packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_what_it_cannot_use_is_refused_or_named(folders: tuple[Path, Path], tmp_path: Path, steady: None) -> None:
    videos, photos = map(str, folders)
    file = tmp_path / "own.yaml"
    with pytest.raises(UsageError, match="no such folder"):
        starter.write_starter(str(tmp_path / "nowhere"), photos, None, 5, file)
    with pytest.raises(DataError, match=r"has no file ending in"):
        starter.write_starter(videos, videos, None, 5, file)
    few = write_own_files(tmp_path / "few", videos=1, photos=3)[1]
    with pytest.raises(DataError, match=r"holds 3 images; expected at least 4"):
        starter.write_starter(videos, str(few), None, 5, file)
    for minutes in (0.5, 0):
        with pytest.raises(UsageError, match="at least 1"):
            starter.write_starter(videos, photos, None, minutes, file)
    with pytest.raises(UsageError, match="shipped recipe"):
        starter.write_starter(videos, photos, None, 5, tmp_path / "quickstart.yaml")
    assert not file.exists()
    (few / "vast.png").write_bytes(_png_header(20_000, 20_000))
    with pytest.raises(DataError, match=r"holds 4 images, of which cannot be read: vast\.png .*exceeds limit"):
        starter.write_starter(videos, str(few), None, 5, file)
    (torn := tmp_path / "videos").mkdir()
    (torn / "torn.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"torn\.mp4"):
        starter.write_starter(str(torn), photos, None, 5, file)
    (torn / "whole.mp4").write_bytes((folders[0] / "0.mp4").read_bytes())
    assert "torn.mp4" in " ".join(starter.write_starter(str(torn), photos, None, 5, file).warnings)
    with pytest.raises(UsageError, match="is there already"):
        starter.write_starter(videos, photos, None, 5, file)


def test_a_step_is_measured_with_the_recipes_own_model() -> None:
    small = ["train.stream.pair_batch=2", "train.stream.view_batch=2", "train.stream.augment.pair.crop=[64,64]"]
    assert 0.001 < starter.measure_model_s(load_recipe("quickstart", small)[0], steps=1) < 60
