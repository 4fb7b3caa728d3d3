"""The weights that come with the package: small, whole, described, and right on motion that is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import mcjepa
from mcjepa.model.pretrained import (
    SHIPPED,
    WeightsError,
    file_digest,
    read_config,
    shipped_names,
    weights_digest,
    weights_folder,
)

MOST_BYTES = 10e6


@pytest.fixture(scope="module")
def model() -> mcjepa.MCJEPA:
    return mcjepa.load("nano")


def test_each_is_small_and_its_card_names_its_digests_data_and_licence() -> None:
    assert shipped_names() == ["nano"]
    for name in shipped_names():
        folder = SHIPPED / name
        assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
        assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES
        card, lineage = (folder / "README.md").read_text(encoding="utf-8"), read_config(folder)[1]
        assert weights_digest(folder) in card and file_digest(folder / "config.json") in card
        assert all(dataset_id in card for dataset_id in lineage["dataset_ids"])
        assert "## Data" in card and "## Licence" in card and "/tmp" not in card


def test_a_name_is_the_shipped_one_and_a_folder_of_that_name_is_named_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nano").mkdir()
    monkeypatch.chdir(tmp_path)
    assert weights_folder("nano") == SHIPPED / "nano"
    for place in ("./nano", Path("nano"), str(tmp_path / "nano")):
        with pytest.raises(WeightsError, match=r"has no config\.json"):
            mcjepa.load(place)


def smooth_image(seed: int, size: int) -> torch.Tensor:
    """Texture of all scales from 4 px on, (1, 3, size, size) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, size, size)
    for cells in (size // 32, size // 16, size // 8, size // 4):
        noise = torch.randn(1, 3, cells, cells, generator=generator)
        image += F.interpolate(noise, size=(size, size), mode="bicubic", align_corners=False)
    return (0.5 + 0.15 * image).clamp(0, 1)


@pytest.mark.parametrize("shift", [(0, 0), (6, 0), (0, -9), (-12, 7)])
def test_flow_of_a_picture_that_moves_as_a_whole(model: mcjepa.MCJEPA, shift: tuple[int, int]) -> None:
    """What lies at p in the first picture lies at p + shift in the second."""
    dx, dy = shift
    picture = smooth_image(3, 320)
    first = picture[..., 32:288, 32:288]
    second = picture[..., 32 - dy : 288 - dy, 32 - dx : 288 - dx]
    with torch.inference_mode():
        flow = model.estimate_flow(first, second)[0, :, 32:-32, 32:-32]
    error = (flow - torch.tensor(shift, dtype=flow.dtype).view(2, 1, 1)).norm(dim=0).mean().item()
    assert error < 0.1 * max(4.0, (dx * dx + dy * dy) ** 0.5)
