"""Outputs and gradients at given values, in both frameworks."""

from __future__ import annotations

import numpy as np
import torch
from flax import nnx

from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide
from parity.suggest.probe import JaxProbe, TorchProbe


class Torch(torch.nn.Module):
    """Batch normalization, whose statistics have gradients too, and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(x))


class Jax(nnx.Module):
    """Twin of `Torch`."""

    def __init__(self) -> None:
        self.norm = nnx.BatchNorm(3, epsilon=1e-5, rngs=nnx.Rngs(0))
        self.fc = nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.fc(self.norm(x))


NAMES = {"norm.weight": "norm.scale", "norm.bias": "norm.bias", "norm.running_mean": "norm.mean"}
NAMES |= {"norm.running_var": "norm.var", "fc.weight": "fc.kernel"}


def test_gradients_by_every_tensor_agree():
    draw = np.random.RandomState(0)
    x, direction = draw.standard_normal((4, 3)), draw.standard_normal((4, 3))
    values = {n: draw.uniform(0.5, 1.5, (3, 3) if n == "fc.weight" else (3,)) for n in NAMES}
    theirs = {NAMES[n]: v.T if v.ndim == 2 else v for n, v in values.items()}
    model = Torch()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    ours = TorchProbe(TorchSide.of(model, "float64"), [x])
    other = JaxProbe(JaxSide.of(Jax(), "float64", [None]), [x])
    outputs, grads = ours.run(values, [direction])
    jax_outputs, jax_grads = other.run(theirs, [direction])
    np.testing.assert_allclose(jax_outputs[0], outputs[0], rtol=1e-12)
    for name, jax_name in NAMES.items():
        grad = grads[name].T if name == "fc.weight" else grads[name]
        np.testing.assert_allclose(jax_grads[jax_name], grad, rtol=1e-10, err_msg=name)
        assert np.linalg.norm(grad) > 1e-3
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_tied_tensors_are_one_until_they_are_untied():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    probe = TorchProbe(TorchSide.of(model, "float64"), [])
    assert (sorted(probe.leaves), probe.tied) == (["a.bias", "a.weight", "b.bias"], {"b.weight": "a.weight"})
    probe.untie()
    assert (sorted(probe.leaves), probe.tied) == (["a.bias", "a.weight", "b.bias", "b.weight"], {})
