"""The losses are the same scalar in both frameworks."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity.measure.gates import rel_f
from parity.runs.losses import Loss, cross_entropy, default_loss, projection
from tests.support.parity.pairs import images


def both(loss: Loss, array: np.ndarray) -> tuple[float, float]:
    return float(loss.torch(torch.from_numpy(array))), float(loss.jax(jnp.asarray(array)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_by_hand(x64: None, smoothing: float):
    logits, labels = images(4, 5), np.array([0, 4, 2, 2])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    target = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    expected = -(target * log_p).sum(axis=1).mean()
    for value in both(cross_entropy(labels, smoothing), logits):
        assert rel_f(value, expected) < 1e-14


def test_soft_targets(x64: None):
    targets = np.abs(images(4, 5, seed=3))
    a, b = both(cross_entropy(targets / targets.sum(axis=1, keepdims=True)), images(4, 5))
    assert rel_f(a, b) < 1e-14


def test_a_projection_sees_every_element_and_follows_the_layout(x64: None):
    axes = (0, 2, 3, 1)
    loss, x = projection(axes), images(2, 3, 4, 5)
    ours = loss.torch(torch.from_numpy(x))
    assert rel_f(loss.jax(jnp.asarray(x.transpose(axes))), ours) < 1e-14
    gradient = jax.grad(projection().jax)(jnp.asarray(x))
    assert (np.asarray(gradient) != 0).all()
    assert np.linalg.norm(gradient) == pytest.approx(1, rel=0.1)


def test_a_projection_of_a_scalar(x64: None):
    a, b = both(projection(), np.asarray(3.0))
    assert a == b != 0


# ---- the default ----

SHAPES = [(), (1,), (7,), (4, 5), (4, 1), (2, 3, 4), (2, 3, 4, 5)]
HUGE = [1e3, 1e9, 1e18, 3e38, float(np.finfo(np.float32).max)]


def torch_gradient(loss: Loss, tensor: torch.Tensor) -> torch.Tensor:
    leaf = tensor.clone().requires_grad_()
    loss.torch(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


def gradients(loss: Loss, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In PyTorch, and in JAX by PyTorch's convention."""
    return torch_gradient(loss, torch.from_numpy(array)).numpy(), np.asarray(
        jax.grad(loss.jax)(jnp.asarray(array))
    ).conj()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_default_is_the_same_in_both_frameworks_and_follows_the_layout(x64: None, shape: tuple[int, ...]):
    x, axes = np.asarray(images(*shape)), tuple(range(len(shape)))[::-1]
    ours, theirs = both(default_loss([shape], [None]), x)
    assert rel_f(theirs, ours) < 1e-14
    turned = default_loss([shape], [axes]).jax(jnp.asarray(x.transpose(axes)))
    assert rel_f(float(turned), ours) < 1e-14
    a, b = gradients(default_loss([shape], [None]), x)
    assert rel_f(b, a) < 1e-14
    assert np.linalg.norm(a) == pytest.approx(1, abs=0.9)


@pytest.mark.parametrize("seed", range(50))
def test_the_default_has_a_gradient_and_a_curvature_in_every_direction(x64: None, seed: int):
    draw = np.random.RandomState(seed)
    shape = tuple(draw.randint(1, 6, draw.randint(0, 4)).tolist())
    y = torch.from_numpy(np.asarray(draw.standard_normal(shape) * draw.choice((1e-3, 1.0, 30.0))))
    loss = default_loss([shape], [None]).torch
    gradient = torch_gradient(default_loss([shape], [None]), y)
    hessian = torch.autograd.functional.hessian(loss, y).reshape(y.numel(), y.numel())
    assert (gradient != 0).all()
    assert torch.linalg.eigvalsh(hessian).min() > 0


@pytest.mark.parametrize("seed", range(100))
def test_no_wrong_derivative_escapes_the_default(seed: int):
    """What cross entropy (a shift of all logits), a mean or a sum of squares does not see."""
    draw = np.random.RandomState(seed)
    y = torch.from_numpy(draw.standard_normal((2, 5)))
    g = torch_gradient(default_loss([(2, 5)], [None]), y)
    shift = torch.ones(5, 1, dtype=y.dtype)
    for direction in (shift, torch.from_numpy(draw.standard_normal((5, 1))), torch.eye(5, dtype=y.dtype)[:, :1]):
        assert (g @ direction).abs().min() > 1e-6 * direction.norm()
    logit = torch_gradient(cross_entropy(np.array([1, 3])), y)
    assert (logit @ shift).abs().max() < 1e-15  # which was the default


@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize("sign", [1, -1])
def test_masked_numbers_neither_overflow_nor_hide_the_others(sign: int, huge: float):
    x = images(4, 6).astype(np.float32)
    x[0, :3] = sign * huge
    loss = default_loss([x.shape], [None])
    ours, theirs = both(loss, x)
    assert np.isfinite(ours)
    assert rel_f(theirs, ours) < 1e-5
    a, b = gradients(loss, x)
    assert rel_f(b, a) < 1e-6
    calm = np.where(abs(x) > 500, 0, x).astype(np.float32)
    np.testing.assert_array_equal(a[abs(x) < 500], gradients(loss, calm)[0][abs(x) < 500])


def test_infinities_and_nan_contribute_nothing(x64: None):
    x = images(4, 6)
    x[0, :3] = np.inf, -np.inf, np.nan
    loss, zeros = default_loss([x.shape], [None]), np.where(np.isfinite(x), x, 0)
    assert both(loss, x) == both(loss, zeros)
    a, b = gradients(loss, x)
    assert not a[0, :3].any()
    assert not b[0, :3].any()
    assert rel_f(b, a) < 1e-14


def test_complex_outputs(x64: None):
    z = images(3, 4) + 1j * images(3, 4, seed=2)
    loss = default_loss([z.shape], [(1, 0)])
    ours = float(loss.torch(torch.from_numpy(z)))
    assert rel_f(float(loss.jax(jnp.asarray(z.T))), ours) < 1e-14
    assert abs(float(loss.torch(torch.from_numpy(z.conj()))) - ours) > 1e-3
    a, b = gradients(default_loss([z.shape], [None]), z)
    assert rel_f(b, a) < 1e-14
    assert (a.real != 0).all()
    assert (a.imag != 0).all()
    assert not np.allclose(a.real, a.imag)


@dataclasses.dataclass
class Output:
    logits: Any
    hidden: Any = None
    label: Any = None


class Pair(NamedTuple):
    second: Any
    first: Any


def test_nested_outputs(x64: None):
    arrays = images(2, 3), images(4, seed=2)
    loss = default_loss([(2, 3), (4,)], [None, None])
    trees = [
        lambda a, b: (a, b),
        lambda a, b: {"x": a, "y": {"z": b, "none": None, "n": 3}},
        lambda a, b: {"y": b, "x": a},  # by key
        lambda a, b: Output(hidden=a, logits=b),  # by field
        lambda a, b: [None, Pair(first=a, second=b)],
    ]
    found = []
    for tree in trees:
        found.append(float(loss.torch(tree(*(torch.from_numpy(x) for x in arrays)))))
        found.append(float(loss.jax(tree(*(jnp.asarray(x) for x in arrays)))))
    assert rel_f(np.array(found), np.full(len(found), found[0])) < 1e-14


def test_integers_are_left_out_and_places_kept(x64: None):
    counts, x = np.arange(4), images(2, 3)
    loss = default_loss([(4,), (2, 3)], [None, (1, 0)])
    ours = float(loss.torch((torch.from_numpy(counts), torch.from_numpy(x))))
    assert rel_f(float(loss.jax((jnp.asarray(counts), jnp.asarray(x.T)))), ours) < 1e-14
    assert ours != both(default_loss([(2, 3)], [None]), x)[0]
    with pytest.raises(ValueError, match=r'^no output is a floating tensor: use level="forward", or give a loss$'):
        default_loss([(4,)], [None]).torch(torch.from_numpy(counts))
    with pytest.raises(ValueError, match="zip"):
        default_loss([(4,)], [None, None])


def test_equal_shapes_meet_different_directions(x64: None):
    x = images(2, 3)
    y = torch.from_numpy(x)
    loss = default_loss([(2, 3), (2, 3)], [None, None]).torch
    assert float(loss((y, 2 * y))) != pytest.approx(float(loss((2 * y, y))))
