"""The count from the sizes is the count of the products that JAX traces: to the unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr

from t2t_config import MODELS
from t2t_config.flops import forward_flops, forward_flops_by_part, training_flops
from t2t_jax import create_model
from t2t_jax.state import merge_model, split_model
from tests.support.families import FAMILIES

T2T = [name for name in MODELS if name.startswith("t2t_")]
FULL: dict[str, tuple[str, dict[str, Any]]] = {
    name: (
        name,
        {} if name in ("t2t_vit_14", "t2t_vit_dense") else {"depth": 2},
    )  # two blocks of one kind say what twenty-four do
    for name in (*T2T, "vit_small_patch16_224", "vit_base_patch32_384")
}
EVERYTHING: dict[str, tuple[str, dict[str, Any]]] = {**FAMILIES, **FULL}
EVERYTHING["aux_head"] = ("t2t_vit_tiny", {"img_size": 64, "aux_head": True})
EVERYTHING["features"] = ("t2t_vit_tiny", {"img_size": 64, "num_classes": 0})


def operations(jaxpr: Jaxpr, times: int = 1) -> Iterator[tuple[Any, int]]:
    """All equations and how often each runs: those of inner functions too, a scan's as often as it is long."""
    for equation in jaxpr.eqns:
        assert equation.primitive.name not in ("while", "ragged_dot_general"), "would be counted once"
        yield equation, times
        inner_times = times * equation.params["length"] if equation.primitive.name == "scan" else times
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: isinstance(leaf, Jaxpr | ClosedJaxpr)
        ):
            if isinstance(value, ClosedJaxpr):
                yield from operations(value.jaxpr, inner_times)
            elif isinstance(value, Jaxpr):
                yield from operations(value, inner_times)


def traced_flops(function: Callable[..., Any], *args: Any) -> int:
    """2 per multiply-add of every dot_general and convolution in `function`."""
    total = 0
    for equation, times in operations(jax.make_jaxpr(function)(*args).jaxpr):
        size = times * math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = equation.params["dimension_numbers"].rhs_spec[0]
            total += 2 * size * math.prod(kernel) // kernel[features]
    return total


def traced(name: str, arguments: dict[str, Any], *, train: bool) -> tuple[Any, Any, Any, Any]:
    """Forward pass of an abstract model, and its abstract parameters, buffers and image."""
    graphdef, shape = None, ()

    def split() -> tuple[Any, Any]:
        nonlocal graphdef, shape
        model: Any = create_model(name, **arguments)
        model.train() if train else model.eval()
        graphdef, params, buffers = split_model(model)
        shape = (1, *model.img_size, model.in_chans)
        return params, buffers

    params, buffers = jax.eval_shape(split)

    def forward(params: Any, buffers: Any, image: jax.Array) -> Any:
        rngs = nnx.Rngs(dropout=0) if train else None
        return merge_model(graphdef, {**params, **buffers})(image, rngs=rngs)

    return forward, params, buffers, jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize("key", EVERYTHING)
def test_forward(key: str):
    name, arguments = EVERYTHING[key]
    forward, *args = traced(name, arguments, train=False)
    assert forward_flops(name, **arguments) == traced_flops(forward, *args) > 0


@pytest.mark.parametrize("key", [key for key in EVERYTHING if key not in {"convolution", *FULL}])
def test_training(key: str):
    """Not of convolution tokens: their gradients are convolutions over images spread out with zeros."""
    name, arguments = EVERYTHING[key]
    forward, *args = traced(name, arguments, train=True)

    def loss(*args: Any) -> jax.Array:
        return sum((output.sum() for output in jax.tree.leaves(forward(*args))), jnp.zeros(()))

    assert training_flops(name, **arguments) == traced_flops(jax.value_and_grad(loss), *args)


def test_training_of_convolution_tokens():
    """The first convolution needs no gradient by its input, all the rest does."""
    name, arguments = FAMILIES["convolution"]
    parts = forward_flops_by_part(name, **arguments)
    assert training_flops(name, **arguments) == 3 * sum(parts.values()) - parts["tokens_to_token.soft_split0"]


@pytest.mark.parametrize(
    ("name", "giga"),
    [
        ("t2t_vit_14", 4.8),
        ("t2t_vit_19", 8.5),
        ("t2t_vit_24", 13.8),
        ("t2t_vit_t_14", 6.1),
        ("t2t_vit_t_19", 9.8),
        ("deit_small_patch16_224", 4.6),
        ("vit_base_patch16_224", 17.6),
    ],
)
def test_published_multiply_adds(name: str, giga: float):
    """T2T-ViT paper, table 2, and DeiT's (there called FLOPs), as precisely as they are given."""
    assert forward_flops(name) / 2e9 == pytest.approx(giga, rel=0.05)


def test_parts_are_modules():
    """Every part is the path of a module (or of the performer's `w`), so that sums by prefix mean something."""
    for name, arguments in FAMILIES.values():
        model = nnx.eval_shape(lambda name=name, arguments=arguments: create_model(name, **arguments))
        paths = {".".join(map(str, path)) for path, _ in nnx.iter_graph(model)}
        assert forward_flops_by_part(name, **arguments).keys() <= paths


def test_images_by_size():
    """Twice the height and width: four times the patches, sixteen times the attention."""
    small, large = (forward_flops_by_part("deit_tiny_patch16_224", img_size=size) for size in (224, 448))
    assert large["patch_embed.proj"] == 4 * small["patch_embed.proj"]
    assert large["blocks.0.attn"] / small["blocks.0.attn"] == (785 / 197) ** 2
    assert large["head"] == small["head"]
    with pytest.raises(ValueError, match="did you mean"):
        forward_flops("t2t_vit_15")
