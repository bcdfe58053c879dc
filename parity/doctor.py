"""`python -m parity doctor`: settings that affect numerical results, and defaults that differ between frameworks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from rich.console import Console
from rich.table import Table

from parity.environment import CONFIG, fingerprint
from parity.measure.gates import rel_f


class Trap(NamedTuple):
    """A default that differs between the frameworks, the resulting relative error, and what to write instead."""

    name: str
    error: float
    remedy: str


def doctor(console: Console) -> list[Trap]:
    """Print versions, devices, precision settings, and every known trap with its error measured on this machine."""
    facts = fingerprint()
    table = Table("what", "value", title="This machine", title_justify="left")
    for name, value in facts.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name, text or "-")
    console.print(table)
    with console.status("measuring the traps"):
        traps = measure_traps()
    table = Table("default of flax or jax", "relF to PyTorch", "write", title="Traps, measured", title_justify="left")
    for trap in traps:
        table.add_row(trap.name, f"{trap.error:.1e}", trap.remedy)
    console.print(table)
    for warning in warnings():
        console.print(f"note: {warning}")
    return traps


def warnings() -> list[str]:
    """Return warnings about current settings that distort comparisons made outside `parity` (which sets its own)."""
    found = []
    if not CONFIG.jax_enable_x64:
        found.append("JAX has 64-bit types off: float64 arrays become float32 silently (jax.enable_x64(True))")
    if jax.default_backend() != "cpu" and CONFIG.jax_default_matmul_precision is None:
        found.append("float32 matrix products run in a reduced format here (jax_default_matmul_precision='highest')")
    if torch.get_float32_matmul_precision() != "highest":
        found.append("PyTorch's float32 matrix products are reduced (torch.set_float32_matmul_precision('highest'))")
    return found


def measure_traps() -> list[Trap]:
    """Measure the traps on small random data: in float64, or in float32 where the trap only shows there."""
    with jax.enable_x64(True):
        return [trap() for trap in (_gelu, _layer_norm_epsilon, _fast_variance, _batch_norm, _weight_decay, _bicubic)]


def _normal(*shape: int) -> np.ndarray:
    return np.random.RandomState(0).standard_normal(shape)


def _torch(function: Callable[[torch.Tensor], torch.Tensor], x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return function(torch.from_numpy(x)).numpy()


def _gelu() -> Trap:
    x = _normal(64, 64)
    error = rel_f(jax.nn.gelu(jnp.asarray(x)), _torch(torch.nn.functional.gelu, x))
    return Trap("jax.nn.gelu: tanh approximation", error, "approximate=False")


def _layer_norm_epsilon() -> Trap:
    x = 0.01 * _normal(64, 64)
    norm = nnx.LayerNorm(64, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    return Trap(
        "nnx.LayerNorm: epsilon 1e-6", rel_f(norm(x), _torch(torch.nn.LayerNorm(64).double(), x)), "epsilon=1e-5"
    )


def _fast_variance() -> Trap:
    x = (_normal(64, 64) + 1000).astype(np.float32)
    norm = nnx.LayerNorm(64, epsilon=1e-5, rngs=nnx.Rngs(0))
    error = rel_f(norm(jnp.asarray(x)), _torch(torch.nn.LayerNorm(64), x))
    return Trap("nnx.LayerNorm: use_fast_variance (float32, mean 1000)", error, "use_fast_variance=False")


def _batch_norm() -> Trap:
    x = _normal(8, 4).astype(np.float32)
    theirs = nnx.BatchNorm(4, momentum=0.1, use_running_average=False, rngs=nnx.Rngs(0))
    theirs(jnp.asarray(x))
    ours = torch.nn.BatchNorm1d(4).train()
    _torch(ours, x)
    assert ours.running_var is not None
    error = rel_f(theirs.var[...], ours.running_var)
    return Trap("nnx.BatchNorm: momentum is decay, running variance biased", error, "momentum=0.9; correct by n/(n-1)")


def _weight_decay() -> Trap:
    import optax

    w = _normal(64)
    tx = optax.adamw(1e-3)
    updates, _ = tx.update(jnp.zeros(64), tx.init(jnp.asarray(w)), jnp.asarray(w))
    param = torch.nn.Parameter(torch.from_numpy(w.copy()))
    param.grad = torch.zeros_like(param)
    torch.optim.AdamW([param], lr=1e-3).step()
    error = rel_f(np.asarray(updates), param.detach().numpy() - w)
    return Trap("optax.adamw: weight_decay 1e-4 (torch 1e-2), relF of the step", error, "weight_decay=1e-2")


def _bicubic() -> Trap:
    x = _normal(1, 14, 14, 1)
    theirs = jax.image.resize(jnp.asarray(x), (1, 9, 9, 1), "bicubic")
    ours = _torch(lambda t: torch.nn.functional.interpolate(t, (9, 9), mode="bicubic"), x.transpose(0, 3, 1, 2))
    error = rel_f(np.asarray(theirs).transpose(0, 3, 1, 2), ours)
    return Trap(
        "jax.image.resize bicubic: a = -0.5 and antialiasing (torch -0.75, none)", error, "a kernel with a = -0.75"
    )
