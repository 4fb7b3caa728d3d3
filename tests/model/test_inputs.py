"""Images that the model refuses, with what was found, what was expected and what to do; and the trainer's question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mcjepa.model.config import ModelConfig
from mcjepa.model.inputs import InputError, all_finite, require_images
from mcjepa.model.mcjepa import MCJEPA

WEIGHTS = {"reconstruction": 1.0, "content": 1.0}


def frames(height: int = 64, width: int = 96, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width)


def with_pixel(value: float) -> Tensor:
    images = frames()
    images[1, 2, 5, 7] = value
    return images


@pytest.fixture
def model(tiny_config: ModelConfig) -> MCJEPA:
    return MCJEPA(tiny_config)


REFUSED: list[tuple[Callable[[], Tensor], str]] = [
    (lambda: (255 * frames()).byte(), r"torch\.uint8, expected floating point.*/ 255"),
    (lambda: frames()[0], r"shape \(3, 64, 96\), expected \(B, 3, H, W\); stack"),
    (lambda: frames().movedim(1, -1), r"shape \(2, 64, 96, 3\), expected \(B, 3, H, W\); move the channels"),
    (lambda: frames()[:, :1], r"shape \(2, 1, 64, 96\), expected \(B, 3, H, W\)"),
    (lambda: frames()[:0], r"shape \(0, 3, 64, 96\), expected at least one image.*leave empty batches out"),
    (lambda: with_pixel(float("nan")), r"NaN or infinite pixels in images \[1\] of 2, expected finite.*leave"),
    (lambda: with_pixel(float("-inf")), r"NaN or infinite pixels in images \[1\] of 2, expected finite.*leave"),
    (lambda: 255 * frames(), r"pixels up to 25\d.*, expected RGB in \[0, 1\]; divide by 255"),
]


@pytest.mark.parametrize(("make", "says"), REFUSED)
@pytest.mark.parametrize("training", [True, False])
def test_what_is_no_image_is_refused_everywhere(
    model: MCJEPA, make: Callable[[], Tensor], says: str, training: bool
) -> None:
    model.train(training)
    bad = make()
    for call in (
        lambda: model.forward_pyramid(bad),
        lambda: model.forward_embedding(bad),
        lambda: model.estimate_flow(bad, bad),
        lambda: model((bad, bad), None, WEIGHTS),
        lambda: model(None, (bad, bad), WEIGHTS),
    ):
        with pytest.raises(InputError, match=says):
            call()


def test_the_message_names_which_of_the_stacks_it_is(model: MCJEPA) -> None:
    good, bad = frames(), with_pixel(float("inf"))
    with pytest.raises(InputError, match=r"^frames t \+ 1 has NaN"):
        model((good, bad), None, WEIGHTS)
    with pytest.raises(InputError, match=r"^the first views has NaN"):
        model((good, good), (bad, good), WEIGHTS)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (frames(batch=3), r"shapes \(2, 3, 64, 96\) and \(3, 3, 64, 96\), expected the same; pair them up"),
        (frames(width=64), r"shapes \(2, 3, 64, 96\) and \(2, 3, 64, 64\), expected the same"),
        (frames().double(), r"types torch\.float32 and torch\.float64, expected the same"),
    ],
)
def test_batches_that_do_not_match_up_are_refused(model: MCJEPA, other: Tensor, says: str) -> None:
    for call in (
        lambda: model((frames(), other), None, WEIGHTS),
        lambda: model(None, (frames(), other), WEIGHTS),
        lambda: model.estimate_flow(frames(), other),
    ):
        with pytest.raises(InputError, match=says):
            call()


def test_pairs_smaller_than_the_deepest_decoded_level_train_nothing_and_are_refused(tiny_config: ModelConfig) -> None:
    for stride, refused in ((64, True), (32, False)):
        model = MCJEPA(replace(tiny_config, flow=replace(tiny_config.flow, coarsest_stride=stride)))
        pair = frames(63, 96), frames(63, 96)
        if refused:
            with pytest.raises(InputError, match=r"63 x 96 px, expected sides of at least 64 px.*larger crops"):
                model(pair, None, WEIGHTS)
        else:
            assert model(pair, None, WEIGHTS).loss.isfinite()
        assert model.estimate_flow(*pair).isfinite().all()  # any size may be asked for its flow


def test_batches_without_weight_are_not_looked_at(model: MCJEPA) -> None:
    assert model((with_pixel(float("nan")),) * 2, None, {"content": 1.0}).loss == 0


def test_a_trainer_learns_whether_all_pixels_are_finite_without_an_error() -> None:
    good = frames()
    assert all_finite(good, None, good) and all_finite(None) and all_finite()
    for value in (float("nan"), float("inf"), float("-inf")):
        answer = all_finite(good, None, with_pixel(value))
        assert answer.shape == () and answer.dtype == torch.bool and not answer
    assert not all_finite(torch.tensor([float("inf"), float("-inf")]))
    assert all_finite(torch.ones(300, 300, dtype=torch.float16))  # 90,000: its sum is beyond fp16


def test_pixels_on_an_accelerator_are_read_in_evaluation_only() -> None:
    """The meta device stands in for one: reading a value from it raises."""
    images = torch.empty(2, 3, 8, 8, device="meta")
    require_images(images, "images", training=True)
    with pytest.raises((RuntimeError, NotImplementedError)):
        require_images(images, "images", training=False)
