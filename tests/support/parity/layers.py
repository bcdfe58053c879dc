"""One layer of PyTorch and its counterpart in another JAX library: carried both ways, and the same in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity import jax_to_torch, torch_to_jax
from parity.carry.copies import as_dtype
from parity.carry.ledger import Ledger
from parity.carry.program import Adapter
from parity.carry.random_weights import randomize
from parity.recording.align import channels_last
from tests.support.golden import rel_f

CHANNELS_LAST = "channels last"


def last(array: np.ndarray) -> np.ndarray:
    """An image, sequence or volume of PyTorch's with its channels last."""
    return array.transpose(channels_last(array.ndim)) if array.ndim > 2 else array


def random(layer: torch.nn.Module) -> torch.nn.Module:
    """The layer with random weights; of two biases that are added, the second is zero."""
    randomize(layer)
    for module in layer.modules():
        for name, tensor in module.named_parameters(recurse=False):
            if name.startswith("bias_hh"):
                new = isinstance(module, torch.nn.GRUCell | torch.nn.GRU)  # the third part has no other to be added to
                tensor.data[: 2 * tensor.shape[0] // 3 if new else None] = 0
    return layer.eval()


def assert_the_same_layer(
    torch_layer: torch.nn.Module, adapter: Adapter, inputs: Sequence[np.ndarray], *, images: bool = False
) -> Ledger:
    """Every tensor is carried there and back bit for bit, and both compute the same.

    `images`: JAX's inputs and outputs have their channels last.
    """
    random(torch_layer)
    ledger = torch_to_jax(torch_layer, adapter)
    state = torch_layer.state_dict()
    assert {entry.torch for entry in ledger} | set(ledger.torch_only) == set(state)
    back = copy.deepcopy(torch_layer)
    for tensor in back.state_dict().values():
        tensor.fill_(7)
    jax_to_torch(adapter, back)
    for entry in ledger:
        assert torch.equal(back.state_dict()[entry.torch], state[entry.torch]), entry.torch
    moving = [x.astype(np.float64) if x.dtype.kind == "f" else x for x in inputs]
    with torch.no_grad():
        expected = torch_layer.double()(*map(torch.from_numpy, moving))
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        program = as_dtype(adapter.as_nnx(), jnp.float64)
        found = program(*(jnp.asarray(last(x) if images else x) for x in moving))
    a, b = np.asarray(first(found)), first(expected).numpy()
    assert a.dtype == np.float64
    assert rel_f(a, last(b) if images else b) < 1e-12
    return ledger


def first(output: Any) -> Any:
    """The output itself, or of a cell or an attention layer the one that counts."""
    return first(output[0]) if isinstance(output, tuple) else output
