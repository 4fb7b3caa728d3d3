"""Finds the folder of a flow set below a folder that holds several, by what the set's own archive unpacks to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mcjepa.data_prep.corpora.places import Location, plain_location
from mcjepa.data_prep.errors import DataError

LEVELS = 2
"""Folders are looked for at the root and so many levels below it."""

_CHAIRS = ("FlyingChairs_train_val.txt|data/*_flow.flo",)

MARKS: dict[str, tuple[str, ...]] = {
    "chairs": _CHAIRS,
    "chairs-train": _CHAIRS,
    "chairs-val": _CHAIRS,
    "chairs2": ("train/*-flow_01.flo",),
    "chairs2-val": ("val/*-flow_01.flo",),
    "things3d-clean": ("optical_flow/TRAIN", "frames_cleanpass|frames_cleanpass_webp"),
    "things3d-clean-test": ("optical_flow/TEST", "frames_cleanpass|frames_cleanpass_webp"),
    "things3d-final": ("optical_flow/TRAIN", "frames_finalpass|frames_finalpass_webp"),
    "things3d-final-test": ("optical_flow/TEST", "frames_finalpass|frames_finalpass_webp"),
    "sintel-clean": ("training/flow", "training/clean"),
    "sintel-final": ("training/flow", "training/final"),
    "sintel-test": ("test/clean", "test/final"),
    "kitti2012": ("training/flow_occ", "training/colored_0|training/image_0"),
    "kitti2015": ("training/flow_occ", "training/image_2"),
    "kitti2012-test": ("testing/colored_0|testing/image_0",),
    "kitti2015-test": ("testing/image_2",),
    "hd1k": ("hd1k_flow_gt", "hd1k_input"),
    "middlebury": ("other-gt-flow", "other-data"),
    "middlebury-grey": ("other-gt-flow", "other-data-gray"),
    "moving-photos": ("heldout",),
}
"""Set name to what must lie in its folder; `|` parts alternatives, each a path or a pattern."""


def find_set_folder(root: Location, set_name: str) -> Path:
    """The set's folder: `root` itself, or the one folder up to two levels below it that looks like the set's.

    Raises:
        DataError: there is no such folder, or several.
    """
    folder = Path(plain_location(root))
    if not str(root) or not folder.is_dir():
        raise DataError(
            f"no folder {str(root)!r} for the set {set_name}; expected the one its archive unpacks to, or one that "
            "holds it; correct the root"
        )
    level = [folder]
    for _ in range(LEVELS + 1):
        found = [place for place in level if _looks_like(place, MARKS[set_name])]
        if len(found) > 1:
            raise DataError(
                f"the set {set_name} is below {folder} more than once ({found[0]}, {found[1]}); expected one; name its "
                "own folder"
            )
        if found:
            return found[0]
        level = [below for place in level for below in _folders_in(place)]
    wanted = " and ".join(mark.replace("|", " or ") for mark in MARKS[set_name])
    raise DataError(
        f"no folder of the set {set_name} at {folder} or {LEVELS} levels below it; expected one that holds {wanted}; "
        "correct the root"
    )


def _looks_like(folder: Path, marks: tuple[str, ...]) -> bool:
    return all(any(_is_there(folder, choice) for choice in mark.split("|")) for mark in marks)


def _is_there(folder: Path, choice: str) -> bool:
    if "*" not in choice:
        return (folder / choice).exists()
    place, _, pattern = choice.rpartition("/")
    return next((folder / place).glob(pattern), None) is not None


def _folders_in(folder: Path) -> Iterator[Path]:
    """Folders in name order; what may not be read counts as empty."""
    try:
        yield from sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except PermissionError:
        return
