"""Models behind the two methods: padding, strides, our weights, the random twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.models import (
    EvalModel,
    choose_device,
    features_by_stride,
    image_tensor,
    load_model,
    map_of_stride,
    random_twin,
    read_weights,
)
from mcjepa.model.pretrained import encoder_part, read_config, read_state, save

CPU = torch.device("cpu")


def test_image_becomes_rgb_between_0_and_1() -> None:
    picture = np.array([[[255, 0, 51], [0, 255, 0]]], np.uint8)
    tensor = image_tensor(picture)
    assert tensor.shape == (1, 3, 1, 2) and tensor.dtype == torch.float32
    assert tensor[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_image_is_padded_at_the_right_and_bottom_only(foreign_model: Callable[..., EvalModel]) -> None:
    image = torch.rand(2, 3, 100, 130)
    maps = features_by_stride(foreign_model(), image)
    assert sorted(maps) == [2, 4, 8, 16, 32, 64]
    assert maps[8].shape == (2, 6, 16, 24)
    torch.testing.assert_close(maps[4][:, :3, :25, :32], torch.nn.functional.avg_pool2d(image, 4))


def test_map_that_is_no_whole_fraction_is_refused() -> None:
    class Cropping:
        def features(self, image_B3HW: Tensor) -> list[Tensor]:
            return [image_B3HW[:, :, :60, :]]

    with pytest.raises(ValueError, match="whole stride"):
        features_by_stride(Cropping(), torch.rand(1, 3, 64, 64))  # type: ignore[arg-type]


def test_missing_level_is_named_with_those_that_are_there() -> None:
    with pytest.raises(ValueError, match=r"stride 3; expected one of \[2, 4\]"):
        map_of_stride({4: torch.zeros(1), 2: torch.zeros(1)}, 3)


def test_our_weights_give_six_levels_and_flow_at_the_frames_size(weights_folder: Path) -> None:
    model = load_model(weights_folder, CPU)
    image = torch.rand(1, 3, 70, 100)
    maps = features_by_stride(model, image)
    assert sorted(maps) == [2, 4, 8, 16, 32, 64]
    assert maps[64].shape[-2:] == (2, 2)
    flow = model.flow(image, image)
    assert flow.shape == (1, 2, 70, 100) and bool(flow.isfinite().all())


def test_weights_are_known_by_digest_and_lineage(weights_folder: Path) -> None:
    weights = read_weights(str(weights_folder))
    assert len(weights.digest) == 64
    assert weights.lineage["dataset_ids"] == ["9be"]


def test_equal_weights_with_another_config_are_another_model(weights_folder: Path, tmp_path: Path) -> None:
    """How flow is mended in use stands in config.json alone; scores and frames of the one are not the other's."""
    config, _ = read_config(weights_folder)
    flow = replace(config.flow, reconcile=config.flow.reconcile + 1)
    save(read_state(weights_folder), replace(config, flow=flow), tmp_path / "other")
    save(read_state(weights_folder), config, tmp_path / "same")
    save(read_state(weights_folder), config, tmp_path / "again")
    other, same, again = (read_weights(tmp_path / name) for name in ("other", "same", "again"))
    assert other.digest == same.digest and other.identity != same.identity == again.identity


def test_absent_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights folder"):
        read_weights(tmp_path)


def test_random_twin_is_seeded_untrained_and_leaves_the_generator_alone(weights_folder: Path) -> None:
    model = load_model(weights_folder, CPU)
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    twins = [random_twin(model, seed) for seed in (1, 1, 2)]
    assert torch.equal(before, torch.random.get_rng_state())
    coarse = [twin.features(torch.ones(1, 3, 64, 64) * 0.3)[-1] for twin in (*twins, model)]
    assert torch.equal(coarse[0], coarse[1])
    assert not torch.allclose(coarse[0], coarse[2]) and not torch.allclose(coarse[0], coarse[3])
    assert not twins[0].model.training


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_asking_for_an_absent_gpu_says_what_to_do() -> None:
    assert choose_device("auto") == CPU
    with pytest.raises(ValueError, match="device=auto"):
        choose_device("cuda")


def test_an_encoder_alone_has_features_and_refuses_flow(weights_folder: Path, tmp_path: Path) -> None:
    config, lineage = read_config(weights_folder)
    save(encoder_part(read_state(weights_folder)), config, tmp_path, lineage)
    alone, whole = load_model(tmp_path, CPU), load_model(weights_folder, CPU)
    image = torch.rand(1, 3, 64, 64)
    for ours, expected in zip(alone.features(image), whole.features(image), strict=True):
        torch.testing.assert_close(ours, expected)
    with pytest.raises(DataError, match="an encoder alone"):
        alone.flow(image, image)
