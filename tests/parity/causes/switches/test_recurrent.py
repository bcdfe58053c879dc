"""Mistakes with recurrent layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.support.parity.named import Tensor, cause_of, double, draw

X = draw(2, 5, 4)
torch.manual_seed(0)


class Outputs(torch.nn.Module):
    """A recurrent layer without its states."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


LSTM = double(Outputs(torch.nn.LSTM(4, 3, batch_first=True)))
GRU = double(Outputs(torch.nn.GRU(4, 3, batch_first=True)))
BOTH = double(Outputs(torch.nn.LSTM(4, 3, batch_first=True, bidirectional=True)))


def lstm(x: Tensor, order: tuple[int, ...] = (0, 1, 2, 3), biases: tuple[float, float] = (1, 1)) -> Tensor:
    """torch's LSTM, its gates read in `order`."""
    p = dict(LSTM.layer.named_parameters())
    h = c = torch.zeros(2, 3).double()
    outputs = []
    for token in x.unbind(1):
        y = token @ p["weight_ih_l0"].T + h @ p["weight_hh_l0"].T
        y = y + biases[0] * p["bias_ih_l0"] + biases[1] * p["bias_hh_l0"]
        parts = y.chunk(4, -1)
        i, f, g, o = (parts[n] for n in order)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs, 1)


def gru(x: Tensor, *, before: bool = False, order: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    """torch's GRU; `before`: the reset gate acts on the state before its product."""
    p = dict(GRU.layer.named_parameters())
    h = torch.zeros(2, 3).double()
    outputs = []
    (u, v), (a, b) = ((p[f"{n}_ih_l0"], p[f"{n}_hh_l0"]) for n in ("weight", "bias"))
    u, v, a, b = (torch.cat([w.chunk(3)[i] for i in order]) for w in (u, v, a, b))
    for token in x.unbind(1):
        xr, xz, xn = (token @ u.T + a).chunk(3, -1)
        vr, vz, vn = v.chunk(3)
        br, bz, bn = b.chunk(3)
        r, z = (xr + h @ vr.T + br).sigmoid(), (xz + h @ vz.T + bz).sigmoid()
        n = (xn + ((r * h) @ vn.T + bn if before else r * (h @ vn.T + bn))).tanh()
        h = (1 - z) * n + z * h
        outputs.append(h)
    return torch.stack(outputs, 1)


CASES: dict[str, tuple[torch.nn.Module, Callable[[Tensor], Tensor], str]] = {
    "LSTM, gates i f o g": (LSTM, lambda x: lstm(x, (0, 1, 3, 2)), "gate order"),
    "LSTM, gates i g f o": (LSTM, lambda x: lstm(x, (0, 2, 1, 3)), "gate order"),
    "LSTM, one bias": (LSTM, lambda x: lstm(x, biases=(1, 0)), "bias"),
    "LSTM, the other bias": (LSTM, lambda x: lstm(x, biases=(0, 1)), "bias"),
    "LSTM, backwards": (LSTM, lambda x: lstm(x.flip(1)).flip(1), "direction"),
    "GRU, gates z r n": (GRU, lambda x: gru(x, order=(1, 0, 2)), "gate order"),
    "GRU, reset before": (GRU, lambda x: gru(x, before=True), "reset gate"),
    "both directions exchanged": (BOTH, lambda x: BOTH(x).roll(3, -1), "concat order"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_mistake_is_named(name: str) -> None:
    module, wrong, switch = CASES[name]
    cause = cause_of(module, X, wrong(X))
    assert cause is not None
    assert cause.switch == switch, cause


def test_the_formulas_here_are_torch_s() -> None:
    assert torch.allclose(lstm(X), LSTM(X), rtol=1e-12)
    assert torch.allclose(gru(X), GRU(X), rtol=1e-12)
