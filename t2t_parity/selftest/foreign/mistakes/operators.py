"""Mistakes in the spectral block and in the graph convolution: complex parts, modes, degrees, loops."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from t2t_parity.selftest.foreign.operators import T
from t2t_parity.selftest.mutation import Apply, calling, changing, mistakes_in

stop = jax.lax.stop_gradient
spectral, graph = mistakes_in("spectral"), mistakes_in("graph")

# ---- spectral block ----


def _factor(change: Any) -> Apply:
    """Replace the weight by change(weight)."""
    return calling("mix", lambda self, original: change(original()), "factor")


def _modes(change: Any) -> Apply:
    """Replace the output modes by change(modes)."""
    return calling("", lambda self, original, modes: change(modes), "spectra")


SPECTRAL = (
    spectral("modes conjugated", "the model", None, _modes(jnp.conj), also=("conjugate",)),
    spectral(
        "imaginary part of the modes dropped",
        "the model",
        None,
        _modes(lambda modes: modes.real.astype(modes.dtype)),
        also=("imaginary part",),
    ),
    spectral(
        "absolute values of the modes",
        "the model",
        None,
        _modes(lambda modes: jnp.abs(modes).astype(modes.dtype)),
        also=("extra step",),
    ),
    spectral("real part alone comes out", "the model", None, _modes(jnp.real), also=("imaginary part", "structure")),
    spectral("weight conjugated", "mix", None, _factor(jnp.conj), also=("conjugate",)),
    spectral(
        "imaginary part of the weight ignored",
        "mix",
        None,
        _factor(lambda w: w.real.astype(w.dtype)),
        also=("imaginary part",),
    ),
    spectral("real and imaginary part exchanged", "mix", None, _factor(lambda w: w.imag + 1j * w.real)),
    spectral(
        "channels of the weight exchanged",
        "mix",
        "kernel transposed",
        changing("mix.weight", lambda w: w.swapaxes(0, 1)),
        "conversion",
        also=("axis order",),
    ),
    spectral(
        "modes from 1",
        "mix",
        None,
        calling("mix", lambda self, original, s: s[..., 1:4], "lowest"),
        also=("shifted by one", "position offset"),
    ),
    spectral(
        "highest modes",
        "mix",
        None,
        calling("mix", lambda self, original, s: s[..., -3:], "lowest"),
        also=("token taken",),
    ),
    spectral(
        "transform scaled both ways",
        "the model",
        "scale",
        calling("", lambda self, original, x: jnp.fft.rfft(x, norm="ortho"), "spectrum"),
        also=("fft norm",),
    ),
    spectral(
        "inverse not divided by the length",
        "the model",
        None,
        calling("", lambda self, original, modes: original(modes) * T, "signal"),
        also=("scale", "fft norm"),
    ),
    spectral(
        "signal backwards",
        "the model",
        "axis flipped",
        calling("", lambda self, original, modes: original(modes)[..., ::-1], "signal"),
    ),
    spectral(
        "GELU by tanh",
        "the model",
        "gelu form",
        calling("", lambda self, original, x: jax.nn.gelu(x, approximate=True), "act"),
    ),
    spectral(
        "imaginary part does not train",
        "mix",
        None,
        _factor(lambda w: w.real + 1j * stop(w.imag)),
        "gradient",
        also=("gradient cut",),
    ),
    spectral("weight does not train", "mix", "gradient cut", _factor(stop), "gradient"),
)

# ---- graph convolution ----

CONV = "gc1"


def _normed(norm: Any) -> Apply:
    return calling(CONV, lambda self, original, adjacency: norm(self, adjacency), "normed")


def _by_rows(self: Any, adjacency: jax.Array) -> jax.Array:
    a = self.looped(adjacency)
    return a / a.sum(1, keepdims=True)


def _loops_late(self: Any, adjacency: jax.Array) -> jax.Array:
    """Use the degrees without self-loops."""
    rows, columns = self.degrees(adjacency)
    return self.looped(adjacency) / jnp.sqrt(rows + 1e-3) / jnp.sqrt(columns + 1e-3)


def _no_root(self: Any, adjacency: jax.Array) -> jax.Array:
    a = self.looped(adjacency)
    rows, columns = self.degrees(a)
    return a / rows / columns


GRAPH = (
    graph(
        "no loops",
        CONV,
        "residual",
        calling(CONV, lambda self, original, a: a + 1e-3 * (a == 0), "looped"),
        also=("step left out",),
    ),
    graph(
        "loops of weight 2",
        CONV,
        None,
        calling(CONV, lambda self, original, a: original(a) + jnp.eye(len(a), dtype=a.dtype), "looped"),
        also=("residual", "step doubled"),
    ),
    graph("degrees of the rows alone", CONV, None, _normed(_by_rows)),
    graph("degrees without loops", CONV, None, _normed(_loops_late)),
    graph("degrees without roots", CONV, None, _normed(_no_root), also=("step doubled", "activation")),
    graph(
        "degrees of the rows twice",
        CONV,
        None,
        calling(CONV, lambda self, original, a: (original(a)[0], original(a)[0].T), "degrees"),
        also=("sum axis", "pooling", "wrong tensor", "axis order"),
    ),
    graph("edges backwards", CONV, "axis order", calling(CONV, lambda self, original, a: original(a.T), "normed")),
    graph("not divided by the degrees", CONV, None, _normed(lambda self, a: self.looped(a)), also=("wrong tensor",)),
    graph(
        "weight transposed",
        CONV,
        "kernel transposed",
        changing("gc1.weight", jnp.transpose),
        "conversion",
        also=("axis order",),
    ),
    graph(
        "mean of the nodes",
        "the model",
        "pooling",
        calling("", lambda self, original, x: x.mean(0, keepdims=True), "readout"),
        also=("scale",),
    ),
    graph(
        "largest of the nodes",
        "the model",
        "pooling",
        calling("", lambda self, original, x: x.max(0, keepdims=True), "readout"),
    ),
    graph("ReLU for ELU", "the model", "activation", calling("", lambda self, original, x: jax.nn.relu(x), "act")),
    graph(
        "degrees held fixed",
        CONV,
        None,
        calling(CONV, lambda self, original, a: tuple(stop(d) for d in original(a)), "degrees"),
        "gradient",
        also=("gradient cut",),
    ),
)

OPERATOR_MISTAKES = (*SPECTRAL, *GRAPH)
