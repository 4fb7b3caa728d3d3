"""Which libraries decide the bytes of a dataset's shards, and their versions here.

Decoder and encoder are in the plan's digest. The others are recorded beside it, for each dataset those that it uses:
what reads pictures, what the filters judge by. They tell why two datasets differ; a begun dataset is gone on with, and
a node of a Ray cluster is worked on, with the same ones only.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from mcjepa.data_prep.decode.encoders import encoder_version
from mcjepa.data_prep.decode.videos import decoder_version
from mcjepa.data_prep.settings import DatasetConfig, EncodingName

WITHOUT_PICTURES = ("videos", "packaged-videos")
"""Readers all of whose inputs are videos."""
PICTURES = ("pillow", "pillow-heif", "simplejpeg")
HASHES = ("imagehash", "numpy", "pillow", "scipy")
CUTS = ("scenedetect",)
OTHER_NAMES = {"scenedetect": "scenedetect-headless"}
"""Distribution that has a library where there is none of its own name."""
PARTS_OF_PILLOW = ("littlecms2", "libjpeg_turbo", "jpg_2000", "libtiff", "webp", "avif")
"""In its wheels, or of the system."""
ABSENT = "not installed"


def codec_versions(config: DatasetConfig) -> tuple[str, str]:
    """Names and versions of decoder and encoder, as plan and manifest have them."""
    encoding: EncodingName = "png" if config.kind == "flow" else config.encoding
    return decoder_version(config.decoder), encoder_version(encoding, config.decoder)


def library_versions(config: DatasetConfig) -> dict[str, str]:
    """The other libraries that decide the bytes of this dataset's shards, with their versions; none is imported."""
    filters = config.filters
    guards = filters.leakage.mode != "off"
    names: set[str] = set()
    if any(corpus.reader not in WITHOUT_PICTURES for corpus in (*config.corpora, *(filters.leakage.sets * guards))):
        names.update(PICTURES)
    if guards or filters.duplicates.mode != "off":
        names.update(HASHES)
    if filters.cut.mode != "off":
        names.update(CUTS)
    if config.video.wide_colours == "convert":
        names.add("numpy")
    return {name: _version(name) for name in sorted(names)}


def made_by(config: DatasetConfig) -> dict[str, str]:
    """All that decides the bytes of a dataset besides our code and its settings."""
    decoder, encoder = codec_versions(config)
    return {"decoder": decoder, "encoder": encoder, **library_versions(config)}


def differing_versions(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """What differs, as `name: old -> new`."""
    names: Iterable[str] = sorted(old.keys() | new.keys())
    return [f"{n}: {old.get(n, ABSENT)} -> {new.get(n, ABSENT)}" for n in names if old.get(n) != new.get(n)]


def _version(name: str) -> str:
    for distribution in (name, OTHER_NAMES.get(name, "")):
        try:
            found = version(distribution) if distribution else ABSENT
        except PackageNotFoundError:
            continue
        return f"{found} ({_parts_of_pillow()})" if name == "pillow" else found
    return ABSENT


def _parts_of_pillow() -> str:
    from PIL import features

    return ", ".join(f"{part} {features.version(part) or ABSENT}" for part in PARTS_OF_PILLOW)
