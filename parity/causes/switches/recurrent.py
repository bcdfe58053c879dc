"""Switches for recurrent layers: order of the gates, biases, position of the reset gate, direction."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from parity.causes.registry import Around, switches
from parity.causes.replay import Step
from parity.causes.variant import Variant

Weights = list[torch.Tensor]
GATES = {"lstm": "ifgo", "gru": "rzn"}


@switches("lstm", "gru", "lstm_cell", "gru_cell")
def recurrent(step: Step, around: Around) -> Iterator[Variant]:
    """LSTM and GRU of PyTorch, layers and cells."""
    kind = step.name.removesuffix("_cell")
    gates = GATES[kind]
    for order in list(itertools.permutations(range(len(gates))))[1:]:
        text = f"gates {', '.join(gates)} -> {', '.join(gates[i] for i in order)}"
        yield _with(step, "gate order", text, lambda w, o=order: [_reordered(x, o) for x in w])
    for which, text in ((0, "bias of the input"), (1, "bias of the state")):
        yield _with(step, "bias", f"without the {text}", lambda w, i=which: _biases(w, i, 0.0))
        yield _with(step, "bias", f"the {text} added twice", lambda w, i=which: _biases(w, i, 2.0))
    yield _with(step, "bias", "without both biases", lambda w: _biases(_biases(w, 0, 0.0), 1, 0.0))
    if kind == "lstm":
        for n in (1.0, -1.0):
            yield _with(step, "bias", f"forget gate's bias {n:+g}", lambda w, n=n: _forget(w, n))
    else:
        text = "reset gate applied after the product with the state -> before it"
        yield Variant("reset gate", text, lambda s: _gru(s, reset_first=True, kept=False))
        yield Variant("update gate", "z keeps the state -> z takes the new one", lambda s: _gru(s, False, True))
    if not step.name.endswith("cell"):
        yield from _sequence(step)


def _sequence(step: Step) -> Iterator[Variant]:
    """Yield mistakes in the order of time steps and directions."""
    batch_first = bool(step.args[-1])
    axis = 1 if batch_first else 0

    def backwards(s: Step) -> Any:
        output, *states = s.run({(0, "input"): s.args[0].flip(axis)})
        return (output.flip(axis), *states)

    yield Variant("direction", "from the first to the last -> from the last to the first", backwards)
    if step.args[-2]:  # both directions

        def unturned(s: Step) -> Any:
            output, *states = s.run()
            half = output.shape[-1] // 2
            return (torch.cat((output[..., :half], output[..., half:].flip(axis)), -1), *states)

        def exchanged(s: Step) -> Any:
            output, *states = s.run()
            return (output.roll(output.shape[-1] // 2, -1), *states)

        yield Variant("direction", "the backward results not turned round", unturned)
        yield Variant("concat order", "forward, backward -> backward, forward", exchanged)


def _weights(step: Step) -> tuple[int, Weights]:
    """Return the position of the weights, and the weights: (w_ih, w_hh, b_ih, b_hh) for each layer and direction."""
    if step.name.endswith("_cell"):
        return 2, list(step.args[2:6])
    if not isinstance(step.args[2], list | tuple):
        raise NotImplementedError("a packed sequence")
    return 2, list(step.args[2])


def _with(step: Step, switch: str, text: str, change: Callable[..., Weights]) -> Variant:
    def alter(s: Step) -> Any:
        position, weights = _weights(s)
        if s.name.endswith("_cell"):
            return s.run({(2 + i, ""): x for i, x in enumerate(change(weights))})
        return s.run({(position, ""): change(weights)})

    return Variant(switch, text, alter)


def _reordered(x: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    parts = x.chunk(len(order))
    return torch.cat([parts[i] for i in order])


def _biases(weights: Weights, which: int, factor: float) -> Weights:
    """Multiply the first or second bias of every layer by `factor`."""
    seen = itertools.count()
    return [x * factor if x.ndim == 1 and next(seen) % 2 == which else x for x in weights]


def _forget(weights: Weights, by: float) -> Weights:
    changed = []
    seen = itertools.count()
    for x in weights:
        if x.ndim == 1 and next(seen) % 2 == 0:
            i, f, g, o = x.chunk(4)
            x = torch.cat((i, f + by, g, o))
        changed.append(x)
    return changed


def _gru(step: Step, reset_first: bool, kept: bool) -> Any:
    """Run a GRU with one layer and direction, or a GRU cell, written out."""
    _, (w, u, *biases) = _weights(step)
    b, c = biases or (torch.zeros(len(w), dtype=w.dtype),) * 2
    if step.name == "gru_cell":
        return _gru_step(step.args[0], step.args[1], w, u, b, c, reset_first, kept)
    x, h = step.args[0], step.args[1][0]
    if len(w) != 3 * h.shape[-1] or len(biases) > 2:
        raise NotImplementedError
    steps = x.unbind(1 if step.args[-1] else 0)
    outputs = []
    for token in steps:
        h = _gru_step(token, h, w, u, b, c, reset_first, kept)
        outputs.append(h)
    return torch.stack(outputs, 1 if step.args[-1] else 0), h[None]


def _gru_step(x: Any, h: Any, w: Any, u: Any, b: Any, c: Any, reset_first: bool, kept: bool) -> torch.Tensor:
    xr, xz, xn = (x @ w.T + b).chunk(3, -1)
    ur, uz, un = u.chunk(3)
    cr, cz, cn = c.chunk(3)
    r, z = torch.sigmoid(xr + h @ ur.T + cr), torch.sigmoid(xz + h @ uz.T + cz)
    n = torch.tanh(xn + ((r * h) @ un.T + cn if reset_first else r * (h @ un.T + cn)))
    return (1 - z) * h + z * n if kept else (1 - z) * n + z * h
