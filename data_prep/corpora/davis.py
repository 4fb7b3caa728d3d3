"""DAVIS video object segmentation (Perazzi et al. 2016, Pont-Tuset et al. 2017), davischallenge.org.

    ROOT/JPEGImages/480p/SEQ/00000.jpg       ROOT is the folder `DAVIS` of the archive
    ROOT/Annotations/480p/SEQ/00000.png      palette ids 0.. (2017) or grey 0/255 (2016)
    ROOT/ImageSets/{2016,2017}/val.txt       one sequence a line (archives of 2017)
    ROOT/ImageSets/480p/val.txt              one frame a line, "/JPEGImages/480p/SEQ/00000.jpg /Annotations/…" (2016)

The test sets of 2017 have masks of first frames only: their objects can be tracked, not scored.
"""

from __future__ import annotations

from collections.abc import Iterator

from mcjepa.data_prep.corpora.inputs import in_frame_order, numbered_sequence
from mcjepa.data_prep.corpora.items import Input, MaskedVideo
from mcjepa.data_prep.corpora.places import Location
from mcjepa.data_prep.corpora.trees import Tree, require_partners
from mcjepa.data_prep.errors import DataError

FRAMES = "JPEGImages/480p"
MASKS = "Annotations/480p"
VALIDATION_2017 = "2017/val"
VALIDATION_2016 = ("480p/val", "2016/val")
TEST_DEV_2017 = "2017/test-dev"
MOST_NAMED = 5
NAMES_2016 = {
    *("blackswan", "bmx-trees", "breakdance", "camel", "car-roundabout", "car-shadow", "cows", "dance-twirl", "dog"),
    *("drift-chicane", "drift-straight", "goat", "horsejump-high", "kite-surf", "libby", "motocross-jump"),
    *("paragliding-launch", "parkour", "scooter-black", "soapbox"),
}
"""DAVIS-2016's validation list; DAVIS-2017's has these and ten more."""


def list_davis(root: str, split: str = "") -> Iterator[Input]:
    """Sequences as frames; SPLIT names a list below ImageSets (`2017/val`, `480p/train`), empty: all of them."""
    tree = Tree(root)
    for sequence, names in _sequences(tree, split).items():
        folder = f"{FRAMES}/{sequence}"
        frames = {name.rpartition("/")[2]: tree.bytes_of(name) for name in names}
        yield numbered_sequence(sequence, tree.base + folder, frames)


def davis_videos(root: Location) -> list[MaskedVideo]:
    """The validation sequences of DAVIS-2017 with the masks of every frame.

    Raises:
        DataError: a listed sequence, the mask of one of its frames, or the frame of a mask is absent.
    """
    return _masked_videos(Tree(root), VALIDATION_2017, one_object=False)


def davis2016_videos(root: Location) -> list[MaskedVideo]:
    """The validation sequences of DAVIS-2016: all objects of a sequence are one.

    An archive without a list of 2016 has those sequences of `2017/val` that are in the official one.

    Raises:
        DataError: a listed sequence, the mask of one of its frames, or the frame of a mask is absent.
    """
    tree = Tree(root)
    for split in VALIDATION_2016:
        if tree.has(f"ImageSets/{split}.txt"):
            return _masked_videos(tree, split, one_object=True)
    videos = _masked_videos(tree, VALIDATION_2017, one_object=True)
    return [video for video in videos if video.name in NAMES_2016]


def davis2017_test_videos(root: Location) -> list[MaskedVideo]:
    """The sequences of DAVIS-2017's test-dev list, with the mask of their first frame only.

    Raises:
        DataError: a listed sequence, the mask of its first frame, or the frame of a mask is absent.
    """
    return _masked_videos(Tree(root), TEST_DEV_2017, one_object=False, masks=1)


def _masked_videos(tree: Tree, split: str, one_object: bool, masks: int | None = None) -> list[MaskedVideo]:
    """Videos of a list; with the masks of their first `masks` frames, or of all of them."""
    videos = []
    there = _by_sequence(tree, MASKS, ".png")
    for sequence, frames in _sequences(tree, split).items():
        whole = [f"{MASKS}/{frame.removeprefix(f'{FRAMES}/').rpartition('.')[0]}.png" for frame in frames]
        require_partners(there.get(sequence, ()), set(whole), tree.base, "frame")
        names = whole[:masks]
        missing = [mask for mask in names if not tree.has(mask)]
        if missing:
            raise DataError(f"{tree.base}{missing[0]} is not there; expected a mask a frame; complete the data set")
        videos.append(MaskedVideo(sequence, tuple(map(tree.place, frames)), tuple(map(tree.place, names)), one_object))
    return videos


def _sequences(tree: Tree, split: str) -> dict[str, list[str]]:
    """Sequences of a list below ImageSets, in its order, or all of them, each with its frames in order.

    Raises:
        DataError: the list, one of its sequences or one of its frames is absent, or there is none at all.
    """
    found = _by_sequence(tree, FRAMES, ".jpg")
    listed = _listed(tree.read_text(f"ImageSets/{split}.txt")) if split else dict.fromkeys(found, ())
    missing = [sequence for sequence in listed if sequence not in found]
    missing = missing or [frame for frames in listed.values() for frame in frames if not tree.has(frame)]
    if missing or not listed:
        lack = f"lacks {', '.join(missing[:MOST_NAMED])}" if listed else "has no sequence"
        more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
        raise DataError(
            f"{tree.base}{FRAMES} {lack}{more}; expected every sequence of split {split!r}; complete the data set"
        )
    return {sequence: in_frame_order(found[sequence], str) for sequence in listed}


def _by_sequence(tree: Tree, folder: str, suffix: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in tree.below(folder):
        if name.endswith(suffix):
            found.setdefault(name.split("/")[-2], []).append(name)
    return found


def _listed(text: str) -> dict[str, tuple[str, ...]]:
    """Sequences, in order, from a list of sequences or of frames, each with those of its frames that it names.

    >>> _listed("/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png\\ndog\\n")
    {'bear': ('JPEGImages/480p/bear/00000.jpg',), 'dog': ()}
    """
    listed: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        if line.strip():
            name = line.split()[0].removeprefix("/")
            sequence = name.split("/")[-2] if "/" in name else name
            listed[sequence] = (*listed.get(sequence, ()), *([name] if "/" in name else []))
    return listed
