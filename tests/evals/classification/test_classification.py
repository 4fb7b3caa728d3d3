"""Image classification on frozen features: neighbours against scikit-learn, the head, the cache, real photos."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.classification.features import PooledFeatureCache, PooledFeatures, pool
from mcjepa.evals.classification.heads import feature_statistics, hold_out, knn_predictions, train_linear
from mcjepa.evals.classification.images import prepare, read_class_folders
from mcjepa.evals.classification.results import confusion
from mcjepa.evals.classification.score import score_classify
from mcjepa.evals.classification.settings import ClassifyConfig
from mcjepa.evals.models import EvalModel, LoadedModel
from mcjepa.evals.progress import EvalEvent
from mcjepa.evals.run import run_evaluation
from mcjepa.evals.settings import EvalConfig

CONFIG = ClassifyConfig(workers=0, encode_batch=5, linear_epochs=30, linear_batch=16, pictures=2)
Foreign = Callable[..., EvalModel]


def _features(count: int, classes: int, seed: int, channels: int = 12, spread: float = 1.0) -> PooledFeatures:
    """Gaussian clouds, the same centres whatever the seed."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(99).normal(size=(classes, channels))
    table = (centres[labels] + spread * rng.normal(size=(count, channels))).astype(np.float32)
    return PooledFeatures(table=table, rows=np.arange(count), labels=labels, failed=())


# --- nearest neighbours --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 10, 20, 60])
def test_votes_are_those_of_scikit_learns_neighbours(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcjepa.evals.classification.heads.TRAIN_BLOCK", 7)  # merging blocks must not show
    monkeypatch.setattr("mcjepa.evals.classification.heads.QUERY_BLOCK", 9)
    train, val = _features(60, 8, 0), _features(40, 8, 1)
    found = knn_predictions(train, val, 8, [k], 0.07)[k]
    weights: Callable[[NDArray], NDArray] = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731
    judge = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
    judge.fit(train.table.astype(np.float64), train.labels)
    assert np.array_equal(found[:, 0], judge.predict(val.table.astype(np.float64)))
    shares = judge.predict_proba(val.table.astype(np.float64))
    for row, answers in zip(shares, found, strict=True):
        voted = [answer for answer in answers if answer >= 0]
        assert len(voted) == min(5, np.count_nonzero(row))
        assert np.allclose(row[voted], np.sort(row)[::-1][: len(voted)], atol=1e-5)


def test_smaller_k_is_the_beginning_of_the_larger() -> None:
    train, val = _features(30, 3, 0), _features(10, 3, 1)
    both = knn_predictions(train, val, 3, [5, 30], 0.07)
    assert np.array_equal(both[5], knn_predictions(train, val, 3, [5], 0.07)[5])
    assert both[5].shape == (10, 3)


def test_small_temperatures_leave_the_vote_to_the_nearest() -> None:
    """exp(s / T) of single precision overflows below T = 0.011; scikit-learn's one neighbour has no temperature."""
    train, val = _features(60, 8, 0), _features(40, 8, 1)
    judge = KNeighborsClassifier(1, metric="cosine", algorithm="brute")
    expected = judge.fit(train.table, train.labels).predict(val.table)
    for temperature in (1e-5, 1e-40):
        found = knn_predictions(train, val, 8, [20], temperature)[20]
        assert np.array_equal(found[:, 0], expected)
        assert (found >= 0).sum() == (knn_predictions(train, val, 8, [20], 1.0)[20] >= 0).sum()  # no vote vanishes


def test_features_that_are_not_finite_are_an_error_and_no_low_score(tmp_path: Path) -> None:
    class Broken(_Blind):
        def features(self, image_B3HW: Tensor) -> list[Tensor]:
            return [level.masked_fill(level == 1, float("nan")) for level in super().features(image_B3HW)]

    data = read_class_folders(_folders(tmp_path / "set", {"train/a": 2, "train/b": 2, "val/a": 1}))
    config = dataclasses.replace(CONFIG, linear=False)
    with pytest.raises(DataError, match=r"features of a/0\.png are not finite; expected numbers"):
        score_classify(
            LoadedModel(model=Broken(), name="m"), data, config, 0, tmp_path / "results/classify/imagefolder"
        )


# --- the linear head -----------------------------------------------------------------------------------------------


def test_head_is_about_as_good_as_scikit_learns_logistic_regression() -> None:
    train, val = _features(300, 6, 0, spread=1.2), _features(300, 6, 1, spread=1.2)
    ours = train_linear(train, 6, CONFIG, seed=0)
    theirs = LogisticRegression(max_iter=500).fit(train.table, train.labels)
    accuracy = (ours.predict(val)[:, 0] == val.labels).mean()
    assert accuracy > 0.7 and accuracy > theirs.score(val.table, val.labels) - 0.03
    assert ours.chosen_on == 30 and ours.lr in CONFIG.linear_lrs


def test_head_repeats_itself_and_a_diverging_rate_is_not_chosen() -> None:
    train = _features(60, 3, 0)
    config = dataclasses.replace(CONFIG, linear_lrs=(0.05, 1e38))
    first, again = (train_linear(train, 3, config, seed=4) for _ in range(2))
    assert first.lr == 0.05 and torch.equal(first.head.weight, again.head.weight)
    other = train_linear(train, 3, config, seed=5)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_equal_hits_on_the_held_out_images_are_decided_by_their_loss() -> None:
    train = _features(24, 2, 0, spread=0.1)  # easy: every rate gets them all right
    assert train_linear(train, 2, dataclasses.replace(CONFIG, linear_lrs=(1e-3, 0.1)), seed=0).lr == 0.1


def test_rates_that_all_diverge_are_an_error() -> None:
    config = dataclasses.replace(CONFIG, linear_lrs=(1e38,))
    with pytest.raises(DataError, match=r"not finite at any of .*classify\.linear_lrs"):
        train_linear(_features(60, 3, 0), 3, config, seed=0)


def test_classes_of_one_image_leave_the_choice_to_the_training_loss() -> None:
    train = _features(7, 7, 0)
    result = train_linear(train, 7, CONFIG, seed=0)
    assert result.chosen_on == 0
    assert (result.predict(train)[:, 0] == train.labels).all()


def test_part_of_every_class_is_held_out_but_never_all_of_it() -> None:
    labels = np.array([0] * 20 + [1] * 2 + [2])
    rest, held = hold_out(labels, 0.1, seed=3)
    assert sorted([*rest, *held]) == list(range(23))
    assert np.bincount(labels[held], minlength=3).tolist() == [2, 1, 0]


def test_statistics_are_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcjepa.evals.classification.heads.BLOCK", 7)
    features = _features(40, 3, 0)
    features.table[:, 2] = 5.0
    mean, std = feature_statistics(features)
    np.testing.assert_allclose(mean.numpy(), features.table.mean(0), atol=1e-5)
    assert std[2] == 1.0
    np.testing.assert_allclose(np.delete(std.numpy(), 2), np.delete(features.table.std(0), 2), atol=1e-5)


def test_confusion_counts_truth_in_rows() -> None:
    found = confusion(np.array([0, 0, 1, 2]), np.array([0, 2, 1, 0]), 3)
    assert found.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]


# --- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(300, 500), (500, 300), (256, 256), (100, 131)])
def test_picture_is_the_central_square_of_the_resized_image(height: int, width: int) -> None:
    across = np.linspace(0, 255, width).astype(np.uint8)
    image = np.repeat(np.broadcast_to(across, (height, width))[..., None], 3, axis=2)
    seen = prepare(np.ascontiguousarray(image), CONFIG)
    assert seen.shape == (224, 224, 3)
    middle = seen[112, 111:113, 0].astype(float).mean()
    assert middle == pytest.approx(127.5, abs=2)  # the centre stays the centre
    share = 224 / (256 * max(1, width / height))
    assert float(seen[112, -1, 0]) - float(seen[112, 0, 0]) == pytest.approx(255 * share, rel=0.03)


def _folders(root: Path, layout: dict[str, int], size: tuple[int, int] = (80, 60)) -> Path:
    rng = np.random.default_rng(0)
    for folder, count in layout.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            PillowImage.fromarray(pixels).save(root / folder / f"{index}.png")
    return root


def test_classes_are_the_training_folders_by_name_and_caps_are_evenly_spaced(tmp_path: Path) -> None:
    root = _folders(tmp_path, {"train/b": 2, "train/a": 3, "train/c": 1, "val/c": 2, "val/a": 1})
    data = read_class_folders(root)
    assert data.classes == ("a", "b", "c")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 2] and data.val.labels.tolist() == [0, 2, 2]
    assert data.val.names[1] == "c/0.png"
    assert len(read_class_folders(root, max_train=4).train) == 4


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({"train/a": 1, "train/b": 1, "val/a": 1, "val/x": 1, "val/y": 2}, r"2 classes that train lacks \(x, y\)"),
        ({"train/a": 1, "val/a": 1}, "one class"),
        ({"train/a": 1, "train/b": 1}, "val does not exist"),
        ({"train/a": 1, "train": 2, "train/b": 1, "val/a": 1}, r"2 images beside its class folders \(0.png, …\)"),
    ],
)
def test_folders_that_do_not_fit_are_refused(layout: dict[str, int], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read_class_folders(_folders(tmp_path, layout))


def test_pooling_leaves_the_padding_out_and_concatenates_finest_first(foreign_model: Foreign) -> None:
    images = torch.rand(2, 3, 224, 224)
    found = pool(foreign_model(), images, (6, 3))
    assert found.shape == (2, 12)
    torch.testing.assert_close(found[:, :3], images.mean((2, 3)))  # level 3: whole cells only
    padded = torch.nn.functional.pad(images, (0, 32, 0, 32), mode="replicate").mean((2, 3))
    torch.testing.assert_close(found[:, 6:9], padded)  # level 6: the last cells are half padding


# --- the whole -----------------------------------------------------------------------------------------------------


def _count_calls(model: EvalModel) -> int:
    return len(model.sizes)  # type: ignore[attr-defined]


def test_score_of_real_photos_tells_its_protocol_and_the_second_run_encodes_nothing(
    sample_data: Path, tmp_path: Path, foreign_model: Foreign
) -> None:
    data = read_class_folders(sample_data / "hymenoptera_data")
    model = foreign_model()
    loaded = LoadedModel(model=model, name="m", digest="9be", random_model=_Blind())
    events: list[EvalEvent] = []
    out = tmp_path / "results/classify/imagefolder"
    score = score_classify(loaded, data, CONFIG, 3, out, events.append)
    assert score.name == "classify/imagefolder" and score.card.complete and score.card.frames == 16
    assert {"knn10_top1", "knn20_top1", "linear_top1", "linear_top1_majority"} <= set(score.metrics)
    assert "knn100_top1" not in score.metrics and "[100, 200] left out" in score.card.head
    assert not any("top5" in name for name in score.metrics)  # two classes
    assert score.metrics["linear_top1_majority"] == score.metrics["knn20_top1_random"] == 50.0
    assert [row["class"] for row in score.table] == ["ants", "bees"] and score.table[0]["val_images"] == 8
    assert {event.phase for event in events} == {"encode training", "encode validation", "neighbours", "head"}
    with (out / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    right = sum(row["truth"] == row["linear"] for row in rows)
    assert len(rows) == 16 and score.metrics["linear_top1"] == pytest.approx(100 * right / 16)
    with (out / "confusion-linear.csv").open() as stream:
        table = list(csv.reader(stream))
    assert table[0] == ["truth", "ants", "bees"] and int(table[1][1]) + int(table[2][2]) == right
    assert all(picture.path.is_file() and len(picture.columns) <= 2 for picture in score.pictures)
    calls = _count_calls(model)
    again = score_classify(loaded, data, CONFIG, 3, out)
    assert again.metrics == score.metrics and _count_calls(model) == calls == 11
    assert len(list((tmp_path / "pooled-features").glob("*.npy"))) == 4
    other = dataclasses.replace(CONFIG, resize_px=240, random_baseline=False, keep_features=False)
    score_classify(loaded, data, other, 3, out)
    assert _count_calls(model) == 2 * calls
    assert len(list((tmp_path / "pooled-features").glob("*.npy"))) == 4


class _Blind:
    """Features that say nothing."""

    def features(self, image_B3HW: Tensor) -> list[Tensor]:
        batch, _, height, width = image_B3HW.shape
        return [torch.ones(batch, 2, height // 2**level, width // 2**level) for level in range(1, 7)]

    def flow(self, frame0_B3HW: Tensor, frame1_B3HW: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.mark.slow
def test_neighbours_of_300_imagenet_photos_are_those_of_scikit_learn(
    sample_data: Path, tmp_path: Path, foreign_model: Foreign
) -> None:
    """One photo a class: here the hundred-thousands of the WordNet id are the classes, every other photo is val."""
    photos = sorted((sample_data / "imagenet/train").glob("*/*.JPEG"))
    for index, photo in enumerate(photos):
        folder = tmp_path / "set" / ("val" if index % 2 else "train") / photo.parent.name[:3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / photo.name).symlink_to(photo)
    data = read_class_folders(tmp_path / "set")
    config = dataclasses.replace(CONFIG, encode_batch=32, levels=(4, 6), linear_epochs=5)
    cache = PooledFeatureCache(folder=tmp_path, model="9be")
    train, val = (cache.features(foreign_model(), images, config) for images in (data.train, data.val))
    assert len(train) + len(val) == len(photos) == 300 and train.channels == 12
    found = knn_predictions(train, val, len(data.classes), [20], 0.07)[20]
    weights: Callable[[NDArray], NDArray] = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731
    judge = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=weights)
    judge.fit(np.asarray(train.table, np.float64), train.labels)
    agreement = (found[:, 0] == judge.predict(np.asarray(val.table, np.float64))).mean()
    assert agreement >= 0.98  # single precision may turn a near tie
    loaded = LoadedModel(model=foreign_model(), name="m", digest="9be")
    score = score_classify(loaded, data, config, 0, tmp_path / "results/classify/imagefolder")
    if len(data.classes) > 5:
        assert score.metrics["knn20_top5"] >= score.metrics["knn20_top1"]


def test_corrupt_photo_is_named_and_found_again_when_it_is_mended(tmp_path: Path, foreign_model: Foreign) -> None:
    root = _folders(tmp_path / "set", {"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 2})
    hurt = root / "val/b/1.png"
    whole = hurt.read_bytes()
    hurt.write_bytes(whole[:20] + bytes(len(whole) - 20))  # the same length: the list of files stays the same
    data = read_class_folders(root)
    loaded = LoadedModel(model=foreign_model(), name="m", digest="9be")
    out = tmp_path / "results/classify/imagefolder"
    for _ in range(2):  # encoded, then from the cache
        score = score_classify(loaded, data, CONFIG, 0, out)
        assert not score.card.complete and score.card.frames == 3
        assert score.card.failed[0].startswith("val/b/1.png: ") and "not a readable image" in score.card.failed[0]
    hurt.write_bytes(whole)
    assert score_classify(loaded, data, CONFIG, 0, out).card.frames == 4


def test_an_image_replaced_by_one_as_long_is_encoded_again(tmp_path: Path) -> None:
    root = _folders(tmp_path, {"train/a": 1, "train/b": 1, "val/a": 1})
    before = read_class_folders(root)
    changed = root / "val/a/0.png"
    os.utime(changed, (changed.stat().st_mtime + 1,) * 2)  # as writing other bytes a second later leaves it
    after = read_class_folders(root)
    assert after.train.digest == before.train.digest and after.val.digest != before.val.digest


def test_split_without_a_readable_photo_is_refused(tmp_path: Path, foreign_model: Foreign) -> None:
    root = _folders(tmp_path / "set", {"train/a": 1, "train/b": 1, "val/a": 1})
    (root / "val/a/0.png").write_bytes(b"no picture")
    loaded = LoadedModel(model=foreign_model(), name="m", digest="9be")
    with pytest.raises(DataError, match=r"a/0\.png \(10 bytes\) is not a readable image; expected JPEG"):
        score_classify(loaded, read_class_folders(root), CONFIG, 0, tmp_path / "results/classify/imagefolder")


def test_interrupted_encoding_leaves_nothing_half(tmp_path: Path, foreign_model: Foreign) -> None:
    root = _folders(tmp_path / "set", {"train/a": 8, "train/b": 8, "val/a": 1})
    data = read_class_folders(root)

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    cache = PooledFeatureCache(folder=tmp_path / "cache", model="9be")
    with pytest.raises(KeyboardInterrupt):
        cache.features(foreign_model(), data.train, CONFIG, stop)
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(cache.features(foreign_model(), data.train, CONFIG)) == 16


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_truncated_features_are_encoded_again(suffix: str, tmp_path: Path, foreign_model: Foreign) -> None:
    data = read_class_folders(_folders(tmp_path / "set", {"train/a": 2, "train/b": 2, "val/a": 1}))
    cache = PooledFeatureCache(folder=tmp_path / "cache", model="9be")
    table = np.array(cache.features(foreign_model(), data.train, CONFIG).table)
    file = next((tmp_path / "cache").glob(f"*{suffix}"))
    file.write_bytes(file.read_bytes()[:-30])
    assert np.array_equal(cache.features(foreign_model(), data.train, CONFIG).table, table)


def test_workers_change_nothing(tmp_path: Path, foreign_model: Foreign) -> None:
    data = read_class_folders(_folders(tmp_path / "set", {"train/a": 8, "train/b": 8, "val/a": 1}))
    tables = []
    for workers in (0, 2):
        cache = PooledFeatureCache(folder=tmp_path / str(workers), model="9be")
        config = dataclasses.replace(CONFIG, workers=workers)
        tables.append(cache.features(foreign_model(), data.train, config).table)
    assert np.array_equal(*tables)


def test_our_weights_are_scored_from_settings_and_written(
    sample_data: Path, weights_folder: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, root=str(sample_data / "hymenoptera_data"), levels=(5, 6), linear_epochs=5)
    settings = EvalConfig(classify=config, seed=1, device="cpu", threads=1)
    score = run_evaluation(weights_folder, settings, tmp_path / "a")[0]
    assert score.card.lineage["step"] == 7 and "linear_top1_random" in score.metrics
    listed = json.loads((tmp_path / "a/scores.json").read_text())["scores"][0]
    assert listed["metrics"] == score.metrics and (tmp_path / "a/classify/imagefolder/items.csv").is_file()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"levels": (0,)}, "levels"),
        ({"crop_px": 300}, "crop_px"),
        ({"knn_k": ()}, "knn_k"),
        ({"knn_temperature": 0.0}, "knn_temperature"),
        ({"linear_lrs": (0.0,)}, "linear_lrs"),
        ({"linear_holdout": 1.0}, "linear_holdout"),
        ({"encode_batch": 0}, "encode_batch"),
        ({"workers": -1}, "workers"),
    ],
)
def test_settings_outside_their_range_are_refused_by_name(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=rf"classify\.{words}.*expected"):
        ClassifyConfig(**wrong)  # type: ignore[arg-type]
