"""python -m t2t_jax.compile --model NAME --topology v5e:4x4 [--mesh data=4,fsdp=4] [--batch N]

Compiles the training step of `t2t_jax.train` ahead of time for a TPU topology, without TPU hardware, and reports
whether it fits into device memory, its FLOPs and its collectives. Nothing is executed: the result shows only that the
step compiles and fits. Requires libtpu (pip install -e ".[tpu]"), except with --export-only, which only lowers. Exit
code 1 if the step does not fit, or if a collective communicates the global batch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from t2t_common.io import cli
from t2t_common.io.files import check_target, write_json, write_text
from t2t_common.io.terminal import status
from t2t_config import Recipe, recipes
from t2t_config.flops import training_flops
from t2t_config.models import model_config
from t2t_jax.aot import hlo
from t2t_jax.aot.topology import HBM_GIB, num_chips, topology_name, tpu_topology
from t2t_jax.ops.platform import traced_for
from t2t_jax.parallel.mesh import AXES, BATCH, AnyMesh, mesh_shape, own_shapes, tree_shardings
from t2t_jax.state import split_model
from t2t_jax.training.from_recipe import build_model, build_step, check_recipe
from t2t_jax.training.step import init_state

ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
"""Must be set before JAX is imported: disables the search for a TPU and the lock on libtpu."""
IMAGENET_TRAIN_IMAGES = 1_281_167
TILES = "T(8,128)"
"""Tiled memory layout in the compiled program; only the TPU backend emits it."""
GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command line options."""

    model: str
    """Model name (see list_models); its ImageNet recipe is compiled."""
    topology: str
    """TPU topology to compile for, such as v5e:4x4, or its product name, such as v5e-16."""
    mesh: str | None = None
    """Mesh axis sizes for data and FSDP parallelism; None uses all devices for data parallelism."""
    batch: int = 1024
    """Global batch size."""
    img_size: int | None = None
    """Input height and width in pixels; None uses the recipe's."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Computation dtype."""
    grad_accum_steps: int = 1
    """Number of micro-batches per step."""
    remat: bool = False
    """Recompute the activations inside blocks in the backward pass."""
    scan_blocks: bool = False
    """Run the blocks in a scan over stacked parameters."""
    export_only: bool = False
    """Only lower, without libtpu; does not show that the step compiles or fits."""
    json: Path | None = None
    """Output file for the report as JSON."""
    hlo: Path | None = None
    """Output file for the text of the compiled program (StableHLO with --export-only)."""


@dataclasses.dataclass
class Report:
    """Result of the compilation. Bytes are per device, FLOPs are the total over all devices."""

    model: str
    topology: str
    mesh: dict[str, int]
    batch: int
    img_size: int
    dtype: str
    lowering_only: bool
    products: dict[str, int]
    """Dtypes of matrix products -> number of products."""
    float32_products: int
    """Number of products with a float32 operand, except the performer's, which request the highest precision."""
    product_flops: int
    """FLOPs of the matrix products of one step, counted in the traced program."""
    analytic_flops: int
    """FLOPs of the matrix products of one step, computed from the model's dimensions."""
    device_kind: str | None = None
    memory: dict[str, int] | None = None
    """args, out, alias, temp, code and their total: args + out - alias + temp + code."""
    hbm: int | None = None
    """Memory of a device in bytes."""
    refused: str | None = None
    """Error message of the compiler if it ran out of memory."""
    flops: float | None = None
    """FLOPs of one step as counted by the compiler, including elementwise operations. The compiler counts the body of a
    loop once, so this is None if a part of the step is a loop (`scan_blocks`, transformer tokens)."""
    bytes_accessed: float | None = None
    """Bytes that one device reads and writes per step, as counted by the compiler; None where `flops` is."""
    collectives: dict[str, tuple[int, int]] | None = None
    """Kind of collective -> (number, total bytes)."""
    carry_batch: list[str] | None = None
    """Collectives with an axis of the size of the global batch."""
    compile_seconds: float | None = None

    @property
    def fits(self) -> bool:
        """Whether the compiler succeeded and the total memory is within that of the device."""
        return self.refused is None and self.memory is not None and self.memory["total"] <= (self.hbm or 0)

    @property
    def holds(self) -> bool:
        """Whether all performed checks pass."""
        return self.lowering_only or (self.fits and not self.carry_batch)

    def __str__(self) -> str:
        axes = ",".join(f"{name}={size}" for name, size in self.mesh.items())
        lines = [f"{self.model}, {self.img_size} px, batch {self.batch}, {self.dtype}, {axes} on {self.topology}"]
        if self.lowering_only:
            lines.append("lowering only: neither compiled nor shown to fit")
        else:
            lines += self._compiled_lines()
        ratio = f"{self.product_flops / self.analytic_flops:.4f} of the analytic {self.analytic_flops:.4g}"
        counted = f"; {self.flops:.4g} including elementwise operations" if self.flops else ""
        lines.append(f"FLOPs a step     {self.product_flops:.4g} in matrix products, {ratio}{counted}")
        found = "; ".join(f"{count} {kind}" for kind, count in self.products.items())
        lines.append(f"matrix products  {found}; float32 outside the performer: {self.float32_products}")
        return "\n".join(lines)

    def _compiled_lines(self) -> list[str]:
        if self.memory is None:
            return [f"memory           DOES NOT FIT: {self.refused}"]
        sizes = {name: f"{size / GIB:.2f}" for name, size in self.memory.items()}
        total = "args {args} + out {out} - alias {alias} + temp {temp} + code {code} = {total} GiB".format(**sizes)
        verdict = "fits" if self.fits else "DOES NOT FIT"
        sent = "; ".join(f"{n} {kind} {size / 1e6:.1f} MB" for kind, (n, size) in (self.collectives or {}).items())
        return [
            f"memory a device  {total} of {(self.hbm or 0) / GIB:.0f}: {verdict}",
            f"collectives      {sent or 'none'}; with the global batch: {len(self.carry_batch or [])}",
            *(f"                 {text}" for text in self.carry_batch or []),
            *self._traffic_lines(),
            f"TPU program      for {self.device_kind}, tiled layouts; compiled in {self.compile_seconds:.0f} s",
        ]

    def _traffic_lines(self) -> list[str]:
        if self.bytes_accessed is None:
            return []
        images = self.batch / math.prod(self.mesh.values())
        return [f"memory traffic   {self.bytes_accessed / images / 1e6:.1f} MB an image"]


def recipe_of(options: Options, num_devices: int) -> Recipe:
    """Return the model's ImageNet recipe with the options applied; mixup groups stay within one device's images."""
    start = recipes.imagenet(options.model)
    group = math.gcd(start.mixup_group or options.batch, options.batch // num_devices)
    return dataclasses.replace(
        start,
        batch_size=options.batch,
        img_size=options.img_size or start.img_size,
        dtype=options.dtype,
        grad_accum_steps=options.grad_accum_steps,
        remat=options.remat,
        scan_blocks=options.scan_blocks,
        mixup_group=group if group % 2 == 0 else None,
    )


def abstract_step(recipe: Recipe, mesh: AnyMesh) -> tuple[Any, tuple[Any, Any]]:
    """Return the training step of `recipe` and its abstract arguments: state and batch as shapes with shardings."""
    model = nnx.eval_shape(lambda: build_model(recipe))
    no_decay = model.no_weight_decay()
    model.train()
    graphdef, params, buffers = split_model(model)
    epoch = max(1, IMAGENET_TRAIN_IMAGES // recipe.batch_size)
    tx, step = build_step(recipe, graphdef, params, no_decay, steps_per_epoch=epoch, mesh=mesh)
    start = functools.partial(init_state, tx=tx, seed=recipe.seed, average=recipe.ema_decay is not None)
    state = jax.eval_shape(start, params, buffers)
    image = (recipe.batch_size, recipe.img_size, recipe.img_size, recipe.in_chans)
    batch = {
        "image": jax.ShapeDtypeStruct(image, jnp.float32),
        "label": jax.ShapeDtypeStruct(image[:1], jnp.int32),
    }
    shardings = tree_shardings(state, mesh), dict.fromkeys(batch, NamedSharding(mesh, BATCH))
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        (state, batch),
        shardings,
    )
    return step, placed


def compile_step(options: Options) -> tuple[Report, str]:
    """Lower and compile the step; return the report and the text of the program.

    Raises:
        ValueError: The options are inconsistent, libtpu is missing, or it does not know the topology.
        RuntimeError: The compiled program is not a TPU program.
    """
    mesh: AnyMesh
    model_config(options.model)
    if options.export_only:
        count = num_chips(options.topology)
        mesh = AbstractMesh(mesh_shape(options.mesh, count), AXES, (AxisType.Auto,) * len(AXES))
    else:
        devices = tpu_topology(options.topology)
        count = len(devices.devices)
        shape = mesh_shape(options.mesh, count)
        if math.prod(shape) != count:
            raise ValueError(f"mesh {options.mesh!r} leaves some of the {count} devices unused: use all of them")
        mesh = topologies.make_mesh(devices, shape, AXES)
    recipe = recipe_of(options, mesh.size)
    check_recipe(recipe, mesh)
    with traced_for("tpu"):
        step, arguments = abstract_step(recipe, mesh)
        traced = step.trace(*arguments)
    lowered = traced.lower(lowering_platforms=("tpu",))
    products = matrix_products(traced.jaxpr.jaxpr)
    report = Report(
        model=recipe.model,
        topology=topology_name(options.topology),
        mesh=dict(mesh.shape),
        batch=recipe.batch_size,
        img_size=recipe.img_size,
        dtype=recipe.dtype,
        lowering_only=options.export_only,
        products=products.dtypes,
        float32_products=products.float32,
        product_flops=products.flops,
        analytic_flops=recipe.batch_size * training_flops(recipe.model, img_size=recipe.img_size, num_classes=1000),
    )
    if options.export_only:
        return report, lowered.as_text()
    device: Any = devices.devices[0]
    report.device_kind = device.device_kind
    report.hbm = HBM_GIB.get(report.device_kind, 0) * GIB
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        report.refused = next((line for line in str(error).splitlines() if "hbm" in line), str(error).splitlines()[0])
        return report, lowered.as_text()
    report.compile_seconds = time.perf_counter() - began
    text = compiled.as_text()
    _read_compiled(report, compiled, text, products, arguments[0].raw)
    if device.platform != "tpu" or TILES not in text:
        raise RuntimeError(f"no TPU program: platform {device.platform}, {text.count(TILES)} of {TILES}")
    return report, text


def _read_compiled(report: Report, compiled: Any, text: str, products: Products, arrays: Any) -> None:
    found = compiled.memory_analysis()
    memory = {
        "args": found.argument_size_in_bytes,
        "out": found.output_size_in_bytes,
        "alias": found.alias_size_in_bytes,
        "temp": found.temp_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
    }
    memory["total"] = sum(memory.values()) - 2 * memory["alias"]
    report.memory = memory
    if len(products.repeats) == 1:  # no loop, or one around the whole step; otherwise there is no exact total
        cost, loops = compiled.cost_analysis(), max(products.repeats)
        report.flops = cost["flops"] * math.prod(report.mesh.values()) * loops
        report.bytes_accessed = cost["bytes accessed"] * loops
    messages = hlo.collectives(text)
    report.collectives = hlo.bytes_by_kind(messages)
    own = own_shapes(arrays)
    own += [(report.mesh["fsdp"], *part) for part in own]  # a TPU all-gather stacks the shards along a new axis
    carrying = hlo.carry_batch(messages, report.batch, own)
    report.carry_batch = [f"{message.kind} {message.shapes}" for message in carrying]


@dataclasses.dataclass(frozen=True)
class Products:
    """Matrix products of a program; those in a loop are counted once per iteration."""

    dtypes: dict[str, int]
    """Dtypes of the products -> number of products."""
    float32: int
    """Number of products with a float32 operand that do not request the highest precision (only the performer does)."""
    flops: int
    """Total FLOPs, two per multiply-add."""
    repeats: frozenset[int]
    """Distinct execution counts: 1, or the number of iterations of the enclosing loops."""


def matrix_products(jaxpr: Any) -> Products:
    """Count the matrix products of a traced program."""
    counts: Counter[str] = Counter()
    float32 = flops = 0
    repeats = set()
    for equation, times in _equations(jaxpr):
        if equation.primitive.name != "dot_general":
            continue
        left, right, result = (v.aval for v in (*equation.invars, *equation.outvars))
        names = [str(x.dtype).replace("float", "f") for x in (left, right, result)]
        (contracting, _), _ = equation.params["dimension_numbers"]
        highest = "HIGHEST" in str(equation.params["precision"])
        counts["{} x {} -> {}".format(*names) + " (highest)" * highest] += times
        repeats.add(times)
        float32 += times * ("f32" in names[:2] and not highest)
        flops += times * 2 * math.prod(result.shape) * math.prod(left.shape[axis] for axis in contracting)
    return Products(dict(counts.most_common()), float32, flops, frozenset(repeats))


def _equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """Yield every equation of a program with the number of times it runs."""
    for equation in jaxpr.eqns:
        yield equation, times
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner, times * _repeats(equation))


def _repeats(equation: Any) -> int:
    """Return how often the inner program of an equation runs: loop iterations, kernel grid size, number of devices."""
    match equation.primitive.name:
        case "scan":
            return equation.params["length"]
        case "pallas_call":
            return math.prod(equation.params["grid_mapping"].grid)
        case "shard_map":
            return equation.params["mesh"].size
    return 1


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    description = (__doc__ or "").strip()
    options = cli.parse(Options, args, prog="python -m t2t_jax.compile", description=description)
    check_target(options.json)
    check_target(options.hlo)
    with status(f"{options.model}: compiling for {options.topology}"):
        report, text = compile_step(options)
    print(report)
    if options.hlo is not None:
        write_text(options.hlo, text)
    write_json(options.json, {**dataclasses.asdict(report), "fits": None if report.lowering_only else report.fits})
    return cli.OK if report.holds else cli.FAILED


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):  # restart: JAX is imported
        os.execve(
            sys.executable, [sys.executable, "-m", "t2t_jax.compile", *sys.argv[1:]], {**os.environ, **ENVIRONMENT}
        )
    sys.exit(cli.run(main))
