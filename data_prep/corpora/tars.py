"""Readers of tars: every image, or every sample's image or video, is an input where it lies in its tar.

Only uncompressed tars can be read in place. Links, devices, sparse and cut-off members that are named as media
are listed with the reason why they cannot be read, and so is a tar that is damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

from mcjepa.data_prep.corpora.items import Input, InputKind
from mcjepa.data_prep.corpora.tar_members import OpenTar, TarMember, open_tar
from mcjepa.data_prep.corpora.trees import IMAGE_SUFFIXES, VIDEO_SUFFIXES, FoundFile, Tree, part_of, suffix_of
from mcjepa.data_prep.errors import DataError

TAR_SUFFIXES = frozenset({".tar"})
LABEL_SUFFIX = "cls"
MAX_LABEL_BYTES = 64

LabelledMember = tuple[TarMember, str]


def list_tars(root: str, split: str = "") -> Iterator[Input]:
    """Every image in every .tar below ROOT/SPLIT, by tar and then by its place in it.

    The name of an input is the tar's, then the member's without `..` and the like; equal names get the offset too.
    A tar within a tar is refused: unpack the outer one.
    """
    return _list_members(root, split, lambda tar: ((member, "") for member in tar.members()), _kind_of_image)


def list_webdataset(root: str, split: str = "") -> Iterator[Input]:
    """WebDataset shards (github.com/webdataset/webdataset): every image and video in every .tar below ROOT/SPLIT.

    Members of one sample follow each other and share the part of their name before the first dot of the last
    part (KEY.jpg, KEY.json, KEY.cls). The label is the text of KEY.cls, when it is short; captions and json are
    not read.
    """
    return _list_members(root, split, _labelled_samples, _kind_of_media)


def _list_members(
    root: str,
    split: str,
    members: Callable[[OpenTar], Iterator[LabelledMember]],
    kind_of: Callable[[str], InputKind | None],
) -> Iterator[Input]:
    tree = Tree(part_of(root, split))
    found = False
    for file in tree.media(TAR_SUFFIXES):
        for item in _members_of(tree, file, members, kind_of):
            found = True
            yield item
    if not found:
        raise DataError(f"{tree.root} has tars without images; expected at least one in them; name another folder")


def _members_of(
    tree: Tree,
    file: FoundFile,
    members: Callable[[OpenTar], Iterator[LabelledMember]],
    kind_of: Callable[[str], InputKind | None],
) -> Iterator[Input]:
    """The inputs of one tar; the tar itself, with the reason, when it cannot be read (to its end)."""
    uri = tree.base + file.name
    if file.bytes < 0:
        yield Input(file.name, uri, "image", refusal=file.refusal or "not a file")
        return
    names: set[str] = set()
    try:
        with open_tar(uri, file.bytes) as tar:
            for member, label in members(tar):
                if not member.name:
                    yield Input(file.name, uri, "image", bytes=file.bytes, refusal=member.refusal)
                    continue
                kind = kind_of(member.name)
                if kind is None:
                    continue
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
        yield Input(file.name, uri, "image", bytes=file.bytes, refusal=f"cannot be read ({error.strerror})")


def _labelled_samples(tar: OpenTar) -> Iterator[LabelledMember]:
    """Members with the label of their sample: one sample is held at a time."""
    for _, group in groupby(tar.members(), lambda member: _split_name(member.name)[0]):
        sample = list(group)
        label = next((_read_label(tar, member) for member in sample if _is_label(member)), "")
        yield from ((member, label) for member in sample)


def _split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member, as WebDataset splits them.

    >>> _split_name("a.b/000.seg.png")
    ('a.b/000', 'seg.png')
    """
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension


def _is_label(member: TarMember) -> bool:
    return _split_name(member.name)[1] == LABEL_SUFFIX and not member.refusal and member.bytes <= MAX_LABEL_BYTES


def _read_label(tar: OpenTar, member: TarMember) -> str:
    return tar.read(member).decode(errors="replace").strip()


def _kind_of_image(name: str) -> InputKind | None:
    return "image" if suffix_of(name) in IMAGE_SUFFIXES | TAR_SUFFIXES else None


def _kind_of_media(name: str) -> InputKind | None:
    return "video" if suffix_of(name) in VIDEO_SUFFIXES else _kind_of_image(name)


def _refusal_by_name(name: str) -> str:
    return "a tar within a tar; unpack the outer one" if suffix_of(name) in TAR_SUFFIXES else ""
