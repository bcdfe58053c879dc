"""The baseline computes what the model computes: only then is it fair to compare their speed."""

from __future__ import annotations

import pytest
import torch

import t2t_torch
from t2t_config.models import model_config
from tools.benchmarks.baseline import Baseline

SIZES = ("embed_dim", "depth", "num_heads", "mlp_ratio")


@pytest.mark.parametrize("img_size", [32, 64])
def test_the_baseline_is_the_model(img_size: int):
    sizes = model_config("t2t_vit_7").sizes
    theirs = Baseline(**{name: sizes[name] for name in SIZES}, img_size=img_size, num_classes=10).double().eval()
    ours = t2t_torch.create_model("t2t_vit_7", img_size=img_size, num_classes=10).double().eval()
    torch.nn.init.normal_(ours.head.weight)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, img_size, img_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = ours(x), theirs(x)
    assert torch.linalg.norm(found - expected) <= 1e-13 * torch.linalg.norm(expected)
