"""Every one of our models at the gates, and how pairs of them are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import t2t_jax.models.mix_token
import t2t_jax.training.loss
import t2t_jax.training.token_labeling
import t2t_torch.models.mix_token
import t2t_torch.training.token_labeling
from parity import assert_parity, build_ledger, check, jax_to_torch, rel_f
from parity.carry.convert import state_equal
from parity.runs.losses import Loss
from t2t_config import MODELS
from t2t_parity.pair import SCANNED, make_pair
from tests.support.parity import sizes
from tests.support.parity.pairs import images
from tests.support.profiles import examples

OFFICIAL = [name for name, config in MODELS.items() if name.startswith("t2t_") and config.in_paper]


def prove(name: str, *, level: str = "forward", img_size: Any = 32, in_chans: int = 3, **arguments: Any) -> None:
    height, width = img_size if isinstance(img_size, tuple) else (img_size, img_size)
    arguments = {"img_size": img_size, "in_chans": in_chans, "num_classes": 10} | arguments
    report = assert_parity(*make_pair(name, **arguments), images(2, in_chans, height, width), level=level)
    assert report.unpaired == ()


# ---- every size, forward; goldens of the authors' code hold the gradients (tests/jax/test_golden.py) ----


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_layer_of_every_t2t_model(name: str):
    assert len(OFFICIAL) == 14
    prove(name)


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_14"])
def test_every_layer_at_full_size(name: str):
    prove(name, img_size=224, num_classes=1000)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_deit_tiny_distilled_patch16_224", {}),
        ("vit_small_patch16_224", {"depth": 2}),
        ("vit_base_patch16_224_in21k", {"depth": 2, "representation_size": 768}),
        ("vit_base_patch32_384", {"depth": 2}),
        ("vit_base_patch16_224_miil", {"depth": 1}),
        ("vit_huge_patch14_224_in21k", {"depth": 1, "img_size": 30}),
    ],
)
def test_every_layer_of_vit_and_deit(name: str, arguments: dict[str, Any]):
    prove(name, **{"img_size": 64} | arguments)


# ---- every architecture, gradients and training mode too ----


@pytest.mark.parametrize("tokens_type", ["performer", "transformer", "convolution"])
def test_gradients_and_training_mode(tokens_type: str):
    rates = {"drop_rate": 0.1, "attn_drop_rate": 0.2, "drop_path_rate": 0.3}
    aux_head = tokens_type == "transformer"  # token labeling's pair of outputs
    prove("t2t_vit_micro", level="train", tokens_type=tokens_type, depth=1, aux_head=aux_head, **rates)


BOX = (0, 2, 1, 2)
"""top, bottom, left, right in a grid of 2 x 2 tokens."""


class TorchLabelled(torch.nn.Module):
    """Token labeling as a step does it: MixToken's box passed with the call."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> Any:
        return self.model(x, mix=t2t_torch.models.mix_token.MixToken(*BOX))


class JaxLabelled(nnx.Module):
    def __init__(self, model: nnx.Module) -> None:
        self.model = model

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> Any:
        return self.model(x, rngs, mix=t2t_jax.models.mix_token.MixToken(*BOX))


def token_label_loss() -> Loss:
    """Of training's pair of outputs, for random targets; in evaluation, of the sum that takes its place."""
    targets = np.random.RandomState(0).dirichlet(np.ones(10), (2, 5))

    def in_torch(outputs: Any) -> torch.Tensor:
        if not isinstance(outputs, tuple):
            return torch.nn.functional.cross_entropy(outputs, torch.from_numpy(targets[:, 0]).to(outputs))
        return t2t_torch.training.token_labeling.token_label_cross_entropy(
            *outputs, torch.from_numpy(targets).to(outputs[0]), t2t_torch.models.mix_token.MixToken(*BOX)
        )

    def in_jax(outputs: Any) -> jax.Array:
        if not isinstance(outputs, tuple):
            return t2t_jax.training.loss.cross_entropy(outputs, targets[:, 0])
        return t2t_jax.training.token_labeling.token_label_cross_entropy(
            *outputs, targets.astype(outputs[0].dtype), t2t_jax.models.mix_token.MixToken(*BOX)
        )

    return Loss("token labeling", in_torch, in_jax)


def test_token_labeling_with_one_box():
    pair = make_pair("t2t_vit_micro", img_size=32, num_classes=10, depth=1, aux_head=True)
    torch_model, jax_model = TorchLabelled(pair[0]).train(), JaxLabelled(pair[1])
    report = assert_parity(torch_model, jax_model, images(2, 3, 32, 32), level="train", loss=token_label_loss())
    assert report.unpaired == ()


@pytest.mark.parametrize("name", ["t2t_vit_14_se", "t2t_vit_dense", "t2t_vit_16_ghost", "t2t_vit_14_resnext"])
def test_gradients_of_every_architecture(name: str):
    prove(name, level="gradients", **({"block_config": (1, 1)} if name == "t2t_vit_dense" else {"depth": 1}))


@pytest.mark.parametrize("arguments", [{"distilled": True}, {"representation_size": 48}])
def test_gradients_of_vit(arguments: dict[str, Any]):
    prove("vit_deit_tiny_patch16_224", level="train", depth=1, **arguments)


# ---- sizes, channels, heads ----


@pytest.mark.parametrize(
    "arguments",
    [
        {"img_size": (48, 32), "tokens_type": "performer", "in_chans": 1},
        {"img_size": (33, 47), "tokens_type": "transformer", "num_classes": 0},
        {"img_size": (16, 90), "tokens_type": "convolution", "num_classes": 1},
        {"img_size": (47, 33), "tokens_type": "performer", "qk_scale": 0.1, "qkv_bias": True},
        {"img_size": (30, 50), "tokens_type": "convolution", "in_chans": 4},
        {"img_size": 3, "tokens_type": "performer"},
    ],
)
def test_any_size_channels_heads_and_options(arguments: dict[str, Any]):
    prove("t2t_vit_micro", depth=1, **arguments)


def test_vit_of_any_shape():
    prove("vit_deit_tiny_patch16_224", depth=1, img_size=(37, 50), in_chans=1, num_classes=0)


@examples(4)
@given(sizes.models(), st.lists(st.sampled_from(sorted(sizes.IMAGES)), min_size=4, max_size=4, unique=True))
def test_any_model_and_images_of_any_numbers(model: tuple[str, dict[str, Any]], kinds: list[str]):
    """One image: within 1e-13, NaN and infinities in the same places.

    All-equal pixels leave a normalisation nothing but roundings, which it makes large, and an output of few numbers may
    be the small rest of large terms: the outputs may differ by ten times what a change of the last bit of every pixel,
    or of every weight, does to PyTorch's own. The pixels alone do not tell where they are 0.
    """
    name, arguments = model
    draw = np.random.RandomState(0)
    with jax.enable_x64(True), jax.debug_nans(False), np.errstate(all="ignore"):
        pair = sizes.Pair(name, **arguments)
        z = draw.standard_normal((1, arguments["in_chans"], *arguments["img_size"]))
        for kind in kinds:
            x = sizes.IMAGES[kind](z)
            ours = pair.in_torch(x)
            if not np.isfinite(ours).any():
                assert np.array_equal(pair.in_jax(x), ours, equal_nan=True), kind
                continue
            noise = rel_f(pair.in_torch(x * (1 + draw.choice((-1, 1), x.shape) * 2.0**-52)), ours)
            of_weights = rel_f(pair.in_torch(x, weights=2.0**-52), ours)
            assert rel_f(pair.in_jax(x), ours) <= max(1e-13, 10 * noise, 10 * of_weights), kind
            assert noise < 1e-13 or not kind.startswith(("normal", "one", "zero")), kind


def in_both(pair: sizes.Pair, shape: tuple[int, ...], dtype: str) -> tuple[str, str]:
    """Shape of what becomes of images of that shape (PyTorch's), or what a ValueError says before its figures."""

    def outcome(run: Callable[[np.ndarray], np.ndarray]) -> str:
        try:
            return str(run(np.zeros(shape, dtype)).shape)
        except ValueError as error:
            return str(error).split("(")[0]

    return outcome(pair.in_torch), outcome(pair.in_jax)


@pytest.fixture(scope="module")
def small_pair() -> sizes.Pair:
    with jax.enable_x64(True):
        return sizes.Pair("t2t_vit_micro", img_size=(5, 8), num_classes=2, depth=1, tokens_type="convolution")


@examples(40)
@given(
    st.tuples(st.integers(0, 2), st.sampled_from((3, 1)), st.sampled_from((5, 8)), st.sampled_from((8, 5, 0))),
    st.sampled_from(("float64", "uint8", "int64", "bool")),
)
def test_images_that_do_not_fit_are_the_same_error_in_both_frameworks(
    small_pair: sizes.Pair, shape: tuple[int, ...], dtype: str
):
    with jax.enable_x64(True):
        ours, theirs = in_both(small_pair, shape, dtype)
    assert ours == theirs
    fits = shape[1:] == (3, 5, 8)
    assert ours.startswith(str((shape[0], 2)) if fits and dtype == "float64" else "expected ")


# ---- weights ----


def test_the_seed_decides():
    """Every tensor, the performers' frozen features too."""
    a, b, c = (make_pair("t2t_vit_micro", seed=seed, img_size=32)[0].state_dict() for seed in (0, 0, 1))
    assert not [name for name in a if not torch.equal(a[name], b[name])]
    assert [name for name in a if torch.equal(a[name], c[name])] == ["pos_embed"]


@pytest.mark.parametrize("seed", [None, 5])
def test_a_pair_has_the_same_bits(seed: int | None):
    torch_model, jax_model = make_pair("t2t_vit_micro", seed=seed, img_size=32, num_classes=4)
    assert isinstance(jax_model, nnx.Module)
    assert state_equal(build_ledger(torch_model, jax_model), torch_model, jax_model) == []
    assert bool(torch_model.head.bias.any()) == (seed is not None)  # None: as initialised


def test_a_pair_from_a_checkpoint(tmp_path: Any):
    source, _ = make_pair("t2t_vit_micro", seed=7, img_size=32, num_classes=4)
    source.double()
    t2t_torch.save_checkpoint(source, tmp_path / "m.pth")
    torch_model, jax_model = make_pair("t2t_vit_micro", checkpoint=str(tmp_path / "m.pth"), img_size=32, num_classes=4)
    assert torch.equal(torch_model.head.weight, source.head.weight)
    assert jax_model.head.kernel.dtype == np.float64  # the bits are kept
    assert state_equal(build_ledger(torch_model, jax_model), torch_model, jax_model) == []


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="t2t_vit_14"):
        make_pair("t2t_vit_13")


# ---- blocks that JAX keeps stacked ----


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("t2t_vit_14", {"depth": 3, "tokens_type": "convolution"}),
        ("t2t_vit_14_se", {"depth": 2, "tokens_type": "convolution"}),
        ("t2t_vit_16_ghost", {"depth": 2, "tokens_type": "convolution"}),
        ("vit_deit_tiny_distilled_patch16_224", {"depth": 2}),
    ],
)
def test_stacked_blocks_are_pytorchs_too(name: str, arguments: dict[str, Any]):
    """Bits there and back, logits at 1e-13, every gradient at 1e-12."""
    torch_model, jax_model = make_pair(name, img_size=32, num_classes=10, scan_blocks=True, **arguments)
    report = assert_parity(torch_model, jax_model, images(2, 3, 32, 32), rules=SCANNED)
    assert {row.index for row in report.ledger if row.jax.startswith("blocks.")} == set(range(arguments["depth"]))
    assert "norm" in {row.name for row in report.rows if row.kind == "layer"}
    weights = {key: value.clone() for key, value in torch_model.state_dict().items()}
    with torch.no_grad():
        for tensor in torch_model.state_dict().values():
            tensor.zero_()
    ledger = jax_to_torch(jax_model, torch_model, rules=SCANNED)
    assert len(ledger) == len(weights)
    assert all(torch.equal(value, weights[key]) for key, value in torch_model.state_dict().items())


def test_two_blocks_changed_over_are_found():
    torch_model, jax_model = make_pair("vit_deit_tiny_distilled_patch16_224", img_size=32, depth=2, scan_blocks=True)
    kernel = jax_model.blocks.mlp.fc1.kernel
    kernel.set_value(kernel[...][::-1])
    report = check(torch_model, jax_model, images(2, 3, 32, 32), rules=SCANNED, level="forward")
    assert not report.passed
    assert report.first_divergence is not None
