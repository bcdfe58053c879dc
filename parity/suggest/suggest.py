"""Propose the rules that pair the tensors of two models whose names, order and weights are unrelated."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from parity.carry.arrays import is_integer, to_numpy
from parity.carry.ledger import build_ledger, jax_variables
from parity.carry.model_types import jax_subject, torch_subject
from parity.carry.program import Adapter
from parity.carry.rules import TORCH_ONLY, LeafRule, Rules, matches
from parity.carry.storage import unreadable
from parity.carry.wrappers import likeness, refuse_compiled, state_of
from parity.pairing.input_layouts import fitting_inputs
from parity.recording.align import input_axes
from parity.recording.inputs import Arguments
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide
from parity.suggest.match import AGREE, Held, Matching
from parity.suggest.pieces import Piece, Sides, balanced
from parity.suggest.probe import JaxProbe, TorchProbe
from parity.suggest.values import drawn
from parity.suggest.write import shortest

LISTED = 12
"""Number of names in one message."""


def suggest_rules(
    torch_model: torch.nn.Module, jax_model: nnx.Module | Adapter, inputs: Any, *, seed: int = 0
) -> Rules:
    """Propose the rules that pair the tensors of two models, whatever their names, order and weights.

    All tensors that could be partners by their shapes get the same random values, so that both models compute the same
    outputs whichever is which; the gradients by partners are then equal up to layout. The rules are proven before they
    are returned: with other random weights, carried over by these rules, all outputs agree to 1e-10 in float64. The
    models themselves are not modified.

    Args:
        torch_model, jax_model: The models; they need not hold the same weights.
        inputs: As for `check`.
        seed: Seed of the random values.

    Returns:
        The rules; `print(rules)` shows the lines to paste. Tensors without any effect and without a counterpart are in
        `torch_only` and `jax_only`.

    Raises:
        ValueError: The models compute different functions under every pairing that was tried; the pairing is ambiguous
            (the candidates are listed); or the models cannot be run or compared.
    """
    torch_model, jax_model = torch_subject(torch_model), jax_subject(jax_model)
    refuse_compiled(torch_model)
    _refuse_complex(torch_model, jax_model)
    arguments = Arguments.of(inputs)
    ours = TorchSide.of(torch_model, "float64", apply=arguments.apply)
    usual = tuple(input_axes(x.ndim) for x in arguments.arrays)
    theirs = JaxSide.of(jax_model, "float64", usual, apply=arguments.apply)
    theirs, _ = fitting_inputs(ours, theirs, arguments.arrays, Rules())
    torch_probe, jax_probe = TorchProbe(ours, arguments.arrays), JaxProbe(theirs, arguments.arrays)
    fixed = _integers(torch_model, jax_model)
    matching = _first_that_agrees(torch_probe, jax_probe, _held(torch_model, jax_model), seed)
    problems = matching.match()
    rules = _explicit(matching, fixed, torch_model)
    if problems:
        certain = Rules(tensors=rules.tensors)
        raise ValueError("; ".join(problems) + f"; all else is {certain!r}" * bool(matching.pairs))
    _prove(torch_probe, jax_probe, matching, torch_model, jax_model, rules, seed)
    return shortest(torch_model, jax_model, rules)


def _refuse_complex(torch_model: torch.nn.Module, jax_model: nnx.Module) -> None:
    names = [name for name, x in state_of(torch_model).items() if x.is_complex()]
    names += [
        n for n, x in jax_variables(jax_model).items() if np.issubdtype(getattr(x, "dtype", bool), np.complexfloating)
    ]
    if names:
        raise ValueError(f"{names[0]} is complex: rules are proposed for models with real tensors only")


def _held(torch_model: torch.nn.Module, jax_model: nnx.Module) -> Held:
    """Return the numbers of both models; a tensor without numbers (meta, abstract) is left out."""
    ours = {n: to_numpy(x) for n, x in state_of(torch_model).items() if unreadable(x) is None}
    theirs = {n: x.get_value() for n, x in jax_variables(jax_model).items()}
    return ours, {n: np.asarray(x) for n, x in theirs.items() if isinstance(x, jax.Array)}


def _first_that_agrees(ours: TorchProbe, theirs: JaxProbe, held: Held, seed: int) -> Matching:
    """Return the matching of the first way to cut both models under which their outputs agree.

    Raises:
        ValueError: There is none.
    """
    flipped = frozenset(
        f"{path}.weight"
        for path, module in ours.side.model.named_modules()
        if isinstance(module, torch.nn.modules.conv._ConvTransposeNd)
    )
    best: Matching | None = None
    for sides in _ways(ours, theirs):
        matching = Matching.of(ours, theirs, sides, flipped, held, seed)
        if matching.agrees():
            return matching
        if best is None or matching.error < best.error:
            best = matching
    assert best is not None
    raise ValueError(
        f"no rules can be proposed: with equal values in all tensors of one shape, the outputs differ by "
        f"{best.error:.1e}, so the models compute different functions{_unequal(best)}"
    )


def _ways(ours: TorchProbe, theirs: JaxProbe) -> Iterator[Sides]:
    """Return the ways to cut both models into pieces of the same sizes, the likeliest first."""
    jax_pieces = tuple(Piece(name, tuple(theirs.variables[name].shape)) for name in theirs.names)

    def pieces() -> tuple[Piece, ...]:
        return tuple(Piece(name, tuple(x.shape)) for name, x in ours.leaves.items())

    sides = pieces(), jax_pieces
    total = sum(piece.size for piece in sides[0]), sum(piece.size for piece in sides[1])
    if ours.tied and total[0] < total[1]:
        ours.untie()
        sides = pieces(), jax_pieces
    return balanced(_without_constants(sides, ours))


def _without_constants(sides: Sides, ours: TorchProbe) -> Sides:
    """Leave out PyTorch's buffers of sizes that JAX does not have: JAX computes these tables."""
    buffers = {name for name, _ in ours.side.model.named_buffers()}
    sizes = {piece.size for piece in sides[1]}
    surplus = sum(p.size for p in sides[0]) - sum(p.size for p in sides[1])
    spare = [p for p in sides[0] if p.name in buffers and p.size not in sizes]
    if surplus <= 0 or sum(p.size for p in spare) < surplus:
        return sides
    return tuple(p for p in sides[0] if p not in spare), sides[1]


def _unequal(matching: Matching) -> str:
    """Name the shapes that one side has more of."""
    texts = [
        f"{len(side)} of {side[0].shape} such as {side[0].name} only in {name}"
        for group in matching.classes
        if len(group.ours) != len(group.theirs)
        for side, name in ((group.ours, "PyTorch"), (group.theirs, "JAX"))
        if side
    ]
    return f" or hold their tensors in another form ({'; '.join(texts[:LISTED])})" if texts else ""


def _integers(torch_model: torch.nn.Module, jax_model: nnx.Module) -> list[tuple[str, str]]:
    """Pair the integer and boolean tensors, by their values and names."""
    ours = {
        n: to_numpy(x) for n, x in state_of(torch_model).items() if not x.is_floating_point() and not x.is_complex()
    }
    theirs = {n: np.asarray(x[...]) for n, x in jax_variables(jax_model).items() if _is_whole(x)}
    found = []
    for name, value in ours.items():
        same = [n for n, x in theirs.items() if x.shape == value.shape and np.array_equal(x, value)]
        if same and not matches(name, TORCH_ONLY):
            partner = max(same, key=lambda other: likeness(name, other))
            found.append((name, partner))
            del theirs[partner]
    return found


def _is_whole(variable: nnx.Variable) -> bool:
    return isinstance(variable.get_value(), jax.Array) and is_integer(variable.dtype)


def _explicit(matching: Matching, fixed: list[tuple[str, str]], model: torch.nn.Module) -> Rules:
    """Return rules that list every tensor."""
    tensors = [LeafRule(one, other) for one, other in fixed]
    for pair in matching.pairs:
        tensors.append(
            dataclasses.replace(
                pair.rule, torch=pair.ours.name, jax=pair.theirs.name, out_of=pair.ours.box, into=pair.theirs.box
            )
        )
    paired = {rule.torch for rule in tensors}, {rule.jax for rule in tensors}
    tied = matching.torch.tied
    torch_only = [n for n in state_of(model) if n not in paired[0] | tied.keys() and not matches(n, TORCH_ONLY)]
    jax_only = [name for name in matching.jax.variables if name not in paired[1]]
    order = {name: i for i, name in enumerate(state_of(model))}
    tensors.sort(key=lambda rule: (order.get(rule.torch, 0), rule.out_of))
    return Rules(
        tensors=tensors, torch_only=[glob.escape(n) for n in torch_only], jax_only=[glob.escape(n) for n in jax_only]
    )


def _prove(
    ours: TorchProbe,
    theirs: JaxProbe,
    matching: Matching,
    torch_model: torch.nn.Module,
    jax_model: nnx.Module,
    rules: Rules,
    seed: int,
) -> None:
    """Raise ValueError unless the outputs agree with random weights that are carried over by these rules."""
    draw = np.random.RandomState(seed + 1)
    ledger = build_ledger(torch_model, jax_model, rules)
    names = dict.fromkeys(entry.torch for entry in ledger if entry.torch in ours.leaves)
    values = {name: drawn(tuple(ours.leaves[name].shape), draw) for name in names}
    carried: dict[str, np.ndarray] = {}
    for entry in ledger:
        if entry.torch in values:
            entry.in_jax(carried.setdefault(entry.jax, np.empty(entry.jax_shape)))[...] = entry.to_jax(
                values[entry.torch]
            )
    outputs, others = ours.run(values)[0], theirs.run(carried)[0]
    error = matching.distance(outputs, others)
    if not error <= AGREE:
        raise ValueError(
            f"no rules can be proposed: with the likeliest ones, the outputs differ by {error:.1e} at random weights; "
            f"these are {rules!r}"
        )
