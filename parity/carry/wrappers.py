"""Unwrapping of PyTorch models (DataParallel, torch.compile), and advice for names that do not match."""

from __future__ import annotations

import difflib
import glob
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from parity.carry.rules import Rules

if TYPE_CHECKING:
    from parity.carry.entries import Ledger

StateDict = Mapping[str, torch.Tensor]

PREFIXES = ("module.", "_orig_mod.")
"""Name prefixes added by DataParallel and DistributedDataParallel, and by torch.compile."""


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model wrapped by DataParallel, DistributedDataParallel, AveragedModel or torch.compile, if any."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel | AveragedModel):
            model = model.module
        elif (inner := dict(model.named_children()).get("_orig_mod")) is not None:
            model = inner
        else:
            return model


def state_of(source: torch.nn.Module | StateDict) -> StateDict:
    """Return the tensors by name; for a model, its actual parameters and buffers (not detached)."""
    return unwrapped(source).state_dict(keep_vars=True) if isinstance(source, torch.nn.Module) else source


def prefix_of(state: Collection[str], jax_names: Collection[str]) -> str:
    """Return the wrapper prefix of all names in a state dict, unless JAX has names with that prefix."""
    prefix = ""
    while True:
        found = [p for p in PREFIXES if state and all(name.startswith(prefix + p) for name in state)]
        if not found or any(name.startswith(found[0]) for name in jax_names):
            return prefix
        prefix += found[0]


def plain_names(names: Collection[str]) -> dict[str, str]:
    """Map every PyTorch name to the one that rules know.

    Of a weight under `weight_norm`, by parametrization or by hook, the direction is called `weight` and the length
    `weight_g`; of one under `spectral_norm`, the weight is called `weight` and its singular vectors `weight_u` and
    `weight_v`.
    """
    found = {name: name for name in names}
    for name in names:
        if name.endswith(".original0") and (other := f"{name[:-1]}1") in found:
            path, _, leaf = name.removesuffix(".original0").rpartition(".")
            plain = f"{path.removesuffix('parametrizations')}{leaf}"
            found |= {name: f"{plain}_g", other: plain}
        elif name.endswith(".0._u") and (other := f"{name.removesuffix('.0._u')}.original") in found:
            path, _, leaf = name.removesuffix(".0._u").rpartition(".")
            plain = f"{path.removesuffix('parametrizations')}{leaf}"
            found |= {name: f"{plain}_u", f"{name[:-1]}v": f"{plain}_v", other: plain}
        elif name.endswith("_g") and (other := f"{name[:-1]}v") in found:
            found[other] = name[:-2]
        elif name.endswith("_orig") and f"{name[:-4]}u" in found:
            found[name] = name.removesuffix("_orig")
    return found


ALIKE = {"kernel": "weight", "scale": "weight", "embedding": "weight", "w": "weight", "b": "bias", "offset": "bias"}
ALIKE |= {"mean": "running_mean", "var": "running_var"}
"""What the leaf of a layer is called in JAX, and in PyTorch."""

LISTED = 12
"""Largest number of lines of a message for each side."""

LIKELY = 0.3
"""Likeness of two names from which one is proposed as the partner of the other."""

Shapes = Mapping[str, tuple[int, ...]]


def plain_leaf(name: str) -> str:
    """Return the last part of a name, as PyTorch would call it."""
    leaf = name.rpartition(".")[2]
    return ALIKE.get(leaf, leaf)


def likeness(one: str, other: str) -> float:
    """Return how alike two names are, from 0 to 1."""
    words = [[*re.findall(r"[a-z]+|\d+", name.rpartition(".")[0].lower()), plain_leaf(name)] for name in (one, other)]
    return difflib.SequenceMatcher(a=words[0], b=words[1], autojunk=False).ratio()


def listing(problems: Sequence[str], ours: Shapes, theirs: Shapes) -> tuple[list[str], str | None]:
    """Return the problems for people, and the rule that may solve them.

    Problems that differ in the number of a layer only are one line. Tensors without a partner have the likeliest one of
    as many elements beside them.

    Args:
        problems: One text for each problem, which begins with the name of its tensor.
        ours, theirs: The tensors of PyTorch and of JAX without a partner.

    Returns:
        At most `LISTED` lines on JAX's tensors without a partner and on all else, and a call of `Rules` to paste that
        renames the modules around the likely partners; None if there are none.
    """
    groups: dict[str, list[str]] = {}
    for problem in problems:
        groups.setdefault(_without_layers(problem), []).append(problem)
    firsts = [group[0].partition(" ")[0] for group in groups.values()]
    likely = _likely({name: ours[name] for name in firsts[: 2 * LISTED] if name in ours}, theirs)
    shown = set(map(_without_layers, likely.values()))
    lines: tuple[list[str], list[str]] = [], []
    moved: dict[str, set[str]] = {}
    for (general, group), name in zip(groups.items(), firsts, strict=True):
        text = group[0] if len(group) == 1 else f"{general} ({len(group)} of them)"
        if name in likely:
            one, other = (_without_layers(x) if len(group) > 1 else x for x in (name, likely[name]))
            text += f": {other}?"
            moved.setdefault(one.rpartition(".")[0], set()).add(other.rpartition(".")[0])
        if name not in theirs:
            lines[0].append(text)
        elif _without_layers(name) not in shown:
            lines[1].append(text)
    found = [line for side in lines for line in side[:LISTED]]
    left = sum(len(side[LISTED:]) for side in lines)
    return found + [f"{left} more lines like these"] * (left > 0), _renames(moved)


def _without_layers(text: str) -> str:
    """Replace the first number in the path of every name by a star."""
    return re.sub(r"\S+", lambda word: re.sub(r"(?<=[._])\d+(?=[._]|$)|^\d+(?=\.)", "*", word[0], count=1), text)


def _likely(ours: Shapes, theirs: Shapes) -> dict[str, str]:
    """Return the likely partners by name and number of elements; those of one module are likely in one module, too."""
    scores = {
        (name, other): likeness(name, other)
        for name, shape in ours.items()
        for other, own in theirs.items()
        if math.prod(own) == math.prod(shape)
    }
    found: dict[str, str] = {}
    places: dict[str, str] = {}
    for name in sorted(
        ours, key=lambda x: max((s for pair, s in scores.items() if pair[0] == x), default=0), reverse=True
    ):
        path = name.rpartition(".")[0]
        free = [(other, s) for (one, other), s in scores.items() if one == name and other not in found.values()]
        best = max(free, key=lambda item: (item[0].rpartition(".")[0] == places.get(path), item[1]), default=("", 0.0))
        if best[1] >= LIKELY:
            found[name] = best[0]
            places.setdefault(path, best[0].rpartition(".")[0])
    return found


def _renames(moved: Mapping[str, Collection[str]]) -> str | None:
    """Return the call of `Rules` that renames modules; a star stands for the number of a layer on both sides."""
    rename = {}
    for path, places in moved.items():
        place = next(iter(places))
        if len(places) == 1 and path != place and path and place and path.count("*") == place.count("*"):
            pattern = re.escape(path).replace(r"\*", r"(\d+)")
            rename[f"^{pattern}$"] = place.replace("*", r"\1")
    return repr(Rules(rename=rename)) if 0 < len(rename) <= LISTED else None


def hints(ours: Sequence[str], theirs: Sequence[str]) -> list[str]:
    """Return advice derived from the names without a partner."""
    found = []
    if any(".parametrizations." in f".{name}" for name in ours):
        found.append(
            "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') writes out what a parametrization "
            "computes"
        )
    if any(name.endswith(("weight_g", "weight_v")) for name in ours):
        found.append("torch.nn.utils.remove_weight_norm(module) writes out the weight that weight_norm computes")
    if any("_orig_mod." in name for name in ours):
        found.append("a part of the model is compiled: give the model as it was before torch.compile")
    if any(name.endswith(("q.weight", "q_proj.weight", "query.weight")) for name in ours) and any(
        "qkv" in name or "in_proj" in name for name in theirs
    ):
        found.append("JAX holds q, k and v in one tensor, PyTorch in three: give JAX's model three layers too")
    return found + _prefix_hints(ours, theirs)


def _prefix_hints(ours: Sequence[str], theirs: Sequence[str]) -> list[str]:
    """Return the rule that would help if all names of one side have one extra leading module."""
    paths = {name.rpartition(".")[0] for name in ours}, {name.rpartition(".")[0] for name in theirs}
    if not all(paths):
        return []
    for more, fewer, rule in (
        (paths[1], paths[0], "Rules(rename={{r'^': '{0}.'}})"),
        (paths[0], paths[1], "Rules(rename={{r'^{0}\\.?': ''}})"),
    ):
        first = min(more).split(".")[0]
        if first and all(path == first or path.startswith(f"{first}.") for path in more):
            inside = {path.removeprefix(first).removeprefix(".") for path in more}
            if inside == fewer:
                return [f"all of it lies in {first} on one side: {rule.format(first)}"]
    return []


def refuse_compiled(model: torch.nn.Module) -> None:
    """Raise ValueError if parts of the model run as compiled code, so that calls in them cannot be recorded."""
    for name, module in model.named_modules():
        where = name or "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{where} is a ScriptModule, whose calls cannot be recorded: give the module it was made of"
            )
        if "_orig_mod" in dict(module.named_children()):
            raise ValueError(f"{where} is compiled (torch.compile): put {where}._orig_mod in its place for the check")


def tied_modules(ledger: Ledger, model: torch.nn.Module) -> list[str]:
    """Return patterns of the modules whose tensors are all paired under another name: they need no partner."""
    own = {name.rpartition(".")[0] for name in (*(entry.torch for entry in ledger), *ledger.torch_only)}
    tied = {name.rpartition(".")[0] for name in ledger.tied}
    return [
        glob.escape(path)
        for path, _ in model.named_modules(remove_duplicate=False)
        if path and _any_in(path, tied) and not _any_in(path, own)
    ]


def _any_in(path: str, paths: Collection[str]) -> bool:
    return any(other == path or other.startswith(f"{path}.") for other in paths)
