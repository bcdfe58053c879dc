"""python -m tools.benchmarks.levers [--model NAME] [--batch N] [--parts NAME ...] [--json FILE]

What each lever does to the program of a TPU that is not there: the T2T module and one block of the backbone, forward
and backward, in bfloat16, compiled as they are and again with one lever undone, in the form that it replaced. Bytes
that the program reads and writes, and its temporary memory, an image; never a speed. Needs libtpu
(pip install -e ".[tpu]").
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import SingleDeviceSharding

import t2t_jax
from t2t_common.io import cli
from t2t_common.io.terminal import status
from t2t_config.models import model_config
from t2t_jax.aot.topology import tpu_topology
from t2t_jax.compile import ENVIRONMENT
from t2t_jax.models import layers, token_transformer, transformer_block
from t2t_jax.ops import softmax
from t2t_jax.ops.float32_einsum import float32_einsum
from t2t_jax.ops.platform import ONE_DEVICE, batch_on, traced_for
from t2t_jax.ops.tpu_attention import kernel_attention
from t2t_jax.state import Arrays, merge_model, split_model
from tools.command import parse, save
from tools.tables import show

Part = Literal["tokens_to_token", "block"]
PARTS: tuple[Part, ...] = ("tokens_to_token", "block")
AS_IT_IS = "as it is"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    model: str = "t2t_vit_14"
    """Whose parts are compiled."""
    topology: str = "v5e:2x2"
    """TPUs of which one is compiled for."""
    batch: int = 64
    """Images."""
    parts: tuple[Part, ...] = PARTS
    """What is compiled."""
    json: Path | None = None
    """File for all figures."""


@dataclasses.dataclass(frozen=True)
class Lever:
    """One thing that the models do, and how to undo it."""

    undone: str
    """What stood in its place."""
    patches: tuple[tuple[Any, str, Any], ...] = ()
    """Module or class, attribute, what replaces it."""
    dtype: Any = jnp.bfloat16
    """Of the computation."""
    remat: bool = False
    """Whether a part's activations are computed again in its backward pass."""
    tokens_types: tuple[str, ...] = ("performer", "transformer")
    """Kinds of T2T module that have it."""
    parts: tuple[str, ...] = PARTS
    """Parts that have it."""

    @contextlib.contextmanager
    def undo(self) -> Iterator[None]:
        """The time without it."""
        with contextlib.ExitStack() as stack:
            for owner, name, replacement in self.patches:
                stack.enter_context(mock.patch.object(owner, name, replacement))
            yield


def as_on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `function` does where it is traced for a CPU."""

    def call(*args: Any, **options: Any) -> Any:
        with traced_for("cpu"):
            return function(*args, **options)

    return call


def plain_einsum(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """As `float32_einsum`, with the gradients that autodiff makes: of float32 factors."""
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def divided_after(attn: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(attn) v whose sums divide the product, D numbers for each token in place of M."""
    exp = jnp.exp(attn - jax.lax.stop_gradient(attn.max(axis=-1, keepdims=True)))
    product = float32_einsum("...nm,...md->...nd", exp.astype(v.dtype), v)
    return (product / exp.sum(axis=-1, keepdims=True)).astype(v.dtype)


def all_at_once(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T) v of one head."""
    return softmax.softmax_product(float32_einsum("bnd,bmd->bnm", q, k), v)


def by_kernel(q: jax.Array, k: jax.Array, v: jax.Array, scale: float, *_: Any) -> jax.Array:
    """`transformer_block.dot_product_attention` by the kernel that the T2T transformer takes, tokens padded."""
    B, H, N, D = q.shape
    x = kernel_attention(*(x.reshape(B * H, N, D) for x in (q * scale, k, v))).reshape(B, H, N, D)
    return jax.lax.collapse(x.swapaxes(1, 2), 2)


def exact_gelu(x: jax.Array) -> jax.Array:
    """JAX's own, by erfc."""
    return jax.nn.gelu(x, approximate=False)


BLOCK = ("block",)
LEVERS = {
    "softmax, then the product with v": Lever(
        "divided after the product, as on CPU",
        ((transformer_block, "softmax_product", divided_after),),
        parts=BLOCK,
    ),
    "softmax written out": Lever(
        "a kernel",
        ((transformer_block, "dot_product_attention", by_kernel),),
        parts=BLOCK,
    ),
    "gradients of the scores in bfloat16": Lever(
        "in float32", ((transformer_block, "float32_einsum", plain_einsum),), parts=BLOCK
    ),
    "T2T attention by a kernel": Lever(
        "by rows, as elsewhere",
        ((token_transformer, "one_head_attention", softmax.attention_by_rows),),
        tokens_types=("transformer",),
        parts=("tokens_to_token",),
    ),
    "T2T attention in parts": Lever(
        "all scores at once",
        ((token_transformer, "one_head_attention", all_at_once),),
        tokens_types=("transformer",),
        parts=("tokens_to_token",),
    ),
    "soft split by a convolution": Lever(
        "slices, as on CPU",
        ((layers.Unfold, "__call__", as_on_cpu(layers.Unfold.__call__)),),
        parts=("tokens_to_token",),
    ),
    "GELU by erf, one array kept": Lever("jax.nn.gelu", ((layers, "gelu", exact_gelu),)),
    "LayerNorm in PyTorch's order": Lever("flax's", ((layers.LayerNorm, "__call__", nnx.LayerNorm.__call__),)),
    "tokens as they are around Linear": Lever(
        "in one dimension, as on CPU", ((layers.Linear, "__call__", as_on_cpu(layers.Linear.__call__)),), parts=BLOCK
    ),
    "bfloat16": Lever("float32", dtype=jnp.float32),
    "activations kept": Lever("--remat: computed again", remat=True),
}
"""What the models do -> what it replaced; the last two are options of the training command."""


def measure(options: Options, part: str, lever: Lever | None) -> dict[str, float]:
    """Bytes an image that the compiled part reads and writes, and that it holds besides its arguments."""
    lever = lever or Lever("")
    whole: Any = nnx.eval_shape(lambda: t2t_jax.create_model(options.model, dtype=lever.dtype, rngs=nnx.Rngs(0)))
    whole.train()
    module = whole.blocks[0] if part == "block" else whole.tokens_to_token
    graphdef, params, buffers = split_model(module)
    images = (options.batch, *whole.img_size, 3)
    tokens = (options.batch, *whole.pos_embed.shape[1:])
    x = jax.ShapeDtypeStruct(tokens if part == "block" else images, lever.dtype)

    def forward(params: Arrays, buffers: Arrays, x: jax.Array) -> jax.Array:
        return merge_model(graphdef, {**params, **buffers})(x, nnx.Rngs(dropout=0))

    def gradients(params: Arrays, buffers: Arrays, x: jax.Array, given: jax.Array) -> Any:
        run = jax.checkpoint(forward) if lever.remat else forward
        result, backward = jax.vjp(lambda params, x: run(params, buffers, x), params, x)
        return result, backward(given)

    with traced_for("tpu"), batch_on(ONE_DEVICE), lever.undo():
        given = jax.eval_shape(forward, params, buffers, x)
        chip = SingleDeviceSharding(tpu_topology(options.topology).devices[0])
        arguments = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=chip), (params, buffers, x, given)
        )
        compiled: Any = jax.jit(gradients).lower(*arguments).compile()
    traffic, memory = compiled.cost_analysis()["bytes accessed"], compiled.memory_analysis().temp_size_in_bytes
    return {"bytes": traffic / options.batch, "temporary_bytes": memory / options.batch}


COLUMNS = ("part", "lever", "undone", "MB an image", "of that with it", "temporary MB an image", "of that with it")


def rows(parts: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[tuple[str, ...]]:
    """What was found as rows of `COLUMNS`, one for each lever and part."""
    for part, levers in parts.items():
        for name, row in levers.items():
            cells = (
                text
                for key in ("bytes", "temporary_bytes")
                for text in (f"{row[key] / 1e6:.2f}", f"{row[key] / levers[AS_IT_IS][key]:.2f}")
            )
            yield part, name, LEVERS[name].undone if name in LEVERS else "", *cells


def main(args: Sequence[str]) -> int:
    """The command; its exit code."""
    options = parse(Options, args, "tools.benchmarks.levers", __doc__)
    tokens_type = model_config(options.model).sizes.get("tokens_type")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for part in options.parts:
        undone = {name: x for name, x in LEVERS.items() if part in x.parts and tokens_type in x.tokens_types}
        levers: dict[str, Lever | None] = {AS_IT_IS: None, **undone}
        with status(f"{options.model}, {part}") as progress:
            found[part] = {}
            for name, lever in levers.items():
                progress.update(f"{options.model}, {part}: {name if lever is None else f'without {name!r}'}")
                found[part][name] = measure(options, part, lever)
    show(COLUMNS, rows(found))
    facts = {"model": options.model, "topology": options.topology, "batch": options.batch, "parts": found}
    save(options.json, facts)
    return cli.OK


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):  # as t2t_jax.compile
        command = [sys.executable, "-m", "tools.benchmarks.levers", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **ENVIRONMENT})
    sys.exit(cli.run(main))
