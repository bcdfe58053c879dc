from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import t2t_jax
import t2t_torch
from t2t_config import RECIPES, Recipe
from t2t_jax.models.scan_blocks import stack_arrays, unstack_arrays
from t2t_jax.state import split_model
from t2t_jax.training.optim import (
    adamw,
    clip_by_global_norm,
    decay_mask,
    freeze,
    recipe_optimizer,
    sgd,
    update_ema,
)
from t2t_torch.training import optim as torch_optim
from t2t_torch.training.optim import Ema, param_groups
from tests.support.golden import golden

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


@pytest.mark.parametrize("clip_grad", [None, 1.0])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_pytorchs(momentum: float, clip_grad: float | None):
    """Ten steps in float64: decay is added to the gradient, before momentum; no Nesterov."""
    start = draw(0)
    theirs = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in start.items()}
    groups = [{"params": [p], "weight_decay": 0.1 * (name == "a.weight")} for name, p in theirs.items()]
    reference = torch.optim.SGD(groups, lr=0.05, momentum=momentum)
    ours = {name: jnp.asarray(value) for name, value in start.items()}
    mask = decay_mask(ours, {"cls_token"})
    tx = sgd(0.05, weight_decay=0.1, mask=mask, momentum=momentum, clip_grad=clip_grad)
    state = tx.init(ours)
    for step in range(10):
        grads = draw(step + 1)
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(grads[name].copy())
        if clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(list(theirs.values()), clip_grad)
        reference.step()
        updates, state = tx.update({name: jnp.asarray(g) for name, g in grads.items()}, state, ours)
        ours = optax.apply_updates(ours, updates)
    for name, parameter in theirs.items():
        np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=1e-13, atol=1e-13)


class Toy(torch.nn.Module):
    """Head, backbone, token and norm, named as in the models."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(3, 4), torch.nn.Linear(4, 4)])
        self.norm, self.head = torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)
        self.cls_token = torch.nn.Parameter(torch.ones(1, 1, 3))

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}


GROUPS = {
    "cifar": dataclasses.replace(RECIPES["cifar10_t2t_vit_14"], epochs=4),
    "adamw": Recipe(model="t2t_vit_micro", epochs=4, warmup_epochs=2, backbone_lr_scale=0.1, weight_decay=0.2),
    "clipped": dataclasses.replace(RECIPES["cifar10_t2t_vit_14"], epochs=4, clip_grad=0.5, decay_all=False),
    "by layer": Recipe(
        model="t2t_vit_micro", epochs=4, warmup_epochs=2, backbone_lr_scale=0.1, layer_decay=0.6, weight_decay=0.2
    ),
    "one group": Recipe(model="t2t_vit_micro", epochs=4, warmup_epochs=2, optimizer="sgd", frozen=("blocks",)),
}


@pytest.mark.parametrize("name", GROUPS)
def test_recipes_train_alike_in_both_frameworks(name: str):
    """Two steps an epoch, to the end of the cosine: groups, rates, decay and what is frozen, in float64."""
    recipe, model = GROUPS[name], Toy().double()
    arrays = {key: jnp.asarray(p.detach().numpy().copy()) for key, p in model.named_parameters()}
    start = dict(arrays)
    torch_optim.freeze(model, recipe.frozen or ())
    optimizer, scheduler = torch_optim.recipe_optimizer(recipe, model, steps_per_epoch=2)
    params, still = freeze(arrays, {}, recipe.frozen or ())
    tx = recipe_optimizer(recipe, params, steps_per_epoch=2, no_decay=model.no_weight_decay())
    state, draws = tx.init(params), np.random.RandomState(0)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == params.keys()
    for _ in range(8):
        grads = {key: draws.standard_normal(p.shape) for key, p in trained.items()}
        for key, p in trained.items():
            p.grad = torch.from_numpy(grads[key].copy())
        if recipe.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(list(trained.values()), recipe.clip_grad)
        optimizer.step()
        scheduler.step()
        updates, state = tx.update({key: jnp.asarray(g) for key, g in grads.items()}, state, params)
        params = optax.apply_updates(params, updates)
    for key, p in model.named_parameters():
        np.testing.assert_allclose({**params, **still}[key], p.detach().numpy(), rtol=1e-13, atol=1e-13)
        assert np.array_equal(start[key], p.detach().numpy()) == (key in still)
    frozen = {
        "cifar": {"cls_token", "norm.weight", "norm.bias"},
        "one group": {f"blocks.{i}.{name}" for i in range(2) for name in ("weight", "bias")},
    }
    assert still.keys() == frozen.get(name if name != "clipped" else "cifar", set())


def test_the_backbone_has_a_rate_of_its_own():
    """One step of plain gradients: the head goes lr, the rest lr * scale, and 1 % of the way decays."""
    recipe = dataclasses.replace(RECIPES["cifar10_t2t_vit_14"], weight_decay=0.01, momentum=0.0)
    params = {name: jnp.ones(2) for name in ("head.kernel", "head.bias", "headless.kernel", "blocks.0.bias")}
    tx = recipe_optimizer(recipe, params, steps_per_epoch=1)
    updates, _ = tx.update(params, tx.init(params), params)
    for name, rate in (("head.kernel", 0.05), ("head.bias", 0.05), ("headless.kernel", 5e-4), ("blocks.0.bias", 5e-4)):
        np.testing.assert_allclose(updates[name], -1.01 * rate * np.ones(2), rtol=1e-6)


def test_stacked_blocks_have_the_rates_of_their_layers():
    recipe = Recipe(model="t2t_vit_micro", optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=1.0, layer_decay=0.5)
    params = {
        "blocks.norm1.scale": jnp.ones((2, 3)),
        "blocks.mlp.fc1.kernel": jnp.ones((2, 3, 4)),
        "pos_embed": jnp.ones(2),
    }
    tx = recipe_optimizer(dataclasses.replace(recipe, warmup_epochs=0), params, steps_per_epoch=1)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["blocks.norm1.scale"], [[-0.25] * 3, [-0.5] * 3])
    np.testing.assert_array_equal(updates["blocks.mlp.fc1.kernel"][:, 1, 2], [-0.25, -0.5])
    np.testing.assert_array_equal(updates["pos_embed"], [-0.125] * 2)


def test_what_cannot_be_frozen_is_refused():
    with pytest.raises(ValueError, match="no parameter 'hea' nor a module with parameters; it has blocks, head"):
        freeze({"blocks.0.kernel": jnp.ones(1), "head.kernel": jnp.ones(1)}, {}, ("hea",))
    with pytest.raises(ValueError, match=r"'blocks\.0' is part of a stack: name a part of all blocks"):
        freeze({"blocks.fc1.kernel": jnp.ones((2, 1))}, {}, ("blocks.0",))


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


@pytest.mark.parametrize("name", ["t2t_vit_14_se", "deit_tiny_distilled_patch16_224"])
def test_stacked_tensors_decay_as_those_of_one_block(name: str):
    """A stacked bias or scale has two axes, and is spared all the same."""
    masks = []
    for scan in (False, True):
        model = nnx.eval_shape(lambda scan=scan: t2t_jax.create_model(name, img_size=64, depth=2, scan_blocks=scan))
        masks.append(decay_mask(split_model(model)[1], model.no_weight_decay()))
    unrolled, scanned = masks
    assert {key: scanned[re.sub(r"^blocks\.\d+", "blocks", key)] for key in unrolled} == unrolled
    assert not scanned["blocks.norm1.scale"]
    assert scanned["blocks.mlp.fc2.kernel"]


@pytest.mark.parametrize("changes", [{}, {"frozen": ("blocks",)}, {"clip_grad": 0.5, "decay_all": False}])
@pytest.mark.parametrize("start", ["cifar10_t2t_vit_14", "imagenet_t2t_vit_14"])
def test_stacked_tensors_are_trained_as_those_of_every_block(start: str, changes: dict[str, Any]):
    recipe, draws = dataclasses.replace(RECIPES[start], epochs=4, **changes), np.random.RandomState(0)
    shapes = {f"blocks.{i}.fc1.{leaf}": shape for i in range(3) for leaf, shape in (("kernel", (3, 4)), ("bias", (4,)))}
    shapes |= {"cls_token": (1, 1, 3), "norm.scale": (4,), "head.kernel": (4, 2), "head.bias": (2,)}
    arrays, *grads = ({name: jnp.asarray(draws.standard_normal(x)) for name, x in shapes.items()} for _ in range(5))
    ends = []
    for arrange in (dict, stack_arrays):
        params, still = freeze(arrange(arrays), {}, recipe.frozen or ())
        tx = recipe_optimizer(recipe, params, steps_per_epoch=1, no_decay={"cls_token"})
        state = tx.init(params)
        for grad in map(arrange, grads):
            updates, state = tx.update({name: grad[name] for name in params}, state, params)
            params = optax.apply_updates(params, updates)
        ends.append(unstack_arrays({**params, **still}))
    unrolled, stacked = ends
    assert unrolled.keys() == stacked.keys() == arrays.keys()
    for name, end in unrolled.items():
        np.testing.assert_allclose(stacked[name], end, rtol=1e-14, atol=1e-14, err_msg=name)


def test_groups_are_the_authors():
    meta = golden("train20_t2t_vit_7").meta
    groups = param_groups(t2t_torch.create_model("t2t_vit_7", img_size=64, num_classes=10), 0.03)
    assert [[group["weight_decay"], len(group["params"])] for group in groups] == meta["groups"]


def test_class_tokens_and_positions_are_spared():
    model = t2t_torch.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1)
    spared = {id(p) for p in param_groups(model, 0.05)[0]["params"]}
    assert {id(model.cls_token), id(model.dist_token), id(model.pos_embed)} <= spared
