"""Work on a row of items in three stages that overlap: threads load ahead, one thread computes, threads finish.

numpy, OpenCV and file reading leave Python's lock, so threads use all cores. Results come in the items' order, and
every stage sees one item at a time: what comes out does not depend on the number of threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import cv2

from mcjepa.data_prep.errors import DataError

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Computed = TypeVar("Computed")
Result = TypeVar("Result")
Given = TypeVar("Given")
Made = TypeVar("Made")

ITEM_ERRORS = (DataError, OSError, ValueError, cv2.error)
"""What spoils one item; anything else ends the work."""


@dataclass(frozen=True)
class Failure:
    """Why an item has no result."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Stages(Generic[Item, Loaded, Computed, Result]):
    """What is done with an item, one after the other."""

    load: Callable[[Item], Loaded]
    """In a thread, ahead of the others."""

    compute: Callable[[Loaded], Computed]
    """In the caller's thread, in the items' order: the model."""

    finish: Callable[[Computed], Result]
    """In a thread."""


def run_overlapped(
    items: Sequence[Item], stages: Stages[Item, Loaded, Computed, Result], workers: int
) -> Iterator[Result | Failure]:
    """The results in the items' order; one that meets an error of ITEM_ERRORS gives a `Failure` instead.

    At most `workers` + 1 items are loaded ahead and as many are being finished, so memory does not grow with the set.
    OpenCV runs single-threaded inside: items are spread over the cores instead, and DIS flow, which depends on the
    number of threads, is the same everywhere.

    Args:
        items: what to work on.
        stages: how.
        workers: threads; 0 = one for each core that this process may use.
    """
    count = workers or len(os.sched_getaffinity(0))
    ahead = count + 1
    feed = iter(items)
    with _one_opencv_thread(), ThreadPoolExecutor(count, thread_name_prefix="flow") as pool:
        try:
            loading = deque(pool.submit(_attempt, stages.load, item) for item in islice(feed, ahead))
            finishing: deque[Future[Result | Failure]] = deque()
            while loading:
                computed = _attempt(stages.compute, loading.popleft().result())
                loading.extend(pool.submit(_attempt, stages.load, item) for item in islice(feed, 1))
                finishing.append(pool.submit(_attempt, stages.finish, computed))
                while finishing and (finishing[0].done() or len(finishing) > ahead):
                    yield finishing.popleft().result()
            while finishing:
                yield finishing.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _attempt(work: Callable[[Given], Made], given: Given | Failure) -> Made | Failure:
    if isinstance(given, Failure):
        return given
    try:
        return work(given)
    except ITEM_ERRORS as error:
        return Failure(" ".join(str(error).split()))


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
