"""What a port is asked: weights and inputs drawn after its file was read, and what PyTorch computes with them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from parity.carry.arrays import to_numpy
from parity.carry.copies import torch_copy
from parity.carry.dtypes import as_xla_rounds
from parity.carry.ledger import identity
from parity.carry.random_weights import value_of
from parity.precision.by_design import Design
from parity.precision.casts import Cast
from parity.precision.wide_torch import wide
from parity.recording.inputs import Apply, Arguments, Inputs
from parity.runs.torch_side import TorchSide
from parity.verify.arrays import named
from parity.verify.run import UnjudgeableError
from parity.verify.spec import Spec

PERTURBED = 0.1
"""Size of the change of a weight, relative to the root mean square of its tensor."""


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The tensors of the reference that a port is given, by their names.

    Attributes:
        kinds: Name -> (dtype, shape) of every tensor of the state dict and of the other buffers, each once.
        state: Those of them that are in the state dict.
        aliases: Further names of tied tensors -> the name in `kinds`.
        trained: Those by which the gradients are compared.
    """

    kinds: Mapping[str, tuple[str, list[int]]]
    state: tuple[str, ...]
    aliases: Mapping[str, str]
    trained: tuple[str, ...]

    @classmethod
    def of(cls, model: torch.nn.Module) -> Tensors:
        kinds, aliases, first = dict[str, tuple[str, list[int]]](), dict[str, str](), dict[Any, str]()
        for name, tensor in tensors_of(model).items():
            known = first.setdefault(identity(tensor), name) if tensor.numel() else name
            if known != name:
                aliases[name] = known
            else:
                kinds[name] = (str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
        trained = [name for name, x in model.named_parameters() if x.requires_grad and x.numel()]
        state = tuple(name for name in model.state_dict() if name in kinds)
        return cls(kinds, state, aliases, tuple(aliases.get(name, name) for name in trained))


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict and the buffers that are not in it."""
    state = {name: x for name, x in model.state_dict(keep_vars=True).items() if isinstance(x, torch.Tensor)}
    return state | {name: x for name, x in model.named_buffers(remove_duplicate=False) if name not in state}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One set of weights and inputs.

    Attributes:
        name: "0", "1", ...
        seed: What `inputs` and the weights were drawn with.
        model: The reference in float32 with the weights.
        arrays: The arrays among the inputs.
        apply: How PyTorch's model is called with them.
        args, kwargs: The arguments: `{"array": i}` or `{"value": constant}`.
        precisions: In which the port is run.
    """

    name: str
    seed: int
    model: torch.nn.Module
    arrays: tuple[np.ndarray, ...]
    apply: Apply
    args: tuple[dict[str, Any], ...]
    kwargs: Mapping[str, dict[str, Any]]
    precisions: tuple[str, ...]

    def described(self) -> dict[str, Any]:
        """Return what the port's process may know: everything but the numbers."""
        shapes = [[str(x.dtype), list(x.shape)] for x in self.arrays]
        return {
            "name": self.name,
            "args": self.args,
            "kwargs": self.kwargs,
            "inputs": shapes,
            "precisions": self.precisions,
        }

    def alike(self, other: Trial) -> bool:
        """Return whether a port has the same programs for both."""
        mine, theirs = self.described(), other.described()
        return all(mine[key] == theirs[key] for key in ("args", "kwargs", "inputs"))

    def weights(self, tensors: Tensors) -> dict[str, np.ndarray]:
        held = tensors_of(self.model)
        return {name: to_numpy(held[name]) for name in tensors.kinds}


def drawn(spec: Spec, count: int) -> list[Trial]:
    """Return trials with secret seeds; the first is also run in float32.

    Raises:
        UnjudgeableError: The inputs cannot be given to a port, or do not depend on the seed.
    """
    trials = [_trial(spec, str(i), secrets.randbits(31)) for i in range(count)]
    one, other = trials[0], _trial(spec, "", secrets.randbits(31))
    same = len(one.arrays) == len(other.arrays) and all(map(np.array_equal, one.arrays, other.arrays))
    if same:
        raise UnjudgeableError(f"{spec.path.name}: inputs(seed) returns the same for every seed: draw with the seed")
    return trials


def _trial(spec: Spec, name: str, seed: int) -> Trial:
    try:
        given = Inputs.of(spec.inputs(seed))
        arguments = Arguments.of(given)
        count = iter(range(len(arguments.arrays)))
        args = tuple(_described(x, count) for x in given.args)
        kwargs = {key: _described(given.kwargs[key], count) for key in sorted(given.kwargs)}
    except Exception as error:
        raise UnjudgeableError(f"{spec.path.name}: inputs({seed}): {type(error).__name__}: {error}") from error
    model = torch_copy(spec.model, torch.float32).eval()
    perturb(model, seed)
    precisions = ("float64", "float32") if name == "0" else ("float64",)
    return Trial(name, seed, model, arguments.arrays, arguments.apply, args, kwargs, precisions)


def _described(argument: Any, count: Any) -> dict[str, Any]:
    if isinstance(argument, torch.Tensor | np.ndarray | np.generic) or hasattr(argument, "__jax_array__"):
        return {"array": next(count)}
    if hasattr(argument, "shape"):
        return {"array": next(count)}
    if argument is None or isinstance(argument, bool | int | float | str):
        return {"value": argument}
    raise ValueError(f"an argument is a {type(argument).__name__}: give arrays, numbers, strings or None")


def perturb(model: torch.nn.Module, seed: int) -> None:
    """Change every trained weight and every running statistic at random, in place; a zero becomes another number."""
    draw = np.random.default_rng(seed)
    trained = {id(x): name for name, x in model.named_parameters() if x.requires_grad}
    running = {
        id(x): name
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._NormBase)
        for name, x in module.named_buffers(path, recurse=False)
    }
    with torch.no_grad():
        for tensor in {id(x): x for x in tensors_of(model).values()}.values():
            name = trained.get(id(tensor)) or running.get(id(tensor))
            if name is None or not (tensor.is_floating_point() or tensor.is_complex()) or not tensor.numel():
                continue
            z = draw.standard_normal(tuple(tensor.shape))
            if tensor.is_complex():
                z = z + 1j * draw.standard_normal(tuple(tensor.shape))
            if name.endswith("running_var"):
                tensor.mul_(torch.from_numpy(np.asarray(np.exp(PERTURBED * z))).to(tensor))
                continue
            size = float(tensor.abs().square().mean().sqrt()) or _rms(value_of(name, z))
            tensor.add_(torch.from_numpy(np.asarray(PERTURBED * size * z)).to(tensor))


def _rms(array: Any) -> float:
    return math.sqrt(float(np.mean(np.abs(array) ** 2))) or 1.0


# ---- the reference ----


def design_of(trial: Trial) -> Design:
    """Return the formats below float64 that the reference asks for, which the port may ask for too."""
    side = TorchSide.of(trial.model, "float64", apply=trial.apply)
    with wide("float64", side.model) as asked, torch.no_grad():
        side.apply(side.model, side.inputs(trial.arrays))
    return Design(ours=tuple(asked.casts), scalars=frozenset(asked.scalars))


def narrow(casts: Sequence[Cast]) -> list[tuple[str, bool]]:
    """Return (format, made) of casts, each once."""
    return sorted({(cast.format, cast.made) for cast in casts})


def sides(trial: Trial, design: Design) -> dict[str, TorchSide]:
    return {x: TorchSide.of(trial.model, x, apply=trial.apply, design=design) for x in ("float64", "float32")}


def outputs(side: TorchSide, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return every tensor that the reference returns, by name."""
    rounding = as_xla_rounds() if side.precision == "float32" else contextlib.nullcontext()
    with side.wide(), rounding, torch.no_grad():
        found = side.apply(side.model, side.inputs(arrays))
    return {name: to_numpy(x) for name, x in named(found)}


def refuse(spec: Spec, trial: Trial, found: Mapping[str, np.ndarray], again: Mapping[str, np.ndarray]) -> None:
    """
    Raises:
        UnjudgeableError: Two runs of the reference differ, or it returns nothing that tells models apart.
    """
    name = spec.path.name
    if not found:
        raise UnjudgeableError(f"{name}: the reference returns no tensor")
    if any(not np.array_equal(found[key], again[key], equal_nan=True) for key in found):
        raise UnjudgeableError(f"{name}: two runs of the reference differ: it draws random numbers in evaluation mode")
    moving = [x for x in found.values() if x.dtype.kind in "fc" and x.size]
    if not any(np.isfinite(x).all() and np.ptp(np.abs(x)) > 0 for x in moving) and not any(
        np.isfinite(x).all() and x.any() for x in moving
    ):
        raise UnjudgeableError(
            f"{name}: no output of the reference is finite and not zero on inputs({trial.seed}), so nothing can be "
            "compared"
        )
