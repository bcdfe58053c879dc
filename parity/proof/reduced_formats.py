"""Errors of reduced formats, reported separately from the check: bfloat16 and the device's default matrix products.

Measured on the model's output against the float32 run at highest precision. The caps are derived, not tuned: a product
in a format with p fraction bits rounds each factor by at most 2^-(p+1), so n dependent roundings add up to about
sqrt(n) 2^-(p+1). PyTorch's own run in the same format measures that factor for the given model; JAX's error may be
three times as large, plus one rounding of the output itself.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from parity.carry.convert import as_dtype, to_numpy
from parity.carry.program import Program
from parity.measure.gates import Reference, rel_f
from parity.pairing.match_calls import Pair
from parity.report.findings import FormatRow
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide

BFLOAT16_ROUNDING = 2.0**-9
TF32_ROUNDING = 2.0**-11
RATIO = 3.0


def format_rows(
    torch_model: torch.nn.Module,
    jax_side: JaxSide,
    arrays: Sequence[np.ndarray],
    root: Pair,
    reference: Reference = "torch",
) -> list[FormatRow]:
    """Return one row per reduced format: relF of JAX and of PyTorch to the float32 run at highest precision.

    `jax_side` is the float32 side; `root` gives the layout of the output. The device's default products are JAX's, so
    they are not measured if JAX is the reference.
    """
    tensors = [*torch_model.parameters(), *torch_model.buffers()]
    if any(x.is_complex() for x in tensors) or any(np.iscomplexobj(x) for x in arrays):
        raise ValueError("complex numbers have no format below complex64: check without formats (--formats)")
    ours = TorchSide.of(torch_model, "float32")
    wanted = _torch_output(ours.model, ours.inputs(arrays), root)
    inputs = jax_side.inputs(arrays)
    half_given = inputs
    if isinstance(jax_side.model, Program):
        half_given = tuple(x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in inputs)

    half_torch = copy.deepcopy(torch_model).to(torch.bfloat16).eval()
    half_inputs = tuple(x.to(torch.bfloat16) if x.is_floating_point() else x for x in ours.inputs(arrays))
    torch_error = rel_f(_torch_output(half_torch, half_inputs, root), wanted)
    error = rel_f(_jax_output(_computing_in(jax_side.model, jnp.bfloat16), half_given, "highest"), wanted)
    if reference == "jax":
        return [FormatRow("output", "bfloat16", torch_error, RATIO * error + BFLOAT16_ROUNDING, error)]
    cap = RATIO * torch_error + BFLOAT16_ROUNDING
    rows = [FormatRow("output", "bfloat16", error, cap, torch_error)]

    error = rel_f(_jax_output(jax_side.model, inputs, "default"), _jax_output(jax_side.model, inputs, "highest"))
    # A TF32-like device rounds factors to 10 bits: the bfloat16 error is scaled by the ratio of the roundings.
    cap = RATIO * torch_error * TF32_ROUNDING / BFLOAT16_ROUNDING + TF32_ROUNDING
    device = jax.devices()[0].device_kind
    return [*rows, FormatRow("output", f"default products on {device}", error, cap)]


def _computing_in(model: nnx.Module, dtype: jnp.dtype) -> nnx.Module:
    """Return a copy that computes in `dtype` and keeps its parameters, by setting every module's `dtype` attribute.

    A `Program` computes in the format of its parameters and inputs, so its parameters are rounded, as PyTorch's.
    """
    if isinstance(model, Program):
        return as_dtype(model, dtype)
    changed = nnx.clone(model)
    for _, module in nnx.iter_modules(changed):
        if hasattr(module, "dtype"):
            module.dtype = dtype
    return changed


def _torch_output(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], root: Pair) -> np.ndarray:
    with torch.no_grad():
        found = torch.utils._pytree.tree_flatten(model(*inputs))[0][0]
    array, axes = to_numpy(found.float()), root.output_axes[0]
    return array if axes is None else array.transpose(axes)


def _jax_output(model: nnx.Module, inputs: tuple[jax.Array, ...], precision: str) -> np.ndarray:
    graphdef, state = nnx.split(model)

    def run(state: nnx.State, inputs: tuple[jax.Array, ...]) -> jax.Array:
        return jax.tree.leaves(nnx.merge(graphdef, state)(*inputs))[0].astype(jnp.float32)

    with jax.enable_x64(False), jax.default_matmul_precision(precision):
        return np.asarray(jax.jit(run)(state, inputs))
