"""Fine-tuning: layers and rates, the loss, resuming bit for bit, refusals, scores, and that it learns CamVid."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import nn

from mcjepa.data_prep.corpora import CAMVID_CLASSES, SEGMENTATION_CLASSES, SEGMENTATION_SETS
from mcjepa.data_prep.corpora.image_files import read_ids, write_id_png
from mcjepa.data_prep.corpora.places import read_bytes
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.finetune.data import Batch
from mcjepa.evals.finetune.model import Segmenter, TrainableEncoder, convnext_layer, parameter_groups, trainable_of
from mcjepa.evals.finetune.score import constant_prediction, predict_labels, score_finetune
from mcjepa.evals.finetune.settings import FinetuneConfig
from mcjepa.evals.finetune.train import make_optimizer, train_step
from mcjepa.evals.models import LoadedModel, McJepaEvalModel, image_tensor
from mcjepa.evals.probe.fitting import poly_schedule
from mcjepa.evals.probe.images import LabelledSet
from mcjepa.evals.progress import EvalEvent
from mcjepa.evals.run import run_evaluation
from mcjepa.evals.settings import EvalConfig
from mcjepa.model.config import EncoderConfig, ExpanderConfig, FlowConfig, ModelConfig
from mcjepa.model.encoder import Encoder
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.model.pretrained import load, save
from tests.own_files import png_of_size

CONFIG = FinetuneConfig(
    set="moving-photos",
    channels=8,
    pool_scales=(1, 2),
    image_scale=(96, 96),
    crop_px=(64, 64),
    steps=6,
    warmup_steps=2,
    lr=1e-2,
    batch=4,
    workers=0,
    checkpoint_every=2,
    max_train=6,
    max_val=3,
    pictures=1,
)
NARROW = EncoderConfig(stem_channels=(4, 4), stage_channels=(8, 8, 8, 8), depths=(1, 1, 2, 1))


@pytest.fixture
def data(moving_photos: Path) -> LabelledSet:
    read = SEGMENTATION_SETS["moving-photos"]
    return LabelledSet(
        root=moving_photos,
        train=read(moving_photos, "train"),
        val=read(moving_photos, "val"),
        classes=SEGMENTATION_CLASSES["moving-photos"](moving_photos),
    )


@pytest.fixture
def loaded(weights_folder: Path) -> LoadedModel:
    model = McJepaEvalModel(load(weights_folder), torch.device("cpu"))
    return LoadedModel(model=model, name="tiny", digest="9be")


def _batch(count: int = 4, side: int = 64, classes: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, classes, (count, side, side), generator=generator)
    labels[0, :40] = 255  # unequal numbers of counted pixels
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return Batch(images, labels, ())


def _network(config: FinetuneConfig, classes: int = 3) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(TrainableEncoder(Encoder(NARROW)), classes, config)


# --- what is trained how -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "by_layer", "by_stage"),
    [
        ("stem_fine.weight", 0, 0),
        ("stem_norm.bias", 0, 0),
        ("downsamplers.0.1.weight", 0, 0),
        ("stages.0.2.norm.weight", 1, 1),
        ("downsamplers.1.1.weight", 2, 0),
        ("stages.1.0.expand.weight", 2, 2),
        ("downsamplers.2.0.weight", 3, 0),
        ("stages.2.5.expand.weight", 4, 3),
        ("stages.2.26.expand.weight", 11, 3),
        ("downsamplers.3.1.weight", 12, 0),
        ("stages.3.1.contract.bias", 12, 4),
    ],
)
def test_layers_are_convnexts(name: str, by_layer: int, by_stage: int) -> None:
    assert (convnext_layer(name, "layer"), convnext_layer(name, "stage")) == (by_layer, by_stage)


@pytest.mark.parametrize(("by", "stem_power"), [("stage", 7), ("layer", 13)])
def test_rates_fall_by_layer_from_the_head_and_norms_and_biases_do_not_decay(by: str, stem_power: int) -> None:
    config = dataclasses.replace(CONFIG, lr_decay_by=by)
    encoder = TrainableEncoder(Encoder(NARROW))
    network = Segmenter(encoder, 3, config)
    groups = parameter_groups(network, encoder, config)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    assert of[id(network.head.classifier[1].weight)]["lr"] == 1e-2
    assert of[id(network.norms[0].weight)]["lr"] == 1e-2
    assert of[id(network.encoder.stem_fine.weight)]["lr"] == pytest.approx(1e-2 * 0.9**stem_power)
    for name, parameter in network.named_parameters():
        decays = not name.endswith("bias") and "norm" not in name and parameter.ndim > 1
        assert of[id(parameter)]["weight_decay"] == (0.05 if decays else 0.0), name


def test_stochastic_depth_rises_to_the_last_block_and_the_model_itself_stays_as_it_is() -> None:
    encoder = Encoder(NARROW)
    trainable = TrainableEncoder(encoder)
    trainable.set_drop_path(0.4)
    rates = [m.rate for m in trainable.module.modules() if type(m).__name__ == "DropPath"]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert [m.rate for m in encoder.modules() if type(m).__name__ == "DropPath"][-1] == 0.1
    assert trainable.module.stem_fine.weight is not encoder.stem_fine.weight


def test_warm_up_multiplies_the_poly_decay() -> None:
    config = FinetuneConfig()
    steps = (0, 750, 1_500, 159_999)
    factors = [poly_schedule(step, config.steps, config.warmup_steps, config.poly_power) for step in steps]
    expected = [1e-6, 0.5 * (1 - 750 / 160_000), 1 - 1_500 / 160_000, 1 / 160_000]
    assert factors == pytest.approx(expected, rel=1e-5)


def test_a_level_that_the_model_lacks_is_named() -> None:
    config = dataclasses.replace(CONFIG, levels=(1, 2, 6))
    trainable = TrainableEncoder(Encoder(NARROW))
    trainable.strides = (4, 8, 16, 32, 64)  # type: ignore[misc, assignment]
    with pytest.raises(ValueError, match="no level of stride 2"):
        Segmenter(trainable, 3, config)


def test_a_model_that_cannot_be_trained_is_refused_by_its_name(foreign_model: type) -> None:
    with pytest.raises(ValueError, match="LocalStatistics cannot be fine-tuned"):
        trainable_of(foreign_model())


# --- a step --------------------------------------------------------------------------------------------------------


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    """In evaluation mode, where batch normalisation does not see the batch."""
    gradients = []
    for micro in (4, 2):
        config = dataclasses.replace(CONFIG, micro_batch=micro)
        network = _network(config).eval()
        loss = train_step(network, make_optimizer(parameter_groups(*_parts(network), config)), _batch(), config, (0, 3))
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert loss > 0 and len(gradients[0]) > 50
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)


def _parts(network: Segmenter) -> tuple[Segmenter, TrainableEncoder]:
    encoder = TrainableEncoder(Encoder(NARROW))
    encoder.module = network.encoder  # type: ignore[assignment]
    return network, encoder


def test_loss_is_the_mean_over_pixels_that_are_not_void_and_the_auxiliary_head_has_its_weight() -> None:
    batch, losses = _batch(), {}
    for weight in (0.0, 0.4, 0.8):
        config = dataclasses.replace(CONFIG, auxiliary_weight=weight, drop_path=0.0)
        network = _network(config).train()
        losses[weight] = train_step(
            network, make_optimizer(parameter_groups(*_parts(network), config)), batch, config, (0, 3)
        )
    chance = float(np.log(3))
    assert losses[0.0] == pytest.approx(chance, rel=0.1)
    assert losses[0.4] == pytest.approx(1.4 * chance, rel=0.1)
    assert losses[0.8] - losses[0.4] == pytest.approx(0.4 * chance, rel=0.15)


def test_a_batch_of_void_alone_changes_nothing_to_not_finite() -> None:
    network = _network(CONFIG).train()
    batch = dataclasses.replace(_batch(), labels_BHW=torch.full((4, 64, 64), 255))
    assert train_step(network, make_optimizer(parameter_groups(*_parts(network), CONFIG)), batch, CONFIG, (0, 3)) == 0
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_bf16_is_close_to_fp32() -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        config = dataclasses.replace(CONFIG, precision=precision, drop_path=0.0)
        network = _network(config).eval()
        optimizer = make_optimizer(parameter_groups(*_parts(network), config))
        losses.append(train_step(network, optimizer, _batch(), config, (0, 3)))
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched() -> None:
    network = _network(CONFIG).train()
    with torch.no_grad():
        network.head.classifier[1].bias[0] = float("inf")
    before = network.encoder.stem_fine.weight.clone()
    with pytest.raises(DataError, match=r"loss is nan at step 3.*finetune\.lr"):
        train_step(network, make_optimizer(parameter_groups(*_parts(network), CONFIG)), _batch(), CONFIG, (0, 3))
    assert torch.equal(before, network.encoder.stem_fine.weight)


def _step_of_a_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    _save_step(_batch(), slice(rank, None, 2), Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


def _save_step(batch: Batch, mine: slice, path: Path) -> None:
    config = dataclasses.replace(CONFIG, drop_path=0.0)
    network = _network(config).train()
    for module in network.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0  # ranks drop differently
    part = Batch(batch.images_B3HW[mine], batch.labels_BHW[mine], ())
    loss = train_step(network, make_optimizer(parameter_groups(*_parts(network), config)), part, config, (0, 3))
    torch.save([torch.tensor(loss), *(p.grad for p in network.parameters() if p.grad is not None)], path)


@pytest.mark.slow
def test_two_ranks_do_the_step_of_one(tmp_path: Path) -> None:
    _save_step(_batch(), slice(None), tmp_path / "one.pt")
    mp.spawn(_step_of_a_rank, args=(str(tmp_path),), nprocs=2)
    one = torch.load(tmp_path / "one.pt", weights_only=True)
    for rank in range(2):
        for found, wanted in zip(torch.load(tmp_path / f"rank{rank}.pt", weights_only=True), one, strict=True):
            torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-3)


# --- the whole, and again ------------------------------------------------------------------------------------------


def test_score_has_protocol_table_curve_and_pictures_and_leaves_the_weights_alone(
    loaded: LoadedModel, data: LabelledSet, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in loaded.model.model.state_dict().items()}  # type: ignore[attr-defined]
    events: list[EvalEvent] = []
    score = score_finetune(loaded, data, CONFIG, 5, tmp_path, events.append)
    assert score.name == "finetune/moving-photos" and score.card.seeds == (5,) and score.card.complete
    assert {"miou", "pixel_accuracy", "miou_majority", "pixel_accuracy_majority"} <= set(score.metrics)
    assert len(score.table) == score.card.frames == 3
    assert score.card.config["lr_decay"] == 0.9 and "UperNet" in score.card.head
    assert [picture.path.is_file() for picture in score.pictures] == [True]
    assert {event.phase for event in events} == {"fine-tuning", "validation"}
    assert [line.split(",")[0] for line in (tmp_path / "curve.csv").read_text().splitlines()] == ["step", *"123456"]
    after = loaded.model.model.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_classes_whose_names_differ_by_signs_only_keep_a_metric_each(
    loaded: LoadedModel, data: LabelledSet, tmp_path: Path
) -> None:
    count = len(data.classes)
    same = dataclasses.replace(data, classes=tuple(f"{number:04d}/IMG_1" for number in range(count)))
    plain, clash = (score_finetune(loaded, some, CONFIG, 5, tmp_path / d) for some, d in ((data, "a"), (same, "b")))
    values = [[v for name, v in score.metrics.items() if name.startswith("iou_")] for score in (plain, clash)]
    assert values[0] == values[1] and len(values[0]) >= 2 and plain.metrics["miou"] == clash.metrics["miou"]


def test_an_interrupted_run_ends_with_the_weights_of_an_undisturbed_one(
    loaded: LoadedModel, data: LabelledSet, tmp_path: Path
) -> None:
    whole = score_finetune(loaded, data, CONFIG, 5, tmp_path / "whole")

    def stop(event: EvalEvent) -> None:
        if event.phase == "fine-tuning" and event.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_finetune(loaded, data, CONFIG, 5, tmp_path / "parts", stop)
    assert not (tmp_path / "parts/segmenter.safetensors").exists()
    torch.manual_seed(99)  # the global generator must not matter
    events: list[EvalEvent] = []
    parts = score_finetune(loaded, data, CONFIG, 5, tmp_path / "parts", events.append)
    assert events[0].done == 4, "the checkpoint of step 4 is where it goes on"
    files = [(tmp_path / name / "segmenter.safetensors") for name in ("whole", "parts")]
    states = [load_file(str(file)) for file in files]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert whole.metrics == parts.metrics
    assert not (tmp_path / "parts/checkpoint.pt").exists()


def test_a_finished_network_is_tested_again_without_training(
    loaded: LoadedModel, data: LabelledSet, tmp_path: Path
) -> None:
    first = score_finetune(loaded, data, CONFIG, 5, tmp_path)
    events: list[EvalEvent] = []
    again = score_finetune(loaded, data, dataclasses.replace(CONFIG, pictures=0), 5, tmp_path, events.append)
    assert {event.phase for event in events} == {"validation"} and again.metrics == first.metrics
    other = dataclasses.replace(CONFIG, test="whole", test_scales=(0.5, 1.0), test_flip=True)
    score = score_finetune(loaded, data, other, 5, tmp_path)
    assert "times 0.5, 1, and mirrored, whole image" in score.card.resolution


def test_files_of_another_training_are_refused_with_what_differs(
    loaded: LoadedModel, data: LabelledSet, tmp_path: Path
) -> None:
    score_finetune(loaded, data, CONFIG, 5, tmp_path)
    with pytest.raises(DataError, match=r"of another training: lr 0\.01 \(now 0\.002\), weights '9be' \(now 'abc'\)"):
        other = dataclasses.replace(loaded, digest="abc")
        score_finetune(other, data, dataclasses.replace(CONFIG, lr=0.002), 5, tmp_path)
    with pytest.raises(DataError, match=r"seed 5 \(now 6\)"):
        score_finetune(loaded, data, CONFIG, 6, tmp_path)
    with pytest.raises(DataError, match=r"weights '9be' \(now 'with another config'\)"):
        score_finetune(dataclasses.replace(loaded, identity="with another config"), data, CONFIG, 5, tmp_path)


def test_labels_that_were_changed_in_place_are_another_training(
    loaded: LoadedModel, data: LabelledSet, tmp_path: Path
) -> None:
    mask = tmp_path / "mask.png"
    mask.write_bytes(read_bytes(data.train[0].labels))
    changed = (dataclasses.replace(data.train[0], labels=mask), *data.train[1:])
    data = dataclasses.replace(data, train=changed)
    score_finetune(loaded, data, CONFIG, 5, tmp_path / "out")
    write_id_png(mask, 1 - np.minimum(read_ids(mask), 1))
    with pytest.raises(DataError, match=r"of another training: training images '\w+' \(now '\w+'\)"):
        score_finetune(loaded, data, CONFIG, 5, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not whole", b"no such thing", bytes(100)], ids=len)
@pytest.mark.parametrize("name", ["checkpoint.pt", "segmenter.safetensors"])
def test_a_damaged_file_is_named_with_what_to_do(
    name: str, content: bytes, loaded: LoadedModel, data: LabelledSet, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} is damaged.*remove it"):
        score_finetune(loaded, data, CONFIG, 5, tmp_path)


@pytest.mark.parametrize(("name", "stop_at"), [("checkpoint.pt", 3), ("segmenter.safetensors", 0)])
def test_one_flipped_bit_is_found(
    name: str, stop_at: int, loaded: LoadedModel, data: LabelledSet, tmp_path: Path
) -> None:
    def stop(event: EvalEvent) -> None:
        if event.phase == "fine-tuning" and event.done == stop_at > 0:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        score_finetune(loaded, data, CONFIG, 5, tmp_path, stop)
    content = bytearray((tmp_path / name).read_bytes())
    whole = torch.load(tmp_path / name)["network"] if stop_at else load_file(str(tmp_path / name))
    content[content.find(whole["head.fusion.0.weight"].numpy().tobytes()) + 100] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} is damaged.*than when it was written.*remove it"):
        score_finetune(loaded, data, CONFIG, 5, tmp_path)


def test_unreadable_images_of_both_parts_make_the_score_incomplete(
    loaded: LoadedModel, data: LabelledSet, tmp_path: Path
) -> None:
    train, val = ([dataclasses.replace(item) for item in part[:3]] for part in (data.train, data.val))
    train[0] = dataclasses.replace(train[0], image=tmp_path / "gone.png")
    val[1] = dataclasses.replace(val[1], image=tmp_path / "lost.png")
    broken = dataclasses.replace(data, train=train, val=val)
    score = score_finetune(loaded, broken, CONFIG, 5, tmp_path / "out")
    assert not score.card.complete and score.card.frames == 2
    assert any("training" in text and "gone.png" in text for text in score.card.failed)
    assert any("lost.png" in text for text in score.card.failed)


@pytest.mark.parametrize("harm", ["large", "class"])
def test_labels_that_cannot_be_used_are_one_failed_image(
    loaded: LoadedModel, data: LabelledSet, tmp_path: Path, harm: str
) -> None:
    wrong = tmp_path / "wrong.png"
    size = cv2.imread(str(data.val[0].image)).shape[:2]
    wrong.write_bytes(png_of_size(40_000, 40_000))
    if harm == "class":
        cv2.imwrite(str(wrong), np.full(size, 200, np.uint8))
    parts = [[dataclasses.replace(part[0], labels=wrong), *part[1:3]] for part in (data.train, data.val)]
    score = score_finetune(loaded, dataclasses.replace(data, train=parts[0], val=parts[1]), CONFIG, 5, tmp_path / "out")
    assert score.card.frames == 2 and len(score.card.failed) == 2
    assert all("wrong.png" in text for text in score.card.failed)


def test_any_encoder_with_the_members_of_trainable_is_fine_tuned(data: LabelledSet, tmp_path: Path) -> None:
    class Plain:
        strides, channels = (8, 16), (5, 6)

        def __init__(self) -> None:
            self.module = _TwoMaps()

        def layer_of(self, name: str, by: str) -> int:
            return 0 if name.startswith("first") else 1

        def head_layer(self, by: str) -> int:
            return 2

        def set_drop_path(self, rate: float) -> None:
            self.rate = rate

    config = dataclasses.replace(CONFIG, levels=(3, 4))
    plain, other = (LoadedModel(model=Plain(), name="plain") for _ in range(2))  # type: ignore[arg-type]
    before = copy.deepcopy(plain.model.module.state_dict())  # type: ignore[attr-defined]
    score = score_finetune(plain, data, config, 0, tmp_path)
    assert score.metrics["pixel_accuracy"] > 0
    after = plain.model.module.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(before[name], after[name]) for name in before), "later evaluations are of the model itself"
    with pytest.raises(DataError, match=r"of another training: weights '\w+' \(now '\w+'\)"):
        score_finetune(other, data, config, 0, tmp_path)


class _TwoMaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 8, stride=8), nn.Conv2d(5, 6, 2, stride=2)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        first = self.first(image)
        return [first, self.second(first)]


def test_mirrored_and_scaled_predictions_are_averaged_at_the_images_size() -> None:
    network = _network(CONFIG).eval()
    image = np.repeat(np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8), 10, 0).repeat(10, 1)
    with torch.no_grad():  # every class wins somewhere
        network.head.classifier[1].bias -= network.label_logits(image_tensor(image)).mean((0, 2, 3))
    config = dataclasses.replace(CONFIG, test="whole", test_scales=(0.75, 1.25), test_flip=True)
    both = predict_labels(network, image, config)
    assert both.shape == (70, 90) and both.dtype == np.uint8 and len(np.unique(both)) > 1
    mirrored = predict_labels(network, np.ascontiguousarray(image[:, ::-1]), config)
    assert np.mean(mirrored[:, ::-1] == both) > 0.95


def test_a_prediction_that_is_not_finite_is_an_error_and_no_class() -> None:
    network = _network(CONFIG).eval()
    with torch.no_grad():
        network.head.classifier[1].bias[1] = float("nan")
    with pytest.raises(DataError, match=r"probabilities that are not finite; .*lower finetune\.lr"):
        predict_labels(network, np.zeros((70, 90, 3), np.uint8), CONFIG)


def test_the_constant_prediction_is_the_most_frequent_class() -> None:
    confusion = np.array([[1, 2, 0], [0, 4, 3], [1, 0, 0]])
    assert constant_prediction(confusion).tolist() == [[0, 3, 0], [0, 7, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"batch": 6, "micro_batch": 4}, "micro_batch"),
        ({"batch": 1}, "micro_batch"),
        ({"levels": (4, 3)}, "levels"),
        ({"levels": (4,)}, "levels"),
        ({"image_scale": (100, 200)}, "image_scale"),
        ({"steps": 100}, "warmup_steps"),
        ({"lr_decay": 0.0}, "lr_decay"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"test_scales": ()}, "test_scales"),
        ({"crop_px": (0, 5)}, "crop_px"),
        ({"workers": -1}, "workers"),
    ],
)
def test_settings_outside_their_range_are_refused_by_name(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=rf"finetune\..*{words}.*expected"):
        FinetuneConfig(**wrong)  # type: ignore[arg-type]


def test_a_set_brings_its_sizes_and_what_is_given_wins() -> None:
    assert FinetuneConfig(set="cityscapes").crop_px == (512, 1024)
    assert FinetuneConfig(set="voc2012").image_scale == (2048, 512)
    given = FinetuneConfig(set="cityscapes", crop_px=(64, 64))
    assert given.crop_px == (64, 64) and given.image_scale == (2048, 1024)
    assert dataclasses.replace(given, steps=2_000) == FinetuneConfig(set="cityscapes", crop_px=(64, 64), steps=2_000)


# --- real data, real kills -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano encoder with random weights."""
    config = ModelConfig(
        encoder=EncoderConfig(size="nano", stem_activation="gelu", init_std=0.0),
        flow=FlowConfig(width_factor=0.1),
        expander=ExpanderConfig(widths=(16, 16)),
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("nano")
    save(MCJEPA(config).state_dict(), config, folder, {})
    return folder


@pytest.mark.slow
def test_camvid_is_learned_from_random_weights(sample_data: Path, nano_folder: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(
        set="camvid",
        root=str(sample_data / "camvid/CamVid"),
        channels=32,
        steps=120,
        warmup_steps=10,
        lr=3e-3,
        batch=8,
        image_scale=(160, 120),
        crop_px=(96, 96),
        drop_path=0.0,
        workers=0,
        max_val=10,
    )
    settings = EvalConfig(finetune=config, device="cpu", threads=1)
    score = run_evaluation(nano_folder, settings, tmp_path)[0]
    lines = (tmp_path / "finetune/camvid/curve.csv").read_text().splitlines()[1:]
    losses = [float(line.split(",")[1]) for line in lines]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert score.metrics["miou"] > 2 * score.metrics["miou_majority"]
    assert score.metrics["pixel_accuracy"] > score.metrics["pixel_accuracy_majority"] + 15
    assert len(score.card.config["levels"]) == 4 and len(CAMVID_CLASSES) == 11


@pytest.mark.slow
@pytest.mark.e2e
def test_killed_command_goes_on_and_ends_with_the_same_network(
    sample_data: Path, nano_folder: Path, tmp_path: Path
) -> None:
    def command(out: str) -> list[str]:
        return [
            *(sys.executable, "-m", "mcjepa", "eval", "finetune", str(nano_folder)),
            *("--data", str(sample_data / "camvid/CamVid"), "--set", "camvid", "--out", str(tmp_path / out), "--json"),
            *("channels=16", "steps=12", "warmup_steps=2", "batch=4", "crop_px=[64,64]", "image_scale=[160,120]"),
            *("checkpoint_every=2", "workers=2", "max_val=2", "pictures=0"),
        ]

    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run(command("whole"), env=environment, check=True, capture_output=True, timeout=120)
    checkpoint = tmp_path / "killed/finetune/camvid/checkpoint.pt"
    child = subprocess.Popen(command("killed"), env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 90
    while not checkpoint.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and checkpoint.exists()
    subprocess.run(command("killed"), env=environment, check=True, capture_output=True, timeout=120)
    networks = [load_file(str(tmp_path / out / "finetune/camvid/segmenter.safetensors")) for out in ("whole", "killed")]
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])


@pytest.mark.slow
@pytest.mark.e2e
def test_command_trains_with_two_ranks_and_scores_once(sample_data: Path, nano_folder: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "mcjepa", "eval", "finetune", str(nano_folder), "--ranks", "2", "--json"),
        *("--data", str(sample_data / "camvid/CamVid"), "--set", "camvid", "--out", str(tmp_path)),
        *("channels=16", "steps=3", "warmup_steps=0", "batch=4", "crop_px=[64,64]", "image_scale=[160,120]"),
        *("checkpoint_every=2", "workers=0", "max_val=2", "pictures=0"),
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120, text=True)
    assert list(json.loads(done.stdout)) == ["finetune/camvid"]
    assert load_file(str(tmp_path / "finetune/camvid/segmenter.safetensors"))
    uneven = subprocess.run([*command, "batch=3"], env=environment, capture_output=True, timeout=120, text=True)
    assert uneven.returncode == 2 and "2 ranks share micro-batches of 3" in uneven.stderr


def test_label_maps_of_camvid_enter_as_they_are(sample_data: Path) -> None:
    """The reader's void and classes are what the loss sees."""
    item = SEGMENTATION_SETS["camvid"](sample_data / "camvid/CamVid", "train")[0]
    raw = cv2.imread(str(item.labels), cv2.IMREAD_UNCHANGED)
    labels = item.read()[1]
    assert set(np.unique(labels)) <= {*range(11), 255} and ((raw == 11) == (labels == 255)).all()
