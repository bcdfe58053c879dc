"""Training mode: the same law in any spelling is equal, another law or another place is not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import nnx
from torch.nn import functional as F

from parity import Rules
from t2t_parity.selftest.pairs import BatchNorm
from tests.support.parity.dropouts import (
    JAX,
    TORCH,
    Ours,
    Stack,
    Theirs,
    TorchStack,
    X,
    between,
    compiled_drop,
    drop,
    failures,
    training,
    unless_deterministic,
)

RIGHT = [
    *(("module", there) for there in JAX if there != "remat"),
    *((here, "another name") for here in TORCH if here != "checkpoint"),
    ("floor", "uniform"),
    ("new_empty", "what is dropped"),
    ("checkpoint", "remat"),
]


@pytest.mark.parametrize(("here", "there"), RIGHT)
def test_the_same_dropout_in_any_spelling(here: str, there: str) -> None:
    assert failures(TORCH[here](0.3), JAX[there](0.3)) == []


@pytest.mark.parametrize(("here", "there"), [("module", "another name"), ("functional", "jax.random")])
def test_another_rate(here: str, there: str) -> None:
    rows, causes = training(TORCH[here](0.3), JAX[there](0.4))
    assert next(row.kind for row in rows if not row.passed) == "dropout rate"
    assert [cause.switch for cause in causes] == ["dropout rate"]
    assert "with probability 0.7, JAX with 0.6" in causes[0].description


def test_another_rate_of_a_mask_that_is_not_one_draw_of_bernoulli() -> None:
    """What only shows in the effect: there is no law that says the rate."""
    assert failures(TORCH["floor"](0.3), JAX["uniform"](0.4))


PLAIN = between(lambda m, x: x)


@pytest.mark.parametrize("here", ["module", "functional", "floor"])
def test_a_forgotten_dropout(here: str) -> None:
    rows = failures(TORCH[here](0.3), Theirs(PLAIN))
    assert "JAX draws nothing that answers to it" in rows[0].note
    assert ".py:" in rows[0].note


@pytest.mark.parametrize("there", ["module", "jax.random"])
def test_a_dropout_too_many(there: str) -> None:
    rows = failures(Ours(PLAIN), JAX[there](0.3))
    assert "PyTorch draws nothing that answers to it" in rows[0].note


def test_unpaired_excuses_no_dropout() -> None:
    rules = Rules(unpaired=["*drop*", "other"])
    assert failures(TORCH["module"](0.3), JAX["another name"](0.3), X, rules) == []
    assert failures(TORCH["module"](0.3), JAX["another name"](0.9), X, rules)
    assert failures(TORCH["module"](0.3), Theirs(PLAIN), X, rules)
    assert failures(Ours(PLAIN), JAX["another name"](0.3), X, rules)


def shrunk_after(m: Any, x: Any) -> Any:
    """fc2(fc1(x)), after which training makes a bias smaller."""
    y = m.fc2(m.fc1(x))
    if isinstance(x, jax.Array) and not m.deterministic:
        m.fc1.bias[...] = m.fc1.bias[...] * 0.9
    elif isinstance(x, torch.Tensor) and m.training:
        m.fc1.bias.data = m.fc1.bias.data * 0.9
    return y


def test_what_training_writes_to_the_weights() -> None:
    assert failures(Ours(shrunk_after), Theirs(shrunk_after)) == []
    for ours, theirs in ((PLAIN, shrunk_after), (shrunk_after, PLAIN)):
        assert [(row.name, row.kind) for row in failures(Ours(ours), Theirs(theirs))] == [("fc1.bias", "buffer")]


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_nothing_is_drawn_at_the_ends(rate: float) -> None:
    assert failures(TORCH["module"](rate), JAX["module"](rate)) == []


def test_one_end_is_not_the_other() -> None:
    assert failures(TORCH["module"](0.0), JAX["module"](1.0))


# ---- further pairs: name -> (PyTorch, JAX) ----


def torch_noise(m: Any, x: torch.Tensor) -> torch.Tensor:
    mean, scale = m.fc1(x), m.fc2(x)
    return mean + torch.randn_like(mean) * (0.5 * scale).exp() if m.training else mean


def jax_noise(m: Any, x: jax.Array) -> jax.Array:
    mean, scale = m.fc1(x), m.fc2(x)
    if m.deterministic:
        return mean
    return mean + jnp.exp(0.5 * scale) * jax.random.normal(m.rngs.noise(), mean.shape, mean.dtype)


def path(rate: float, *shape: int) -> Callable[[Any, jax.Array], jax.Array]:
    """A residual whose branch is dropped by one number for each entry of `shape` of (B, N, C)."""

    def body(m: Any, x: jax.Array) -> jax.Array:
        y = m.fc1(x)
        if m.deterministic:
            return x + y
        kept = [n if axis in shape else 1 for axis, n in enumerate(x.shape)]
        return x + y * jnp.floor(1 - rate + jax.random.uniform(m.rngs.drop(), kept)) / (1 - rate)

    return body


def torch_path(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.fc1(x)
    return x + (y * y.new_empty((len(y), 1, 1)).bernoulli_(0.8) / 0.8 if m.training else y)


def two(first: str, second: str) -> Callable[[Any, Any], Any]:
    """sin(drop(fc1)) + cos(drop(fc2)), drawn in this order."""

    def body(m: Any, x: Any) -> Any:
        given = {"fc1": m.fc1(x), "fc2": m.fc2(x)}
        dropped = {name: m.drop(given[name]) for name in (first, second)}
        numeric = torch if isinstance(x, torch.Tensor) else jnp
        return numeric.sin(dropped["fc1"]) + numeric.cos(dropped["fc2"])

    return body


def gumbel(m: Any, x: Any) -> Any:
    y = m.fc1(x)
    if isinstance(y, torch.Tensor):
        return m.fc2(F.gumbel_softmax(y) if m.training else y.softmax(-1))
    return m.fc2(jax.nn.softmax(y if m.deterministic else y + jax.random.gumbel(m.rngs.noise(), y.shape)))


def twice(m: Any, x: Any) -> Any:
    return m.drop(m.fc2(m.drop(m.fc1(x))))


def normed(m: Any, x: Any) -> Any:
    return m.fc2(m.drop(m.norm(m.fc1(x))))


DROP = torch.nn.Dropout


def jax_dropped(x: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0)


def mapped(m: Any, x: jax.Array) -> jax.Array:
    """A key for each example."""
    return jax.vmap(jax_dropped)(x, jax.random.split(m.rngs.dropout(), len(x)))


def repeatedly(m: Any, x: torch.Tensor) -> torch.Tensor:
    for _ in range(3):
        x = F.dropout(m.fc1(x), 0.3, m.training).sin()
    return m.fc2(x)


def scanned(m: Any, x: jax.Array, *, one_key: bool = False) -> jax.Array:
    """The same layer three times, a key for each."""

    def step(y: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        y = y @ m.fc1.kernel[...] + jnp.broadcast_to(m.fc1.bias[...], y.shape)
        return jnp.sin(y if m.deterministic else jax_dropped(y, key)), None

    key = m.rngs.dropout()
    keys = jnp.stack([key] * 3) if one_key else jax.random.split(key, 3)
    return m.fc2(jax.lax.scan(step, x, keys)[0])


def torch_layer_drop(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.fc2(x) + (m.fc1(x) if not m.training or torch.rand(()) < 0.7 else 0)


def jax_layer_drop(m: Any, x: jax.Array, *, keep: float = 0.7) -> jax.Array:
    kept = m.deterministic or jax.random.uniform(m.rngs.drop(), (1, 1, 1)) < keep
    return m.fc2(x) + jnp.where(kept, m.fc1(x), 0)


class TorchAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x, x, x, need_weights=False)[0]


class Attention(nnx.Module):
    def __init__(self, rate: float = 0.3, *, shared: bool = False) -> None:
        self.attn = nnx.MultiHeadAttention(
            2, 8, dropout_rate=rate, broadcast_dropout=shared, decode=False, rngs=nnx.Rngs(0), keep_rngs=True
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.attn(x)


EQUAL: dict[str, Callable[[], tuple[Any, ...]]] = {
    "called twice": lambda: (Ours(twice, drop=DROP(0.3)), Theirs(twice, drop=drop(0.3))),
    "noise": lambda: (Ours(torch_noise), Theirs(jax_noise)),
    "gumbel": lambda: (Ours(gumbel), Theirs(gumbel)),
    "drop path": lambda: (Ours(torch_path), Theirs(path(0.2, 0))),
    "drop path as a dropout": lambda: (
        Ours(torch_path),
        Theirs(lambda m, x: x + m.drop(m.fc1(x)), drop=drop(0.2, 1, 2)),
    ),
    "a key for each example": lambda: (TORCH["functional"](0.3), Theirs(unless_deterministic(mapped))),
    "a loop": lambda: (Ours(repeatedly), Theirs(scanned), X, Rules(unpaired=["fc1"])),
    "a branch left out": lambda: (Ours(torch_layer_drop), Theirs(jax_layer_drop)),
    "attention": lambda: (TorchAttention(), Attention()),
    "stacked blocks": lambda: (TorchStack(), Stack(), X, Rules(stacked={"blocks": "blocks"})),
    "in another order": lambda: (
        Ours(two("fc1", "fc2"), drop=DROP(0.3)),
        Theirs(two("fc2", "fc1"), drop=drop(0.3)),
    ),
    "batch normalisation": lambda: (
        Ours(normed, norm=torch.nn.BatchNorm1d(8), drop=DROP(0.3)),
        Theirs(normed, norm=lambda r: BatchNorm(8, momentum=0.9, epsilon=1e-5, rngs=r), drop=drop(0.3)),
        X[:, 0],
    ),
}

DIFFERENT: dict[str, tuple[Callable[[], tuple[Any, ...]], str, str]] = {
    "noise forgotten": (lambda: (Ours(torch_noise), Theirs(lambda m, x: m.fc1(x) + 0 * m.fc2(x))), "random draw", ""),
    "drop path by token": (lambda: (Ours(torch_path), Theirs(path(0.2, 0, 1))), "dropout draws", ""),
    "drop path by element": (
        lambda: (Ours(torch_path), Theirs(lambda m, x: x + m.drop(m.fc1(x)), drop=drop(0.2))),
        "dropout draws",
        "",
    ),
    "shared along tokens": (
        lambda: (TORCH["module"](0.3), Theirs(between(lambda m, x: m.drop(x)), drop=drop(0.3, 1))),
        "dropout draws",
        "drop",
    ),
    "on the input": (
        lambda: (TORCH["module"](0.3), Theirs(lambda m, x: m.fc2(m.fc1(m.drop(x))), drop=drop(0.3))),
        "calls",
        "fc1",
    ),
    "on the output": (
        lambda: (TORCH["functional"](0.3), Theirs(lambda m, x: m.drop(m.fc2(m.fc1(x))), drop=drop(0.3))),
        "output",
        "",
    ),
    "without its scale": (
        lambda: (
            TORCH["functional"](0.3),
            Theirs(unless_deterministic(lambda m, x: x * m.rngs.dropout.bernoulli(0.7, x.shape))),
        ),
        "calls",
        "fc2",
    ),
    "left in evaluation": (
        lambda: (
            TORCH["module"](0.3),
            Theirs(between(lambda m, x: m.drop(x, deterministic=True)), drop=drop(0.3)),
        ),
        "dropout rate",
        "drop",
    ),
    "one key for two draws": (
        lambda: (
            Ours(lambda m, x: F.dropout(m.fc2(F.dropout(m.fc1(x), 0.3, m.training)), 0.3, m.training)),
            Theirs(lambda m, x: one_key(m, x)),
        ),
        "random draw",
        "",
    ),
    "the same key at every step": (
        lambda: (
            TORCH["functional"](0.3),
            Theirs(unless_deterministic(lambda m, x: compiled_drop(jax.random.key(0), x, 0.7))),
        ),
        "dropout rate",
        "",
    ),
    "one key for a whole loop": (
        lambda: (
            Ours(repeatedly),
            Theirs(functools.partial(scanned, one_key=True)),
            X,
            Rules(unpaired=["fc1"]),
        ),
        "dropout rate",
        "",
    ),
    "a branch left out at another rate": (
        lambda: (Ours(torch_layer_drop), Theirs(functools.partial(jax_layer_drop, keep=0.68))),
        "dropout rate",
        "",
    ),
    "attention at another rate": (lambda: (TorchAttention(), Attention(0.2)), "dropout rate", "attn"),
    "attention as flax shares it": (lambda: (TorchAttention(), Attention(shared=True)), "dropout draws", "attn"),
    "another law": (
        lambda: (
            TORCH["functional"](0.3),
            Theirs(unless_deterministic(lambda m, x: x * (1 + jax.random.normal(m.rngs(), x.shape)))),
        ),
        "dropout rate",
        "",
    ),
    "an unknown law": (
        lambda: (
            TORCH["functional"](0.3),
            Theirs(unless_deterministic(lambda m, x: x * jax.random.gamma(m.rngs(), 1.0, x.shape))),
        ),
        "random draw",
        "",
    ),
    "an auxiliary output": (
        lambda: (
            Ours(lambda m, x: (m.fc1(x), m.fc2(x)) if m.training else m.fc1(x) + m.fc2(x)),
            Theirs(lambda m, x: m.fc1(x) + m.fc2(x)),
        ),
        "structure",
        "",
    ),
    "a branch of training": (
        lambda: (
            Ours(lambda m, x: m.fc2(x) * 2 + m.fc1(x) if m.training else m.fc1(x) + m.fc2(x)),
            Theirs(lambda m, x: m.fc1(x) + m.fc2(x)),
        ),
        "output",
        "",
    ),
    "normalisation left in evaluation": (
        lambda: (
            Ours(normed, norm=torch.nn.BatchNorm1d(8), drop=DROP(0.3)),
            Theirs(
                lambda m, x: m.fc2(m.drop(m.norm(m.fc1(x), use_running_average=True))),
                norm=lambda r: BatchNorm(8, momentum=0.9, epsilon=1e-5, rngs=r),
                drop=drop(0.3),
            ),
            X[:, 0],
        ),
        "layer",
        "norm",
    ),
}


def one_key(m: Any, x: jax.Array) -> jax.Array:
    key = m.rngs.dropout()

    def dropped(y: jax.Array) -> jax.Array:
        return y if m.deterministic else jnp.where(jax.random.bernoulli(key, 0.7, y.shape), y / 0.7, 0)

    return dropped(m.fc2(dropped(m.fc1(x))))


@pytest.mark.parametrize("name", EQUAL)
def test_a_right_port_is_equal(name: str) -> None:
    assert failures(*EQUAL[name]()) == []


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_wrong_port_is_named(name: str) -> None:
    make, kind, module = DIFFERENT[name]
    found = failures(*make())
    assert (kind, module) in [(row.kind, row.name) for row in found], [(row.kind, row.name) for row in found]
