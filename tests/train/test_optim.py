from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import t2t_jax
import t2t_torch
from t2t_jax.optim import adamw, clip_by_global_norm, decay_mask, update_ema
from t2t_jax.state import split_model
from t2t_torch.optim import Ema, param_groups
from tests.golden import golden

SHAPES = {"a.weight": (4, 3), "a.bias": (4,), "cls_token": (1, 1, 3)}

pytestmark = pytest.mark.usefixtures("x64")


def draw(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    draws = np.random.RandomState(seed)
    return {name: scale * draws.standard_normal(shape) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("clip_grad", [None, 1.0, 1e6])
def test_adamw_is_pytorchs(clip_grad: float | None):
    """Twenty steps in float64, with decay on one tensor only, small and large gradients, and clipping."""
    start = draw(0)
    theirs = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in start.items()}
    groups = [
        {"params": [theirs["a.weight"]], "weight_decay": 0.1},
        {"params": [theirs["a.bias"], theirs["cls_token"]], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2)
    ours = {name: jnp.asarray(value) for name, value in start.items()}
    tx = adamw(1e-2, weight_decay=0.1, mask=decay_mask(ours, {"cls_token"}), clip_grad=clip_grad)
    state = tx.init(ours)
    for step in range(20):
        grads = draw(step + 1, scale=10.0 ** (step % 5 - 3))
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(grads[name].copy())
        if clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(list(theirs.values()), clip_grad)
        reference.step()
        updates, state = tx.update({name: jnp.asarray(g) for name, g in grads.items()}, state, ours)
        ours = optax.apply_updates(ours, updates)
    for name, parameter in theirs.items():
        assert ours[name].dtype == jnp.float64
        np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=1e-13, atol=1e-13)


def test_clipping_has_pytorchs_epsilon():
    """Where the norm is the limit, PyTorch still scales by 1 / (1 + 1e-6)."""
    clipped, _ = clip_by_global_norm(1.0).update({"a": jnp.array([0.6, 0.8])}, optax.EmptyState())
    np.testing.assert_allclose(clipped["a"], np.array([0.6, 0.8]) / (1 + 1e-6), rtol=1e-15)


def test_ema_of_both_frameworks():
    model = torch.nn.Linear(3, 2).double()
    model.register_buffer("frozen", torch.full((1,), 7.0, dtype=torch.float64))
    ema = Ema(model, 0.9)
    ours = {name: jnp.asarray(value.numpy()) for name, value in ema.state.items()}
    for step in range(5):
        with torch.no_grad():
            model.weight += step
        ema.update(model)
        values = {name: jnp.asarray(value.detach().numpy()) for name, value in model.state_dict().items()}
        ours = update_ema(ours, values, 0.9)
    assert set(ours) == {"weight", "bias", "frozen"}
    for name, value in ema.state.items():
        np.testing.assert_allclose(ours[name], value.numpy(), rtol=1e-15)
    assert not np.array_equal(ema.state["weight"], model.weight.detach())


def torch_sizes(model: torch.nn.Module) -> tuple[list[int], list[int]]:
    spared, decayed = param_groups(model, 0.05)
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    return tuple(sorted(p.numel() for p in group["params"]) for group in (spared, decayed))


@pytest.mark.parametrize(
    "name", ["t2t_vit_micro", "t2t_vit_14_se", "t2t_vit_16_ghost", "deit_tiny_distilled_patch16_224"]
)
def test_both_frameworks_decay_the_same_tensors(name: str):
    sizes = {"img_size": 64, "num_classes": 10, **({} if "micro" in name else {"depth": 2})}
    spared, decayed = torch_sizes(t2t_torch.create_model(name, **sizes))
    model = t2t_jax.create_model(name, **sizes, rngs=nnx.Rngs(0))
    _, params, _ = split_model(model)
    mask = decay_mask(params, model.no_weight_decay())
    assert sorted(params[name].size for name, decays in mask.items() if decays) == decayed
    assert sorted(params[name].size for name, decays in mask.items() if not decays) == spared


def test_groups_are_the_authors():
    meta = golden("train20_t2t_vit_7").meta
    groups = param_groups(t2t_torch.create_model("t2t_vit_7", img_size=64, num_classes=10), 0.03)
    assert [[group["weight_decay"], len(group["params"])] for group in groups] == meta["groups"]


def test_class_tokens_and_positions_are_spared():
    model = t2t_torch.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1)
    spared = {id(p) for p in param_groups(model, 0.05)[0]["params"]}
    assert {id(model.cls_token), id(model.dist_token), id(model.pos_embed)} <= spared
