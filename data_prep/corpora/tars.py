"""Readers of tars: every image, or every sample's image or video, is an input where it lies in its tar.

Only uncompressed tars can be read in place; packed ones are listed with that reason. Links, devices, sparse and cut-off
members that are named as media are listed with the reason why they cannot be read, and so is a tar that is damaged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mcjepa.data_prep.corpora.census import Reading
from mcjepa.data_prep.corpora.items import Input, InputKind
from mcjepa.data_prep.corpora.tar_members import OpenTar, TarMember, open_tar
from mcjepa.data_prep.corpora.trees import (
    IMAGE_SUFFIXES,
    PACKERS,
    VIDEO_SUFFIXES,
    FoundFile,
    Tree,
    part_of,
    suffix_of,
)
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import EVERYTHING

TAR_SUFFIXES = frozenset({".tar"})
PACKED_TAR_SUFFIXES = frozenset({*(f".tar{packer}" for packer in PACKERS), ".tgz", ".tbz", ".tbz2", ".txz"})
LABEL_SUFFIX = "cls"
MAX_LABEL_BYTES = 64
PREFERRED = ("mp4", "webm", "mkv", "avi", "mov", "jpg", "jpeg", "png", "webp")
"""Of several members of a sample: which one is the sample's video or picture; then the others, by name."""
ROLE = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z0-9]+)+")
"""An extension that tells what a member is (`seg.png`), in small letters; others are part of a name (`01.2020.jpg`)."""

LabelledMember = tuple[TarMember, str]


@dataclass
class _Sample:
    """Media of one sample of a tar, and its label."""

    media: list[TarMember] = field(default_factory=list)
    extensions: set[str] = field(default_factory=set)
    """Of its media and its label, in small letters."""
    label: str = ""


Samples = dict[tuple[int, str], list[_Sample]]
"""By archive and key: one sample, or several where the key comes again."""


def list_tars(root: str, split: str = "", reading: Reading | None = None) -> Iterator[Input]:
    """Every image in every .tar below ROOT/SPLIT, by tar and then by its place in it.

    The name of an input is the tar's, then the member's without `..` and the like; equal names get the offset too.
    A tar within a tar is refused: unpack the outer one.
    """
    return _list_members(root, split, reading or Reading(), _chosen_images)


def list_webdataset(root: str, split: str = "", reading: Reading | None = None) -> Iterator[Input]:
    """WebDataset shards (github.com/webdataset/webdataset): the image or video of every sample in every .tar.

    Members of a sample share the part of their name before the first dot of the last part (KEY.jpg, KEY.json, KEY.cls),
    wherever they stand in the tar; where a name comes again, and in each of several tars in one file, another sample
    begins. One is taken: that with a plain extension (KEY.jpg, not KEY.seg.png), videos before
    pictures, or the only one; `members` takes those with just these extensions instead. The label is the text of
    KEY.cls, when it is short; captions and json are not read.
    """
    return _list_members(root, split, reading or Reading(), _chosen_of_samples)


def _list_members(
    root: str, split: str, reading: Reading, choose: Callable[[OpenTar, Reading], Iterator[LabelledMember]]
) -> Iterator[Input]:
    tree = Tree(part_of(root, split))
    found = False
    for file in tree.media(TAR_SUFFIXES | PACKED_TAR_SUFFIXES, Reading(census=reading.census, span=reading.span)):
        for item in _members_of(tree, file, reading, choose):
            found = True
            yield item
    if not found and reading.span == EVERYTHING:
        raise DataError(f"{tree.root} has tars without images; expected at least one in them; name another folder")


def _members_of(
    tree: Tree, file: FoundFile, reading: Reading, choose: Callable[[OpenTar, Reading], Iterator[LabelledMember]]
) -> Iterator[Input]:
    """The inputs of one tar; the tar itself, with the reason, when it cannot be read (to its end)."""
    uri = tree.base + file.name
    if file.bytes < 0 or suffix_of(file.name) in PACKED_TAR_SUFFIXES:
        packed = "a packed tar, which cannot be read in place; unpack it to .tar"
        yield Input(file.name, uri, "image", refusal=file.refusal or (packed if file.bytes >= 0 else "not a file"))
        return
    reading.census.entries -= 1  # its members count instead
    names: set[str] = set()
    try:
        with open_tar(uri, file.bytes) as tar:
            for member, label in choose(tar, reading):
                if not member.name:
                    reading.census.entries += 1
                    yield Input(file.name, uri, "image", bytes=file.bytes, refusal=member.refusal)
                    continue
                kind: InputKind = "video" if suffix_of(member.name) in VIDEO_SUFFIXES else "image"
                name = f"{file.name}/{member.name}"
                while name in names:
                    name += f"@{member.offset}"
                names.add(name)
                refusal = member.refusal or _refusal_by_name(member.name)
                if refusal:
                    yield Input(name, uri, kind, refusal=refusal)
                else:
                    yield Input(name, uri, kind, span=(member.offset, member.bytes), bytes=member.bytes, label=label)
    except OSError as error:
        reading.census.entries += 1
        yield Input(file.name, uri, "image", bytes=file.bytes, refusal=f"cannot be read ({error.strerror})")


def _chosen_images(tar: OpenTar, reading: Reading) -> Iterator[LabelledMember]:
    """The images of a tar, and tars in it, as they come."""
    for member in tar.members():
        reading.census.entries += bool(member.name)
        suffix = suffix_of(member.name)
        if member.name and suffix not in IMAGE_SUFFIXES | TAR_SUFFIXES:
            reading.census.leave(suffix)
        elif member.name and suffix in IMAGE_SUFFIXES and not reading.wants(member.name):
            reading.census.leave(suffix, "not among members")
        else:
            yield member, ""


def _chosen_of_samples(tar: OpenTar, reading: Reading) -> Iterator[LabelledMember]:
    """The chosen members of a tar's samples with their labels, in order of their places; the tar's names are held."""
    samples: Samples = {}
    damage = [member for member in _collect(tar, reading, samples) if not member.name]
    chosen: list[LabelledMember] = []
    for namesakes in samples.values():
        doubtful = len({s.label for s in namesakes if s.label}) > 1 and not all(s.media and s.label for s in namesakes)
        for sample in namesakes:
            members = _choose(sample.media, reading, alone=len(namesakes) == 1)
            chosen += [(member, "" if doubtful else sample.label) for member in members]
    yield from sorted(chosen, key=lambda pair: pair[0].offset)
    yield from ((member, "") for member in damage)


def _collect(tar: OpenTar, reading: Reading, samples: Samples) -> Iterator[TarMember]:
    """Sort a tar's media and labels by samples; the others are counted, and what tells of damage is given out."""
    for member in tar.members():
        if not member.name:
            yield member
            continue
        reading.census.entries += 1
        key, extension = _split_name(member.name)
        suffix, is_label = suffix_of(member.name), extension.lower() == LABEL_SUFFIX
        is_medium = suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES | TAR_SUFFIXES
        if not is_medium and not is_label:
            reading.census.leave(suffix)
            continue
        sample = _sample_of(samples, (member.archive, key), extension.lower())
        if is_medium:
            sample.media.append(member)
        elif not member.refusal and member.bytes <= MAX_LABEL_BYTES:
            sample.label = tar.read(member).decode(errors="replace").strip()
            reading.census.leave(suffix, "label")
        else:
            reading.census.leave(suffix, "too long for a label")


def _sample_of(samples: Samples, key: tuple[int, str], extension: str) -> _Sample:
    """The sample that a member belongs to: the newest of its key, or another one where that has such a member."""
    namesakes = samples.setdefault(key, [])
    if not namesakes or extension in namesakes[-1].extensions:
        namesakes.append(_Sample())
    namesakes[-1].extensions.add(extension)
    return namesakes[-1]


def _choose(members: list[TarMember], reading: Reading, alone: bool) -> list[TarMember]:
    """Those members of a sample that are inputs; the others are counted.

    Args:
        members: The sample's media.
        reading: Which are wanted, and who counts.
        alone: No other sample has its key: a single member is then taken, whatever its extension.
    """
    extensions = [_split_name(member.name)[1].lower() for member in members]
    wanted = [m.removeprefix(".").lower() for m in reading.members]
    if wanted:
        chosen = [number for number, extension in enumerate(extensions) if extension in wanted]
    else:
        plain = [number for number, extension in enumerate(extensions) if "." not in extension]
        rank = {extension: place for place, extension in enumerate(PREFERRED)}
        best = sorted(plain, key=lambda n: (rank.get(extensions[n], len(rank)), extensions[n]))
        chosen = best[:1] or ([0] if len(members) == 1 and alone else [])
    for number, extension in enumerate(extensions):
        if number not in chosen:
            ending = f".{extension}" if ROLE.fullmatch(extension) else suffix_of(members[number].name)
            reading.census.leave(ending, "not chosen of its sample")
    return [members[number] for number in chosen]


def _split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member, as WebDataset splits them.

    >>> _split_name("a.b/000.seg.png")
    ('a.b/000', 'seg.png')
    """
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension


def _refusal_by_name(name: str) -> str:
    return "a tar within a tar; unpack the outer one" if suffix_of(name) in TAR_SUFFIXES else ""
