"""The ViT example holds, by its own test, and a ViT with a classic mistake does not."""

import numpy as np
import pytest
from flax import nnx

import parity

pytest_plugins = ["pytester"]

IMAGES = np.random.RandomState(0).standard_normal((2, 3, 32, 32))


def test_the_example_passes_as_its_user_runs_it(run_example):
    run_example("vit_timm_style").assert_outcomes(passed=1)


def float32_softmax(model: nnx.Module) -> None:
    """Flax's own attention: right in float32, and far below any tolerance that a float32 comparison can set."""
    model.encoder[1].self_attention.attention_fn = nnx.dot_product_attention


def torch_epsilon(model: nnx.Module) -> None:
    """PyTorch's default in place of timm's 1e-6."""
    model.encoder[0].norm2.epsilon = 1e-5


@pytest.mark.parametrize(("bug", "culprit"), [(float32_softmax, "blocks.1.attn"), (torch_epsilon, "blocks.0.norm2")])
def test_a_seeded_bug_is_found_in_its_layer(example, bug, culprit):
    module = example("vit_timm_style/test_vit_parity")
    torch_model, jax_model = module.make_pair()
    bug(jax_model)
    report = parity.check(torch_model, jax_model, IMAGES, rules=module.RULES, level="forward")
    assert report.first_divergence == culprit
    assert not report.passed


def test_swapped_keys_and_queries_are_found(example):
    module = example("vit_timm_style/test_vit_parity")
    torch_model, jax_model = module.make_pair()
    attention = jax_model.encoder[0].self_attention
    attention.query, attention.key = attention.key, attention.query
    report = parity.check(torch_model, jax_model, IMAGES, rules=module.RULES, level="forward")
    assert report.first_divergence == "blocks.0.attn"
    assert {row.name for row in report.failures if row.kind == "weights"} >= {"blocks.0.attn.qkv.weight"}
