"""python -m tools.reliability.suggest [--seeds N] [--only NAME ...] [--full] [--json FILE]

Pairs of models whose JAX side holds its tensors under random names, in random order and with other weights:
`parity.suggest_rules` has to find which is which, or say that it is ambiguous. What it proposes is judged by the true
partners, which the campaign knows. A wrong proposal is a defect.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import parity
import t2t_jax
import t2t_torch
from parity.carry.copies import as_dtype
from parity.carry.ledger import jax_variables
from parity.carry.rules import Box
from t2t_common.io import cli
from t2t_common.io.files import check_target
from tools.reliability import record

OUTCOMES = RIGHT, AMBIGUOUS, WRONG, REFUSED = "right", "ambiguous", "wrong", "refused"
DIM, HEADS, WORDS, LENGTH, LAYERS = 16, 2, 20, 7, 12


class TorchDecoderBlock(torch.nn.Module):
    """A pre-norm decoder block with separate projections, two of them square."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(DIM), torch.nn.LayerNorm(DIM)
        self.q, self.k, self.v, self.o = (torch.nn.Linear(DIM, DIM) for _ in range(4))
        self.fc1, self.fc2 = torch.nn.Linear(DIM, 4 * DIM), torch.nn.Linear(4 * DIM, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        y = self.norm1(x)
        q, k, v = (layer(y).view(batch, length, HEADS, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = (q @ k.mT / (DIM // HEADS) ** 0.5).masked_fill(future, -1e30).softmax(-1)
        x = x + self.o((weights @ v).transpose(1, 2).reshape(batch, length, DIM))
        return x + self.fc2(torch.nn.functional.gelu(self.fc1(self.norm2(x))))


class TorchDecoder(torch.nn.Module):
    """Token ids (B, N) -> logits (B, N, words); a decoder of 12 layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = torch.nn.Embedding(WORDS, DIM), torch.nn.Embedding(LENGTH, DIM)
        self.blocks = torch.nn.ModuleList([TorchDecoderBlock() for _ in range(LAYERS)])
        self.norm, self.head = torch.nn.LayerNorm(DIM), torch.nn.Linear(DIM, WORDS)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias


def _decoder_block(x: jax.Array, p: Mapping[str, jax.Array]) -> jax.Array:
    """Apply one block whose q, k and v are fused: `qkv` (D, 3 D)."""
    batch, length, _ = x.shape
    qkv = _norm(x, p["scale1"], p["shift1"]) @ p["qkv"] + p["qkv_bias"]
    q, k, v = (part.reshape(batch, length, HEADS, -1).swapaxes(1, 2) for part in jnp.split(qkv, 3, axis=-1))
    future = jnp.triu(jnp.ones((length, length), bool), 1)
    weights = jax.nn.softmax(jnp.where(future, -1e30, q @ k.swapaxes(-1, -2) / (DIM // HEADS) ** 0.5), axis=-1)
    x = x + (weights @ v).swapaxes(1, 2).reshape(batch, length, DIM) @ p["out"] + p["out_bias"]
    inside = jax.nn.gelu(_norm(x, p["scale2"], p["shift2"]) @ p["up"] + p["up_bias"], approximate=False)
    return x + inside @ p["down"] + p["down_bias"]


SHAPES: Mapping[str, tuple[int, ...]] = {
    "scale1": (DIM,),
    "shift1": (DIM,),
    "qkv": (DIM, 3 * DIM),
    "qkv_bias": (3 * DIM,),
    "out": (DIM, DIM),
    "out_bias": (DIM,),
    "scale2": (DIM,),
    "shift2": (DIM,),
    "up": (DIM, 4 * DIM),
    "up_bias": (4 * DIM,),
    "down": (4 * DIM, DIM),
    "down_bias": (DIM,),
}
"""The tensors of one block, in JAX."""
OF_TORCH: Mapping[str, Sequence[str]] = {
    "scale1": ("norm1.weight",),
    "shift1": ("norm1.bias",),
    "qkv": ("q.weight", "k.weight", "v.weight"),
    "qkv_bias": ("q.bias", "k.bias", "v.bias"),
    "out": ("o.weight",),
    "out_bias": ("o.bias",),
    "scale2": ("norm2.weight",),
    "shift2": ("norm2.bias",),
    "up": ("fc1.weight",),
    "up_bias": ("fc1.bias",),
    "down": ("fc2.weight",),
    "down_bias": ("fc2.bias",),
}
"""The partners of those, in the order in which they are fused."""
OUTSIDE = {"words": "words.weight", "places": "places.weight", "scale": "norm.weight", "shift": "norm.bias"}
OUTSIDE |= {"head": "head.weight", "head_bias": "head.bias"}


class StackedDecoder(nnx.Module):
    """The decoder with all tensors of its layers stacked along a first axis, and q, k, v fused."""

    def __init__(self) -> None:
        for name, shape in SHAPES.items():
            setattr(self, name, nnx.Param(jnp.ones((LAYERS, *shape))))
        self.words, self.places = nnx.Param(jnp.ones((WORDS, DIM))), nnx.Param(jnp.ones((LENGTH, DIM)))
        self.scale, self.shift = nnx.Param(jnp.ones(DIM)), nnx.Param(jnp.ones(DIM))
        self.head, self.head_bias = nnx.Param(jnp.ones((DIM, WORDS))), nnx.Param(jnp.ones(WORDS))

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.words[...][ids] + self.places[...][: ids.shape[1]]
        layers = {name: getattr(self, name)[...] for name in SHAPES}
        x, _ = jax.lax.scan(lambda x, p: (_decoder_block(x, p), None), x, layers)
        return _norm(x, self.scale[...], self.shift[...]) @ self.head[...] + self.head_bias[...]


def _stacked_partners(torch_model: torch.nn.Module) -> dict[str, tuple[str, Box]]:
    found: dict[str, tuple[str, Box]] = {name: (jax_name, ()) for jax_name, name in OUTSIDE.items()}
    for layer in range(LAYERS):
        for jax_name, names in OF_TORCH.items():
            for i, name in enumerate(names):
                box: Box = ((0, layer, layer + 1),)
                if len(names) > 1:
                    axis = len(SHAPES[jax_name])
                    box += ((axis, i * DIM, (i + 1) * DIM),)
                found[f"blocks.{layer}.{name}"] = jax_name, box
    return found


class Program:
    """A flax model as a function of its tensors, in evaluation mode; compiled once for all its scrambled forms."""

    def __init__(self, model: nnx.Module) -> None:
        model.eval()
        with jax.enable_x64(True):
            graphdef, state = nnx.split(as_dtype(model, jnp.float64))
        self.values = {n: v[...] for n, v in jax_variables(model).items() if jnp.issubdtype(v.dtype, jnp.floating)}

        def apply(values: dict[str, jax.Array], x: jax.Array) -> Any:
            model = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf, state))
            variables = jax_variables(model)
            for name, value in values.items():
                variables[name].set_value(value)
            return model(x)

        self.apply = jax.jit(apply)


class Tensors(nnx.Module):
    """The tensors of one module."""


class Scrambled(nnx.Module):
    """A model whose tensors lie in random order under names without meaning, such as `m3.p17`.

    The tensors of one module stay together, as in any program, unless `flat`.
    """

    def __init__(self, program: Program, seed: int, *, flat: bool = False) -> None:
        draw = np.random.RandomState(seed)
        modules = list(dict.fromkeys(name.rpartition(".")[0] for name in program.values))
        places = dict(zip(modules, map(int, draw.permutation(len(modules))), strict=True))
        order = [list(program.values)[i] for i in draw.permutation(len(program.values))]
        self.program = program
        names = {}
        for i, name in enumerate(order):
            home: nnx.Module = self
            if not flat:
                place = f"m{places[name.rpartition('.')[0]]}"
                if not hasattr(self, place):
                    setattr(self, place, Tensors())
                home = getattr(self, place)
            setattr(
                home, f"p{i}", nnx.Param(jnp.asarray(draw.standard_normal(program.values[name].shape), jnp.float32))
            )
            names[name] = f"p{i}" if flat else f"{place}.p{i}"
        self.names = tuple(names.items())

    def __call__(self, x: jax.Array) -> Any:
        tensors = jax_variables(self)
        return self.program.apply({name: tensors[own][...] for name, own in self.names}, x)


@dataclasses.dataclass(frozen=True)
class Case:
    """A PyTorch model, its JAX program, the true partners (name and part in JAX) by PyTorch's name, and inputs."""

    torch: torch.nn.Module
    program: Program
    partners: Mapping[str, tuple[str, Box]]
    inputs: np.ndarray


def _images(size: int, count: int = 2) -> np.ndarray:
    return np.random.RandomState(0).standard_normal((count, 3, size, size)).astype(np.float32)


def _twins(
    torch_model: torch.nn.Module, jax_model: nnx.Module, inputs: np.ndarray, rules: parity.Rules | None = None
) -> Case:
    ledger = parity.build_ledger(torch_model, jax_model, rules)
    partners = {entry.torch: (entry.jax, entry.jax_box) for entry in ledger}
    return Case(torch_model, Program(jax_model), partners, inputs)


def _resnet() -> Case:
    folder = str(record.ROOT / "examples" / "resnet")
    sys.path.insert(0, folder)
    try:
        ours, theirs = importlib.import_module("resnet_torch"), importlib.import_module("resnet_jax")
    finally:
        sys.path.remove(folder)
    rules = parity.Rules(rename={r"\b(downsample|layers\.\d+)\.(\d+)": r"\1.layers.\2"})
    return _twins(ours.ResNet(), theirs.ResNet(rngs=nnx.Rngs(0)), _images(16), rules)


def _ours(name: str, size: int, **options: Any) -> Case:
    models = [package.create_model(name, img_size=size, **options) for package in (t2t_torch, t2t_jax)]
    return _twins(models[0], models[1], _images(size, 1))


def _decoder() -> Case:
    torch_model = TorchDecoder()
    ids = np.random.RandomState(0).randint(WORDS, size=(2, LENGTH))
    return Case(torch_model, Program(StackedDecoder()), _stacked_partners(torch_model), ids)


CASES: Mapping[str, Callable[[], Case]] = {
    "ResNet": _resnet,
    "ViT": functools.partial(_ours, "deit_tiny_patch16_224", 32, embed_dim=16, depth=12, num_heads=2, num_classes=10),
    "T2T-ViT-14": functools.partial(_ours, "t2t_vit_14", 32, embed_dim=16, num_heads=2, num_classes=10),
    "decoder": _decoder,
}
FULL: Mapping[str, Callable[[], Case]] = {"T2T-ViT-14, 224 px": functools.partial(_ours, "t2t_vit_14", 224)}
"""At its real size, with `--full`."""


def judge(case: Case, seed: int, *, flat: bool = False) -> tuple[str, str]:
    """Ask for the rules of one scrambled form, and compare them with the true partners."""
    scrambled = Scrambled(case.program, seed, flat=flat)
    try:
        rules = parity.suggest_rules(case.torch, scrambled, case.inputs, seed=seed)
    except ValueError as error:
        return (AMBIGUOUS if "ambiguous" in str(error) else REFUSED), str(error)
    names = dict(scrambled.names)
    wanted = {(torch_name, names[name], box) for torch_name, (name, box) in case.partners.items()}
    found = {(entry.torch, entry.jax, entry.jax_box) for entry in parity.build_ledger(case.torch, scrambled, rules)}
    if found == wanted:
        return RIGHT, ""
    return WRONG, f"{sorted(found - wanted)[:3]} instead of {sorted(wanted - found)[:3]}"


def campaign(seeds: int, only: Sequence[str] = (), *, full: bool = False) -> dict[str, list[tuple[str, str]]]:
    """Judge `seeds` scrambled forms, spread over all cases; every second one without modules."""
    cases = {**CASES, **(FULL if full else {})}
    found: dict[str, list[tuple[str, str]]] = {}
    chosen = [name for name in cases if not only or name in only]
    for number, name in enumerate(chosen):
        case = cases[name]()
        share = 1 if name in FULL else seeds // len(chosen) + (number < seeds % len(chosen))
        found[name] = [judge(case, seed, flat=seed % 2 == 1) for seed in range(share)]
    return found


def figures(found: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, Any]:
    """What the page shows."""
    total = collections.Counter(outcome for results in found.values() for outcome, _ in results)
    table = {}
    for name, results in found.items():
        counts = collections.Counter(outcome for outcome, _ in results)
        table[name] = {
            "forms": len(results),
            **{outcome: counts[outcome] for outcome in OUTCOMES},
        }
    return {"forms": sum(total.values()), **{name: total[name] for name in OUTCOMES}, "by model": table}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    seeds: int = 200
    """How many scrambled forms, over all models."""
    only: tuple[str, ...] = ()
    """Models by name; none takes all."""
    full: bool = False
    """Also T2T-ViT-14 at its real size, once."""
    json: Path | None = None
    """File for the result; None takes the recorded one, with `only` none at all."""


def main(args: Sequence[str]) -> int:
    """The command line; 1 if a proposal was wrong or none was made."""
    options = cli.parse(Options, args, prog="python -m tools.reliability.suggest", description=__doc__ or "")
    if unknown := set(options.only) - {*CASES, *FULL}:
        raise ValueError(f"no model {sorted(unknown)[0]!r}: it is one of {', '.join([*CASES, *FULL])}")
    target = options.json or (None if options.only else record.RESULTS / "suggest.json")
    if target is not None:
        check_target(target)
    start, busy = time.monotonic(), time.process_time()
    found = campaign(options.seeds, options.only, full=options.full)
    seconds, busy = time.monotonic() - start, time.process_time() - busy
    for name, results in found.items():
        for seed, (outcome, detail) in enumerate(results):
            if outcome != RIGHT:
                print(f"{name}, seed {seed}: {outcome}: {detail[:300]}")
    for name, row in figures(found)["by model"].items():
        print(f"{name}: {', '.join(f'{value} {key}' for key, value in row.items() if value)}")
    print(f"{seconds:.0f} s, of which {busy:.0f} s of processor time")
    if target is not None:
        command = f"python -m tools.reliability.suggest --seeds {options.seeds}" + " --full" * options.full
        record.write(target, command, {**figures(found), "seconds of processor time": round(busy)}, seconds=seconds)
    bad = any(outcome in (WRONG, REFUSED) for results in found.values() for outcome, _ in results)
    return cli.FAILED if bad else cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
