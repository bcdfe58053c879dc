"""Figures in README are what the code computes."""

from __future__ import annotations

import re

import pytest

from t2t_config import MODELS, model_config
from t2t_config.flops import forward_flops
from t2t_config.pretrained import PRETRAINED
from tests.docs.blocks import ROOT

ROW = re.compile(r"^\| `(t2t_\w+)` \| (\w+) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| (.*) \|$", re.MULTILINE)


def test_the_table_of_models():
    rows = ROW.findall((ROOT / "README.md").read_text())
    in_paper = {name for name, config in MODELS.items() if config.in_paper and config.arch != "VisionTransformer"}
    assert {name for name, *_ in rows} == in_paper
    for name, tokens, parameters, macs, top1, weights in rows:
        config = model_config(name)
        assert tokens == config.sizes["tokens_type"], name
        assert parameters == f"{config.num_params:,}", name
        assert macs == f"{forward_flops(name) / 2e9:.2f}", name
        assert float(top1) == config.top1, name
        published = PRETRAINED.get(name, {}).items()
        cells = [f"`{tag}`" if tag == "in1k" else f"`{tag}` {file.top1}" for tag, file in published]
        assert weights == (", ".join(cells) or "none"), name


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("t2t_vit_7", 1.1),
        ("t2t_vit_10", 1.5),
        ("t2t_vit_12", 1.8),
        ("t2t_vit_14", 4.8),
        ("t2t_vit_19", 8.5),
        ("t2t_vit_t_14", 6.1),
        ("t2t_vit_t_19", 9.8),
        ("t2t_vit_t_24", 15.0),
    ],
)
def test_the_authors_counts_are_ours(name: str, published: float):
    """Of their README, 10^9 MACs, after their own correction for T2T-ViT-7, 10 and 12. For T2T-ViT-24 it says 13.8,
    which is 0.1 more than their blocks have."""
    assert abs(forward_flops(name) / 2e9 - published) <= 0.051
