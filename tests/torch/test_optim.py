"""Which parameters decay, and the moving average."""

from __future__ import annotations

import torch
from torch import nn

from t2t_torch import create_model
from t2t_torch.optim import Ema, param_groups
from tests.golden import rel_f


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
