"""Random weights under which every mistake shows."""

from __future__ import annotations

import torch

import t2t_torch
from parity import randomize


def test_no_layer_is_neutral():
    model = t2t_torch.create_model("t2t_vit_micro", img_size=32)
    randomize(model, seed=3)
    # Frozen tensors keep their values (next test); the position table starts with sin 0 and cos 0.
    for name, tensor in model.named_parameters():
        if not tensor.requires_grad:
            continue
        values = tensor.detach().flatten()[:16]
        assert not torch.isin(values, torch.tensor([0.0, 1.0])).all(), name
        assert len(values.unique()) > 1, name
    scales = [module.weight for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert all(not torch.equal(scales[0], other) for other in scales[1:] if other.shape == scales[0].shape)


def test_frozen_tensors_keep_their_values():
    model = t2t_torch.create_model("t2t_vit_micro", img_size=32)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    randomize(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in frozen.items())
    w = model.tokens_to_token.attention1.w
    assert torch.allclose(w @ w.T, 8 * torch.eye(8), atol=1e-4)


def test_single_and_complex_numbers_are_drawn_too():
    model = torch.nn.Module()
    model.scale = torch.nn.Parameter(torch.tensor(1.0))
    model.z = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    randomize(model)
    assert 0.5 < model.scale.item() < 1.5
    assert model.scale.item() != 1
    assert (model.z.imag != 0).all()
