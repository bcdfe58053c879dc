"""The ViT example holds, by its own test, and a ViT with a classic mistake does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import parity

pytest_plugins = ["pytester"]

IMAGES = np.random.RandomState(0).standard_normal((2, 3, 32, 32))


def test_the_example_passes_as_its_user_runs_it(run_example):
    run_example("vit_timm_style").assert_outcomes(passed=1)


def float32_softmax(model: nnx.Module) -> None:
    """A cast of the port's own: right in float32, and far below any tolerance that a float32 comparison can set."""

    def attention(query: jax.Array, key: jax.Array, value: jax.Array, **options: object) -> jax.Array:
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(value.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value)

    model.encoder[1].self_attention.attention_fn = attention


def test_flaxs_own_attention_is_float32_by_design(example):
    module = example("vit_timm_style/test_vit_parity")
    torch_model, jax_model = module.make_pair()
    jax_model.encoder[1].self_attention.attention_fn = nnx.dot_product_attention
    report = parity.check(torch_model, jax_model, IMAGES, rules=module.RULES, level="forward")
    assert report.passed
    assert any(note.startswith("float32 by design in: blocks.1.attn") for note in report.notes)


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
