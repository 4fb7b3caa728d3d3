"""Overlapped work: order, failures in their place, bounded memory, and nothing left behind."""

from __future__ import annotations

import threading
import time

import cv2
import numpy as np
import pytest

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.flow.methods import flow_baseline
from mcjepa.evals.flow.overlap import Failure, Stages, run_overlapped


def _slow_square(value: int) -> int:
    time.sleep(0.002 * (7 * value % 5))
    return value * value


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_items_order_however_long_each_takes(workers: int) -> None:
    main = threading.get_ident()
    seen: list[int] = []

    def compute(value: int) -> int:
        assert threading.get_ident() == main
        seen.append(value)
        return value + 1

    stages = Stages(load=_slow_square, compute=compute, finish=_slow_square)
    assert list(run_overlapped(range(20), stages, workers)) == [(n * n + 1) ** 2 for n in range(20)]
    assert seen == [n * n for n in range(20)]


@pytest.mark.parametrize("stage", ["load", "compute", "finish"])
def test_an_item_that_fails_in_any_stage_leaves_the_others_alone(stage: str) -> None:
    def spoil(value: int) -> int:
        if value == 2:
            raise DataError("two\nlines")
        return value

    works = {name: spoil if name == stage else (lambda value: value) for name in ("load", "compute", "finish")}
    results = list(run_overlapped(range(5), Stages(**works), 2))
    assert results == [0, 1, Failure("two lines"), 3, 4]


def test_an_error_that_is_not_an_items_own_ends_the_work() -> None:
    stages = Stages(load=lambda value: 1 // value, compute=lambda value: value, finish=lambda value: value)
    with pytest.raises(ZeroDivisionError):
        list(run_overlapped([1, 1, 0, 1], stages, 2))


def test_few_items_are_on_their_way_at_once_even_if_the_reader_is_slow() -> None:
    lock, loaded, finished, most = threading.Lock(), 0, 0, 0

    def load(value: int) -> int:
        nonlocal loaded, most
        with lock:
            loaded += 1
            most = max(most, loaded - finished)
        return value

    def finish(value: int) -> int:
        nonlocal finished
        time.sleep(0.003)
        with lock:
            finished += 1
        return value

    stages = Stages(load=load, compute=lambda value: value, finish=finish)
    for _ in run_overlapped(range(60), stages, 2):
        time.sleep(0.001)
    assert loaded == 60 and most <= 2 * (2 + 1) + 1


def test_stopping_early_leaves_no_thread_and_opencv_as_it_was() -> None:
    before, threads = cv2.getNumThreads(), threading.active_count()
    stages = Stages(load=lambda value: value, compute=lambda value: value, finish=lambda value: cv2.getNumThreads())
    results = run_overlapped(range(1000), stages, 2)
    assert next(results) == 1
    results.close()  # type: ignore[attr-defined]
    assert cv2.getNumThreads() == before and threading.active_count() == threads


def test_dis_flow_does_not_depend_on_the_number_of_threads() -> None:
    random = np.random.default_rng(3)
    pictures = [cv2.GaussianBlur(random.integers(0, 256, (160, 200, 3), np.uint8), (0, 0), 3) for _ in range(4)]
    method = flow_baseline("dis-medium")
    flows = []
    for workers in (1, 2, 4):
        stages = Stages(
            load=lambda index: (pictures[index], pictures[index + 1]),
            compute=lambda pair: pair,
            finish=lambda pair: method(*pair),
        )
        flows.append(np.stack(list(run_overlapped(range(3), stages, workers))))
    assert np.array_equal(flows[0], flows[1]) and np.array_equal(flows[0], flows[2])
