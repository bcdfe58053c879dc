"""python -m t2t_jax.compile --model NAME --topology v5e:4x4 [--mesh data=4,fsdp=4] [--batch N]

Compiles the training step of `t2t_jax.train` for TPUs that are not there, and says whether it fits into their memory,
what it computes and what its devices send each other. Nothing is run: "compiles for and fits" is all it shows.
Needs libtpu (pip install -e ".[tpu]"); --export-only does without, and only lowers. Exit code 1 if the step does
not fit, or if a message between devices carries the global batch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
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
from t2t_common.io.files import check_target, write_text
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
"""Has to be there before JAX is imported: no search for a TPU, and no lock on libtpu."""
IMAGENET_TRAIN_IMAGES = 1_281_167
TILES = "T(8,128)"
"""In a layout, that of a TPU's memory: no other backend writes it."""
GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    model: str
    """Name of the model (see list_models); its ImageNet recipe is compiled."""
    topology: str
    """TPUs to compile for, such as v5e:4x4, or as they are sold: v5e-16."""
    mesh: str | None = None
    """Devices for parts of the batch and for parts of the weights too; None takes all for data."""
    batch: int = 1024
    """Images of a step, all devices together."""
    img_size: int | None = None
    """Side of the input, in pixels; None takes the recipe's."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the computation."""
    grad_accum_steps: int = 1
    """Parts in which the batch is computed."""
    remat: bool = False
    """Whether activations inside blocks are computed again in the backward pass."""
    scan_blocks: bool = False
    """Whether a scan runs the blocks, their parameters stacked."""
    export_only: bool = False
    """Lower only, without libtpu: proves neither that the step compiles nor that it fits."""
    json: Path | None = None
    """File for the report as JSON."""
    hlo: Path | None = None
    """File for the compiled program's text (StableHLO with --export-only)."""


@dataclasses.dataclass
class Report:
    """What came out. Bytes are those of one device, FLOPs of all together."""

    model: str
    topology: str
    mesh: dict[str, int]
    batch: int
    img_size: int
    dtype: str
    lowering_only: bool
    products: dict[str, int]
    """Matrix products by their dtypes -> how many."""
    float32_products: int
    """Of them, those with a float32 factor, other than the performer's, which asks for the highest precision."""
    product_flops: int
    """FLOPs of a step's matrix products, as traced."""
    analytic_flops: int
    """FLOPs of a step's matrix products, from the model's sizes."""
    device_kind: str | None = None
    memory: dict[str, int] | None = None
    """args, out, alias, temp, code and their total: args + out - alias + temp + code."""
    hbm: int | None = None
    """Bytes that a device has."""
    refused: str | None = None
    """What the compiler said if it found no room."""
    flops: float | None = None
    """FLOPs of a step as the compiler counts them, whatever runs element by element included; it counts the body of a
    loop once, so None where a part of the step is a loop (`scan_blocks`, transformer tokens)."""
    bytes_accessed: float | None = None
    """Bytes that a device's step reads and writes, as the compiler counts them; None as `flops`."""
    collectives: dict[str, tuple[int, int]] | None = None
    """Kind -> how many, and their bytes."""
    carry_batch: list[str] | None = None
    """Collectives with an axis of the global batch's size."""
    compile_seconds: float | None = None

    @property
    def fits(self) -> bool:
        """Whether compiler and sum agree that there is room."""
        return self.refused is None and self.memory is not None and self.memory["total"] <= (self.hbm or 0)

    @property
    def holds(self) -> bool:
        """Whether all is well, as far as it was looked at."""
        return self.lowering_only or (self.fits and not self.carry_batch)

    def __str__(self) -> str:
        axes = ",".join(f"{name}={size}" for name, size in self.mesh.items())
        lines = [f"{self.model}, {self.img_size} px, batch {self.batch}, {self.dtype}, {axes} on {self.topology}"]
        if self.lowering_only:
            lines.append("lowering only: neither compiled nor shown to fit")
        else:
            lines += self._compiled_lines()
        ratio = f"{self.product_flops / self.analytic_flops:.4f} of the analytic {self.analytic_flops:.4g}"
        counted = f"; {self.flops:.4g} with all that runs element by element" if self.flops else ""
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
    """The ImageNet recipe of the model, with what the options say; partners of mixup within a device's part."""
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
    """The training step of `recipe`, and shapes and shardings of the state and the batch that it takes."""
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
    """Lowers and compiles; what came out, and the program's text.

    Raises:
        ValueError: the options do not fit together, libtpu is missing or does not know the topology.
        RuntimeError: what was compiled is no program for TPUs.
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
            raise ValueError(f"mesh {options.mesh!r} leaves some of the {count} devices unused: name all of them")
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
    if len(products.repeats) == 1:  # a loop over all of the step or none; with one over a part, no total can be told
        cost, loops = compiled.cost_analysis(), max(products.repeats)
        report.flops = cost["flops"] * math.prod(report.mesh.values()) * loops
        report.bytes_accessed = cost["bytes accessed"] * loops
    messages = hlo.collectives(text)
    report.collectives = hlo.bytes_by_kind(messages)
    own = own_shapes(arrays)
    own += [(report.mesh["fsdp"], *part) for part in own]  # as a TPU's all-gather lays them side by side
    carrying = hlo.carry_batch(messages, report.batch, own)
    report.carry_batch = [f"{message.kind} {message.shapes}" for message in carrying]


@dataclasses.dataclass(frozen=True)
class Products:
    """The matrix products of a program, those in a loop as often as it runs."""

    dtypes: dict[str, int]
    """Their dtypes -> how many."""
    float32: int
    """How many have a float32 factor without asking for the highest precision, as only the performer does."""
    flops: int
    """Two for each multiply-add."""
    repeats: frozenset[int]
    """How often they run: once, or as often as the loops around them."""


def matrix_products(jaxpr: Any) -> Products:
    """The matrix products that a traced program asks for."""
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
    """Every equation of a program, and how often it runs."""
    for equation in jaxpr.eqns:
        yield equation, times
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner, times * _repeats(equation))


def _repeats(equation: Any) -> int:
    """How often a program runs what is inside of an equation: a loop, a kernel, a part for each device."""
    match equation.primitive.name:
        case "scan":
            return equation.params["length"]
        case "pallas_call":
            return math.prod(equation.params["grid_mapping"].grid)
        case "shard_map":
            return equation.params["mesh"].size
    return 1


def main(args: Sequence[str]) -> int:
    """The command; its exit code."""
    description = (__doc__ or "").strip()
    options = cli.parse(Options, args, prog="python -m t2t_jax.compile", description=description)
    for target in (options.json, options.hlo):
        if target is not None:
            check_target(target)
    with status(f"{options.model}: compiling for {options.topology}"):
        report, text = compile_step(options)
    print(report)
    if options.hlo is not None:
        write_text(options.hlo, text)
    if options.json is not None:
        facts = {**dataclasses.asdict(report), "fits": report.fits if not report.lowering_only else None}
        write_text(options.json, json.dumps(facts, indent=1) + "\n")
    return cli.OK if report.holds else cli.FAILED


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):  # start anew: JAX is imported
        os.execve(
            sys.executable, [sys.executable, "-m", "t2t_jax.compile", *sys.argv[1:]], {**os.environ, **ENVIRONMENT}
        )
    sys.exit(cli.run(main))
