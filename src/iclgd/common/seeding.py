"""Every random number comes from a named stream of a seed, and from nowhere else."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def _entropy(name: str, seed: int) -> list[int]:
    return [seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")]


def numpy_stream(name: str, seed: int) -> np.random.Generator:
    """A generator that depends on `name` and `seed` alone; streams of different names are independent."""
    return np.random.default_rng(_entropy(name, seed))


def torch_stream(name: str, seed: int) -> torch.Generator:
    """The same for torch, on the CPU, so that every device sees the same numbers."""
    import torch

    state = np.random.SeedSequence(_entropy(name, seed)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def another(choice: int, count: int, stream: np.random.Generator) -> int:
    """One of `range(count)` other than `choice`, each as likely."""
    return (choice + 1 + int(stream.integers(count - 1))) % count


def shuffled(length: int, seed: int) -> list[int]:
    """A seeded order of `range(length)`: that of `datasets.Dataset.shuffle(seed)`, which the papers' code used."""
    return np.random.default_rng(seed).permutation(length).tolist()


def permuted(length: int, seed: int, permutation: int) -> list[int]:
    """The order of `range(length)` that the papers' code calls `permutation`: 0 is as drawn, p > 0 a seeded order.

    Drawn as there (numpy's legacy generator, the p-th of its orders), so that published (seed, permutation) pairs name
    the same demonstrations in the same order.
    """
    if permutation == 0:
        return list(range(length))
    legacy = np.random.RandomState(seed)
    for _ in range(permutation):
        legacy.permutation(length)
    return legacy.permutation(length).tolist()
