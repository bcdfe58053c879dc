"""Which parameters decay, and the moving average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from t2t_config import RECIPES, Recipe, epoch_lr
from t2t_torch import create_model
from t2t_torch.training.optim import Ema, freeze, param_groups, recipe_optimizer
from tests.support.golden import rel_f


def names(model: nn.Module, group: dict) -> set[str]:
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return {known[id(parameter)] for parameter in group["params"]}


def test_decay_spares_vectors_and_tokens_and_leaves_the_frozen_out():
    model = create_model("t2t_vit_micro", img_size=32)
    spared, decayed = param_groups(model, 0.05)
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    assert names(model, spared) | names(model, decayed) == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    assert names(model, decayed) == {
        name for name, parameter in model.named_parameters() if parameter.ndim == 2 and not name.endswith(".w")
    }
    assert "cls_token" in names(model, spared)


def test_decay_spares_all_tokens_of_a_distilled_model():
    model = create_model("vit_deit_tiny_distilled_patch16_224", img_size=32, embed_dim=24, depth=1)
    assert {"cls_token", "dist_token", "pos_embed"} <= names(model, param_groups(model, 0.05)[0])


def test_cifars_groups_are_the_authors():
    """transfer_learning.py: the head at lr, T2T module and blocks at a hundredth, class token and last norm nowhere."""
    recipe, model = RECIPES["cifar10_t2t_vit_14"], create_model("t2t_vit_micro", img_size=32)
    freeze(model, recipe.frozen or ())
    optimizer, scheduler = recipe_optimizer(recipe, model, steps_per_epoch=3)
    head, rest = optimizer.param_groups
    assert names(model, head) == {"head.weight", "head.bias"}
    assert {name.split(".")[0] for name in names(model, rest)} == {"tokens_to_token", "blocks"}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names(model, rest) == {name for name in trained if name.startswith(("tokens_to_token", "blocks"))}
    assert [group["weight_decay"] for group in (head, rest)] == [5e-4, 5e-4]
    assert isinstance(optimizer, torch.optim.SGD)
    assert (head["momentum"], head["nesterov"], head["dampening"]) == (0.9, False, 0)
    for step in range(190):
        expected = [epoch_lr(recipe, step // 3, scale) for scale in (1.0, 0.01)]
        assert [group["lr"] for group in (head, rest)] == expected
        optimizer.step()
        scheduler.step()


def test_groups_by_rate_and_decay():
    model = create_model("t2t_vit_micro", img_size=32)
    groups = param_groups(model, 0.05, backbone_lr_scale=0.1)
    assert [(g["lr_scale"], g["weight_decay"]) for g in groups] == [(1.0, 0.0), (1.0, 0.05), (0.1, 0.0), (0.1, 0.05)]
    assert [names(model, g) for g in groups[:2]] == [{"head.bias"}, {"head.weight"}]
    together = [name for group in groups for name in names(model, group)]
    assert sorted(together) == sorted(name for name, p in model.named_parameters() if p.requires_grad)


def test_the_schedule_of_a_layer_is_scaled_as_a_whole():
    recipe = Recipe(model="t2t_vit_micro", epochs=4, warmup_epochs=2, layer_decay=0.5)
    model = create_model("t2t_vit_micro", img_size=32)
    optimizer, scheduler = recipe_optimizer(recipe, model, steps_per_epoch=1)
    factors = {
        "head": 1.0,
        "norm": 0.5,
        "blocks.1": 0.5,
        "blocks.0": 0.25,
        "tokens_to_token": 0.125,
        "cls_token": 0.125,
    }
    for epoch in range(5):
        for group in optimizer.param_groups:
            for name in names(model, group):
                (factor,) = (value for prefix, value in factors.items() if name.startswith(prefix))
                assert group["lr"] == factor * epoch_lr(recipe, epoch)
        optimizer.step()
        scheduler.step()
    together = [name for group in optimizer.param_groups for name in names(model, group)]
    assert sorted(together) == sorted(name for name, p in model.named_parameters() if p.requires_grad)


def test_what_cannot_be_frozen_is_refused():
    with pytest.raises(ValueError, match="no parameter 'hea' nor a module with parameters; it has weight, bias"):
        freeze(nn.Linear(2, 2), ("hea",))


def test_ema_of_every_entry():
    model = nn.Linear(3, 2).double()
    ema = Ema(model, 0.9)
    expected = model.weight.detach().clone()
    for _ in range(3):
        with torch.no_grad():
            model.weight.normal_()
        ema.update(model)
        expected = 0.9 * expected + 0.1 * model.weight.detach()
    assert rel_f(ema.state["weight"], expected) <= 1e-15
    assert torch.equal(ema.state["bias"], model.bias)
    assert not ema.state["weight"].requires_grad
