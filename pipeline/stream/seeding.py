"""Seeds and permutations that depend on their words alone: the same on every machine, process and numpy.

    mix64(w0, w1, ...)          one 64-bit number out of integers and names
    seeded_permutation(n, ...)  the order of n hashed positions

Both rest on splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), a
bijection of 64-bit integers. numpy's own `permutation` may change with a version; these cannot, so that a
resumed run keeps its order after an upgrade.
"""

from __future__ import annotations

import functools
import hashlib
import random

import numpy as np

_MASK = (1 << 64) - 1
_GAMMA, _MULTIPLIER_1, _MULTIPLIER_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def splitmix64(value: int) -> int:
    """One output of splitmix64 for the state `value`, in [0, 2^64)."""
    value = (value + _GAMMA) & _MASK
    value = ((value ^ (value >> 30)) * _MULTIPLIER_1) & _MASK
    value = ((value ^ (value >> 27)) * _MULTIPLIER_2) & _MASK
    return value ^ (value >> 31)


def mix64(*words: int | str) -> int:
    """A 64-bit seed out of integers and names; another order or another count of words gives another seed."""
    state = len(words)
    for word in words:
        state = splitmix64(state ^ _as_integer(word))
    return state


def seeded_permutation(length: int, *words: int | str) -> np.ndarray:
    """A permutation of 0 .. length - 1, int64, that depends on `length` and `words` only."""
    keys = np.arange(length, dtype=np.uint64) + np.uint64(mix64(*words))  # wraps around, as splitmix64 does
    keys += np.uint64(_GAMMA)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(_MULTIPLIER_1)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(_MULTIPLIER_2)
    keys ^= keys >> np.uint64(31)
    return np.argsort(keys, kind="stable")


def seeded_random(*words: int | str) -> random.Random:
    """A generator for one sample's draws; only its `random()` is promised stable between Python versions."""
    return random.Random(mix64(*words))


def _as_integer(word: int | str) -> int:
    if isinstance(word, int):
        return word & _MASK
    return _hash_name(word)


@functools.lru_cache(maxsize=256)
def _hash_name(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
