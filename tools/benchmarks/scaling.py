"""python -m tools.benchmarks.scaling [--model NAME] [--sizes 224 448 672 896] [--textbook] [--json FILE]

Time and memory of the T2T module against pixels, forward and backward: the performer is linear in its tokens, so the
cost of a pixel should not depend on their number. Memory is what the compiled program says that it needs besides its
arguments; time is the least of some calls. The transformer is quadratic in time; with
`--textbook` it holds all of its scores, as softmax(q k^T) v is written.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

import t2t_jax
from t2t_common.io import cli
from t2t_common.io.files import check_target, write_text
from t2t_jax.models import token_transformer
from t2t_jax.state import Arrays, merge_model, split_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    model: str = "t2t_vit_14"
    """Whose T2T module is measured."""
    sizes: tuple[int, ...] = (224, 448, 672, 896)
    """Sides of the images, in pixels; the first is what the others are compared with."""
    batch: int = 2
    """Images of a call."""
    calls: int = 5
    """Calls of which the least time counts, after one that does not."""
    textbook: bool = False
    """Whether a T2T transformer computes its attention as it is written in textbooks."""
    json: Path | None = None
    """File for all figures."""


def textbook_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T) v."""
    return jax.nn.softmax(q @ k.swapaxes(1, 2), axis=-1) @ v


def measure(model: str, img_size: int, batch: int, calls: int) -> dict[str, float]:
    """Seconds and temporary bytes of one forward and backward pass through the T2T module."""
    whole: Any = t2t_jax.create_model(model, img_size=img_size, rngs=nnx.Rngs(0))
    whole.train()
    graphdef, params, buffers = split_model(whole.tokens_to_token)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((batch, img_size, img_size, 3), dtype=np.float32))

    def loss(params: Arrays, buffers: Arrays, images: jax.Array) -> jax.Array:
        return merge_model(graphdef, {**params, **buffers})(images, nnx.Rngs(dropout=0)).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params, buffers, images).compile()
    seconds = []
    for _ in range(1 + calls):
        start = time.perf_counter()
        jax.block_until_ready(compiled(params, buffers, images))
        seconds.append(time.perf_counter() - start)
    memory: Any = compiled.memory_analysis()
    return {"seconds": min(seconds[1:]), "temporary_bytes": memory.temp_size_in_bytes}


def main(args: Sequence[str]) -> int:
    options = cli.parse(Options, args, prog="python -m tools.benchmarks.scaling", description=__doc__ or "")
    if options.calls < 1 or not options.sizes:
        raise ValueError("--calls and --sizes: at least one of each has to be there")
    if options.json is not None:
        check_target(options.json)
    console, found = Console(), {}
    attention = textbook_attention if options.textbook else token_transformer.one_head_attention
    for size in options.sizes:
        with (
            console.status(f"{options.model}, {size} px"),
            mock.patch.object(token_transformer, "one_head_attention", attention),
        ):
            found[size] = measure(options.model, size, options.batch, options.calls)
    table = Table("pixels", "ms an image", "MB an image", "time a pixel, of the first", "memory a pixel, of the first")
    for size, figures in found.items():
        each = [figures[name] / options.batch for name in ("seconds", "temporary_bytes")]
        first = [found[options.sizes[0]][name] / options.sizes[0] ** 2 for name in ("seconds", "temporary_bytes")]
        shares = [x * options.batch / size**2 / y for x, y in zip(each, first, strict=True)]
        table.add_row(f"{size}^2", f"{each[0] * 1e3:.1f}", f"{each[1] / 1e6:.1f}", *(f"{x:.2f}" for x in shares))
    console.print(table)
    if options.json is not None:
        write_text(options.json, json.dumps({"options": _plain(options), "sizes": found}, indent=1) + "\n")
    return cli.OK


def _plain(options: Options) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(options).items() if key != "json"}


if __name__ == "__main__":
    sys.exit(cli.run(main))
