"""What cached features depend on, as one digest: the encoder, the images with their labels, and the preprocessing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence

from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.data_prep.corpora.places import read_bytes
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.cards import package_versions
from mcjepa.evals.probe.features import EncodingPlan
from mcjepa.evals.subject import McJepaUnderTest, ModelUnderTest

FORMAT = 1
"""Of the cache's files and of the arithmetic around the encoder; a new one makes old features unknown."""


def model_digest(model: ModelUnderTest) -> str:
    """sha256 of our encoder's settings and weights; empty for a model of which neither is known."""
    if not isinstance(model, McJepaUnderTest):
        return ""
    digest = hashlib.sha256(repr(model.model.config.encoder).encode())
    for name, tensor in sorted(model.model.encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(model.device.type.encode())
    return digest.hexdigest()


def images_digest(items: Sequence[LabelledImage], on_image: Callable[[int], None] = lambda done: None) -> str:
    """sha256 over the names, the bytes and the label tables of images; a file that cannot be read counts as such."""
    digest = hashlib.sha256()
    for done, item in enumerate(items, start=1):
        digest.update(f"{item.name}\0{item.void_label}\0{item.classes}\0".encode())
        for place in (item.image, item.labels):
            try:
                content = read_bytes(place)
            except (DataError, OSError):
                digest.update(b"unreadable\0")
                continue
            digest.update(hashlib.sha256(content).digest())
        on_image(done)
    return digest.hexdigest()


def features_key(model: str, images: str, plan: EncodingPlan, dtype: str, batch: int) -> tuple[str, dict[str, object]]:
    """The key of features, and what it was made of, to be written beside them.

    Args:
        model: digest of the encoder.
        images: digest of the images.
        plan: what is done to them.
        dtype: number format.
        batch: images encoded together, which may change the last bits.
    """
    parts: dict[str, object] = {
        "format": FORMAT,
        "model": model,
        "images": images,
        "plan": dataclasses.asdict(plan),
        "dtype": dtype,
        "batch": batch,
        "versions": package_versions("mcjepa", "torch", "opencv-python-headless"),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32], parts
