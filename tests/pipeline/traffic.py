"""Counts what a step reads on the host and says to other ranks, by the part of the program that asks."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

PARTS = ("deepspeed", "pipeline", "model")


class Traffic:
    """While it is held: host reads, collectives, and bytes of what ranks get from them (of lists, of all of it)."""

    READS = ("item", "tolist", "__bool__", "__float__")
    COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast", "reduce")

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.collectives: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.calls: list[tuple[str, str, int]] = []
        self._patched: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Traffic:
        for owner, names, counted in (
            (torch.Tensor, self.READS, self._read), (torch.distributed, self.COLLECTIVES, self._collective),
        ):  # fmt: skip
            for name in names:
                self._patched.append((owner, name, getattr(owner, name)))
                setattr(owner, name, counted(name, getattr(owner, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, original in self._patched:
            setattr(owner, name, original)

    def _read(self, _name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.reads[_asker()] += 1
            return original(*args, **kwargs)

        return call

    def _collective(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            asker, got = _asker(), args[0] if args else next(iter(kwargs.values()))
            size = sum(x.nbytes for x in got) if isinstance(got, list) else got.nbytes
            self.collectives[asker] += 1
            self.bytes[asker] += size
            self.calls.append((asker, name, size))
            return original(*args, **kwargs)

        return call


def _asker() -> str:
    """The part of the program that called what calls this."""
    path = sys._getframe(2).f_code.co_filename
    return next((part for part in PARTS if f"/{part}/" in path), "torch")
