"""python -m tools.benchmarks.scaling [--model NAME] [--sizes 224 448 672 896] [--textbook] [--json FILE]

Time and memory of the T2T module against pixels, forward and backward: the performer is linear in its tokens, so the
cost of a pixel should not depend on their number. Memory is what the compiled program says that it needs besides its
arguments; time is the least of some calls. The transformer is quadratic in time; with
`--textbook` it holds all of its scores, as softmax(q k^T) v is written.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

import t2t_jax
from t2t_common.io import cli
from t2t_jax.models import token_transformer
from t2t_jax.state import Arrays, merge_model, split_model
from tools.command import parse, save
from tools.tables import show


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


COLUMNS = ("pixels", "ms an image", "MB an image", "time a pixel", "memory a pixel")


def rows(report: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """What was measured as rows of `COLUMNS`; the costs of a pixel are those of the smallest images times as much."""
    batch, sizes = report["options"]["batch"], {int(size): figures for size, figures in report["sizes"].items()}
    first = min(sizes)
    for size, figures in sizes.items():
        cost = f"{figures['seconds'] / batch * 1e3:.0f}", f"{figures['temporary_bytes'] / batch / 1e6:.0f}"
        shares = (figures[k] / sizes[first][k] * first**2 / size**2 for k in ("seconds", "temporary_bytes"))
        yield f"{size} x {size}", *cost, *(f"{share:.2f}" for share in shares)


def main(args: Sequence[str]) -> int:
    options = parse(Options, args, "tools.benchmarks.scaling", __doc__)
    if options.calls < 1 or not options.sizes:
        raise ValueError("--calls and --sizes: at least one of each has to be there")
    console, found = Console(), {}
    attention = textbook_attention if options.textbook else token_transformer.one_head_attention
    for size in options.sizes:
        with (
            console.status(f"{options.model}, {size} px"),
            mock.patch.object(token_transformer, "one_head_attention", attention),
        ):
            found[size] = measure(options.model, size, options.batch, options.calls)
    asked = {key: value for key, value in dataclasses.asdict(options).items() if key != "json"}
    report = {"options": asked, "sizes": found}
    show(COLUMNS, rows(report))
    save(options.json, report)
    return cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
