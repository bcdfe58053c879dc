"""Other inputs and weights that may reveal a mistake, in the order in which they are tried.

Each changes at most the inputs and the weights of the model, and only serves to name what the user's proof lacks.
"""

from __future__ import annotations

import copy
import dataclasses
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from parity.carry.random_weights import value_of
from parity.recording.capture import torch_hooks
from parity.recording.inputs import Apply, positional

Arrays = tuple[np.ndarray, ...]

IDS, MASK, NUMBERS = "ids", "mask", "numbers"

WEIGHTS = "random weights, none of them 0 or 1 (parity.randomize)"


@dataclasses.dataclass(frozen=True)
class Remedy:
    """A model and inputs, and their description."""

    text: str
    model: torch.nn.Module
    arrays: Arrays


@dataclasses.dataclass(frozen=True)
class Remedies:
    """Remedies for one model and its inputs.

    Attributes:
        everything: Random weights and random inputs combined; a mistake that none of them reveals is the same function.
        single: One change each; inputs first, as they are easier to change than weights.
    """

    everything: tuple[Remedy, ...]
    single: tuple[Remedy, ...]


def remedies(model: torch.nn.Module, arrays: Arrays, apply: Apply = positional) -> Remedies:
    """Return the remedies to try for this model and these inputs."""
    kinds = [kind_of(x) for x in arrays]
    words = [vocabulary(model, arrays, i, apply) if kind == IDS else 0 for i, kind in enumerate(kinds)]
    changes: list[tuple[str, bool, Callable[[Arrays], Arrays]]] = [
        ("a mask with padding, of another length in each row", MASK in kinds, lambda a: _each(a, kinds, MASK, padded)),
        ("token ids that differ", IDS in kinds, lambda a: _ids(a, words)),
        ("token ids that end in padding (0)", IDS in kinds, lambda a: _padded_ids(a, words)),
        ("random numbers (another seed)", NUMBERS in kinds, lambda a: _each(a, kinds, NUMBERS, _random)),
        ("a batch of at least 4 different examples", True, lambda a: _larger(a, kinds, words)),
        ("a longer sequence", IDS in kinds, lambda a: _longer(a, kinds, words)),
        ("numbers whose mean is far from 0", NUMBERS in kinds, lambda a: _each(a, kinds, NUMBERS, _offset)),
    ]
    single = [Remedy(text, model, change(arrays)) for text, applies, change in changes if applies]
    strong = strengthened(model)
    several = f"{WEIGHTS}, and random inputs"
    everything = (
        Remedy(f"{several} in a batch of at least 4", strong, _everything(arrays, kinds, words, 4)),
        Remedy(several, strong, _everything(arrays, kinds, words, 1)),
    )
    return Remedies(everything, (*single, Remedy(WEIGHTS, strong, arrays)))


def _everything(arrays: Arrays, kinds: Sequence[str], words: Sequence[int], least: int) -> Arrays:
    """Draw all inputs again, with padding in masks, and padding (0) at the end of every second row of ids."""
    found = list(_each(_larger(arrays, kinds, words, least), kinds, MASK, padded))
    for x, kind in zip(found, kinds, strict=True):
        if kind == IDS and x.ndim > 1:
            x[1::2, -max(1, x.shape[-1] // 3) :] = 0
    return tuple(found)


def kind_of(array: np.ndarray) -> str:
    """Return whether an input holds token ids, a mask, or numbers."""
    values = np.unique(array) if array.size else array
    flags = array.dtype == np.bool_ or (array.ndim > 1 and bool(np.isin(values, (0, 1)).all()) and _flat(array))
    if flags:
        return MASK
    return IDS if np.issubdtype(array.dtype, np.integer) else NUMBERS


def _flat(array: np.ndarray) -> bool:
    """Return whether an array of zeros and ones may be a mask: integers, or not all zero (an image of zeros)."""
    return np.issubdtype(array.dtype, np.integer) or bool(array.any())


def vocabulary(model: torch.nn.Module, arrays: Arrays, index: int, apply: Apply = positional) -> int:
    """Return the size of the embedding that reads this input, or by default its largest id plus one."""
    sizes: list[int] = []
    modules = dict(model.named_modules())

    def before(key: tuple[str, int], tensors: list[torch.Tensor]) -> None:
        module = modules[key[0]]
        if isinstance(module, torch.nn.Embedding) and np.array_equal(tensors[0].numpy(), arrays[index]):
            sizes.append(module.num_embeddings)

    with torch_hooks(model, before, lambda key, tensors: None), torch.no_grad():
        apply(model, [torch.from_numpy(np.array(x)) for x in arrays])
    return min(sizes, default=int(arrays[index].max(initial=0)) + 1)


def strengthened(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy with all parameters (also frozen) and running statistics drawn as by `parity.randomize`."""
    strong = copy.deepcopy(model)
    with torch.no_grad():
        for name, x in [*strong.named_parameters(), *strong.named_buffers()]:
            drawn = isinstance(x, torch.nn.Parameter) or name.endswith(("running_mean", "running_var"))
            if drawn and x.is_floating_point():
                z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(x.shape))
                x.copy_(torch.from_numpy(np.asarray(value_of(name, np.asarray(z)), np.float32)))
    return strong


def neutral(module: torch.nn.Module) -> list[str]:
    """Describe the module's own parameters that are constant, whose elements cannot be distinguished."""
    own = [(name, x.detach()) for name, x in module.named_parameters(recurse=False) if x.numel()]
    return [f"{name} all {x.flatten()[0].item():g}" for name, x in own if bool((x == x.flatten()[0]).all())]


def _draw(shape: Sequence[int], seed: int = 0) -> np.random.RandomState:
    return np.random.RandomState((zlib.crc32(repr(tuple(shape)).encode()) + seed) % 2**32)


def _each(arrays: Arrays, kinds: Sequence[str], kind: str, change: Callable[[np.ndarray], np.ndarray]) -> Arrays:
    return tuple(change(x) if k == kind else x for x, k in zip(arrays, kinds, strict=True))


def padded(mask: np.ndarray) -> np.ndarray:
    """Return the mask with padding at the end of its last axis, of increasing length from row to row."""
    new, length = np.array(mask), mask.shape[-1]
    usual = mask.flat[0]
    other = np.array(not usual).astype(mask.dtype)
    new[...] = usual
    for i, row in enumerate(new.reshape(len(new), -1, length)):
        row[:, max(1, length - 1 - i % max(length - 1, 1)) :] = other
    return new


def _random(x: np.ndarray) -> np.ndarray:
    return np.asarray(_draw(x.shape).standard_normal(x.shape), np.float32).astype(np.float64)


def _offset(x: np.ndarray) -> np.ndarray:
    return np.asarray(_random(x) + 300, np.float32).astype(np.float64)


def _ids(arrays: Arrays, words: Sequence[int]) -> Arrays:
    return tuple(_words(x.shape, n, x.dtype) if n else x for x, n in zip(arrays, words, strict=True))


def _words(shape: Sequence[int], count: int, dtype: np.dtype) -> np.ndarray:
    return _draw(shape).randint(0, max(count, 1), shape).astype(dtype)


def _padded_ids(arrays: Arrays, words: Sequence[int]) -> Arrays:
    found = []
    for x, n in zip(_ids(arrays, words), words, strict=True):
        if n and x.ndim:
            x[..., -max(1, x.shape[-1] // 3) :] = 0
        found.append(x)
    return tuple(found)


def _larger(arrays: Arrays, kinds: Sequence[str], words: Sequence[int], least: int = 4) -> Arrays:
    """Draw every input with the common batch size again, with at least `least` examples."""
    first = next((len(x) for x in arrays if x.ndim), 0)
    count = max(first, least)
    return tuple(
        _again(x, (count, *x.shape[1:]), kind, n) if x.ndim and len(x) == first else x
        for x, kind, n in zip(arrays, kinds, words, strict=True)
    )


def _longer(arrays: Arrays, kinds: Sequence[str], words: Sequence[int]) -> Arrays:
    """Draw token ids, and inputs with the same length in the second axis, with twice that length."""
    length = next(x.shape[1] for x, kind in zip(arrays, kinds, strict=True) if kind == IDS and x.ndim > 1)
    return tuple(
        _again(x, (len(x), 2 * length, *x.shape[2:]), kind, n) if x.ndim > 1 and x.shape[1] == length else x
        for x, kind, n in zip(arrays, kinds, words, strict=True)
    )


def _again(x: np.ndarray, shape: tuple[int, ...], kind: str, words: int) -> np.ndarray:
    if kind == IDS:
        return _words(shape, words, x.dtype)
    if kind == MASK:
        return np.resize(x, shape)
    return _random(np.empty(shape))
