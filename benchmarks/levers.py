"""python -m benchmarks.levers [--model NAME] [--topology v5e:2x2] [--batch N] [--only NAME ...] [--json FILE]

What each lever does to the training step on TPUs that are not there: the step is compiled as it is, and again with one
lever undone at a time, in the form that it replaced. FLOPs, bytes that the program reads and writes, and memory; never
a speed. Needs libtpu (pip install 't2t-vit[tpu]'). With `--json` what the file already has is kept, so that a command
that was stopped goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx
from rich.table import Table

from t2t_common import cli
from t2t_common.files import check_target, write_text
from t2t_common.terminal import make_console, status
from t2t_config.models import model_config
from t2t_jax import compile, layers, softmax, transformer_block

AS_IT_IS = "as it is"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    model: str = "t2t_vit_14"
    """Whose training step is compiled."""
    topology: str = "v5e:2x2"
    """TPUs to compile for."""
    batch: int = 256
    """Images of a step, all devices together."""
    only: tuple[str, ...] = ()
    """Levers to undo; none takes all that the model has."""
    json: Path | None = None
    """File for all figures."""


@dataclasses.dataclass(frozen=True)
class Lever:
    """One thing that the step does, and how to undo it."""

    undone: str
    """What stands in its place."""
    patches: tuple[tuple[Any, str, Any], ...] = ()
    """Module or class, attribute, what stands there in its place."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of `t2t_jax.compile`, that differ."""
    families: tuple[str, ...] = ("performer", "transformer")
    """Kinds of T2T module that have it."""

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """The time without it."""
        with contextlib.ExitStack() as stack:
            for owner, name, replacement in self.patches:
                stack.enter_context(mock.patch.object(owner, name, replacement))
            yield


def textbook_product(attn: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(attn) v, as it is written."""
    return jax.nn.softmax(attn, axis=-1).astype(v.dtype) @ v


def plain_einsum(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """As `wide_einsum`, with the gradients that autodiff makes: of float32 factors."""
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def patches_by_convolution(unfold: layers.Unfold, x: jax.Array) -> jax.Array:
    """What `Unfold` gives, by the convolution that JAX has for it."""
    pad = (unfold.padding, unfold.padding)
    x = jax.lax.conv_general_dilated_patches(
        x,
        (unfold.kernel, unfold.kernel),
        (unfold.stride, unfold.stride),
        (pad, pad),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return x.reshape(x.shape[0], -1, x.shape[-1])


def exact_gelu(x: jax.Array) -> jax.Array:
    """JAX's own, by erfc."""
    return jax.nn.gelu(x, approximate=False)


LEVERS = {
    "attention divides after the product with v": Lever(
        "softmax, then the product", ((transformer_block, "softmax_product", textbook_product),)
    ),
    "gradients of scores in bfloat16": Lever(
        "in float32", tuple((module, "wide_einsum", plain_einsum) for module in (transformer_block, softmax))
    ),
    "soft split by strided slices": Lever(
        "by conv_general_dilated_patches", ((layers.Unfold, "__call__", patches_by_convolution),)
    ),
    "GELU by erf, one array kept": Lever("jax.nn.gelu", ((layers, "gelu", exact_gelu),)),
    "LayerNorm in PyTorch's order": Lever(
        "flax's LayerNorm", ((layers.LayerNorm, "__call__", nnx.LayerNorm.__call__),)
    ),
    "tokens flattened around Linear": Lever("(B, N, C)", ((layers.Linear, "__call__", nnx.Linear.__call__),)),
    "T2T attention by rows": Lever("all scores at once", ((softmax, "ROWS", 1 << 30),), families=("transformer",)),
    "bfloat16": Lever("float32", options={"dtype": "float32"}),
    "activations kept": Lever("--remat: computed again", options={"remat": True}),
}
"""What the step does -> what it replaced."""


def chosen(options: Options) -> dict[str, Lever]:
    """The levers to undo.

    Raises:
        ValueError: a name is none of them.
    """
    family = model_config(options.model).sizes.get("tokens_type")
    levers = {name: lever for name, lever in LEVERS.items() if family in lever.families}
    for name in options.only:
        if name not in levers:
            raise ValueError(f"--only {name!r}: choose of {', '.join(map(repr, levers))}")
    return {name: levers[name] for name in options.only or levers}


def measure(options: Options, lever: Lever | None) -> dict[str, Any]:
    """What the compiler says of the step without `lever`; of the step as it is for None."""
    wanted = compile.Options(model=options.model, topology=options.topology, batch=options.batch)
    wanted = dataclasses.replace(wanted, **(lever.options if lever else {}))
    with lever.off() if lever else contextlib.nullcontext():
        report, _ = compile.compile_step(wanted)
    return dataclasses.asdict(report)


def table(options: Options, found: dict[str, dict[str, Any]]) -> Table:
    """What was found, a row for each."""
    shown = Table("without", "then", "FLOPs, of the analytic", "MB an image", "temporary GiB", "messages")
    for name, report in found.items():
        images = report["batch"] / math.prod(report["mesh"].values())
        traffic = report["bytes_accessed"]
        shown.add_row(
            name,
            LEVERS[name].undone if name in LEVERS else "",
            f"{report['product_flops'] / report['analytic_flops']:.3f}",
            f"{traffic / images / 1e6:.0f}" if traffic else "",
            f"{report['memory']['temp'] / 2**30:.2f}" if report["memory"] else "does not fit",
            str(sum(count for count, _ in (report["collectives"] or {}).values())),
        )
    return shown


def main(args: Sequence[str]) -> int:
    """The command; its exit code."""
    options = cli.parse(Options, args, prog="python -m benchmarks.levers", description=__doc__ or "")
    levers: dict[str, Lever | None] = {AS_IT_IS: None, **chosen(options)}
    found: dict[str, dict[str, Any]] = {}
    if options.json is not None:
        check_target(options.json)
        found = json.loads(options.json.read_text()) if options.json.exists() else {}
    console = make_console()
    for name, lever in levers.items():
        if name in found:
            continue
        with status(f"{options.model}: {name if lever is None else f'without {name!r}'}"):
            found[name] = measure(options, lever)
        if options.json is not None:
            write_text(options.json, json.dumps(found, indent=1) + "\n")
    console.print(table(options, found))
    return cli.OK


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in compile.ENVIRONMENT.items()):  # as t2t_jax.compile
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.levers", *sys.argv[1:]],
            {**os.environ, **compile.ENVIRONMENT},
        )
    sys.exit(cli.run(main))
