"""The shortest `Rules` that pair tensors in a given way: stacks and renamed modules where they suffice, else tensors.

Every shorter form is tried out: it is taken only if the ledger that it gives is the same.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from flax import nnx

from parity.by_value.candidates import Shape
from parity.carry.entries import Entry
from parity.carry.ledger import JaxTensors, ledger_of
from parity.carry.rules import LeafRule, Rules, layer_rules


@dataclasses.dataclass(frozen=True)
class Known:
    """A rule of one tensor and the shapes that it converts (of a stack: without the axis of the layers)."""

    rule: LeafRule
    shape: Shape
    jax_shape: Shape


def shortest(torch_model: torch.nn.Module, jax_model: nnx.Module, rules: Rules) -> Rules:
    """Return rules with the same ledger as `rules`, which lists every tensor, in fewer lines.

    Raises:
        ValueError: See `build_ledger`.
    """
    jax_tensors = JaxTensors.of(jax_model)
    wanted = list(ledger_of(torch_model, jax_tensors, rules))
    known = [
        Known(dataclasses.replace(entry.rule, reshape=True), entry.torch_shape, entry.jax_shape) for entry in wanted
    ]
    known = [dataclasses.replace(k, rule=_explicit(k)) for k in known]
    stacked, unstacked = _stacks(known)
    plain = dataclasses.replace(rules, tensors=())
    tries: list[Rules] = [plain]
    for stacks, units in [(stacked, unstacked)] * bool(stacked) + [({}, known)]:
        own = dataclasses.replace(plain, stacked=stacks)
        for renames, rest in _renames(units, jax_tensors.modules):
            for tensors in (_patterns(rest), [k.rule for k in rest]):
                tries.append(dataclasses.replace(own, rename=renames, tensors=tensors))
        tries.append(dataclasses.replace(own, tensors=_patterns(units)))
    for attempt in sorted(tries, key=_length):
        if _gives(torch_model, jax_tensors, attempt, wanted):
            return attempt
    return rules


def _length(rules: Rules) -> tuple[int, int]:
    """Return how many lines the rules take, and how many characters."""
    return len(rules.rename) + len(rules.tensors) + len(rules.stacked), len(repr(rules))


def _explicit(known: Known) -> LeafRule:
    """Return the rule with its part written as a box, and reshaped only if the shapes ask for it."""
    rule = dataclasses.replace(known.rule, part=(0, 1), out_of=known.rule.box(known.shape))
    plain = dataclasses.replace(rule, reshape=False)
    return plain if plain.fits(known.shape, known.jax_shape) else rule


def _gives(torch_model: torch.nn.Module, jax_tensors: JaxTensors, rules: Rules, wanted: Sequence[Entry]) -> bool:
    try:
        found = {(e.torch, e.jax, e.torch_box, e.jax_box): e for e in ledger_of(torch_model, jax_tensors, rules)}
    except (ValueError, re.error):
        return False
    same = {(e.torch, e.jax, e.torch_box, e.jax_box): e for e in wanted}
    return found.keys() == same.keys() and all(_same_layout(found[key], same[key]) for key in same)


def _same_layout(one: Entry, other: Entry) -> bool:
    if (one.axes, one.flip, one.split) == (other.axes, other.flip, other.split):
        return True
    numbers = np.arange(math.prod(one.torch_shape)).reshape(one.torch_shape)
    return np.array_equal(one.to_jax(numbers), other.to_jax(numbers))


def _stacks(known: Sequence[Known]) -> tuple[dict[str, str], list[Known]]:
    """Return the lists of layers that are stacked in flax, and the rules with one in place of those of all layers."""
    layers: dict[str, list[tuple[int, str, Known]]] = {}
    for one in known:
        match = re.fullmatch(r"(.*?)\.(\d+)\.(.*)", one.rule.torch)
        if match and one.rule.into[:1] == ((0, int(match[2]), int(match[2]) + 1),):
            layers.setdefault(match[1], []).append((int(match[2]), match[3], one))
    stacked, found, gone = dict[str, str](), list[Known](), set[str]()
    for path, members in layers.items():
        root = _common([one.rule.jax.split(".")[:-1] for _, _, one in members])
        stacked[path] = ".".join(root) or path
        for _, rest, one in members:
            into = tuple((axis - 1, start, stop) for axis, start, stop in one.rule.into[1:])
            rule = dataclasses.replace(one.rule, torch=f"{stacked[path]}.{rest}", into=into, reshape=True)
            unit = Known(rule, one.shape, one.jax_shape[1:])
            unit = dataclasses.replace(unit, rule=_explicit(unit))
            if unit not in found:
                found.append(unit)
            gone.add(one.rule.torch)
    return stacked, [one for one in known if one.rule.torch not in gone] + found


def _common(paths: Sequence[Sequence[str]]) -> list[str]:
    """Return the modules that all paths begin with."""
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*paths, strict=False))
    return [column[0] for column in columns]


def _renames(known: Sequence[Known], modules: Mapping[str, nnx.Module]) -> Iterator[tuple[dict[str, str], list[Known]]]:
    """Yield ways to rename modules, each with the rules that it does not replace."""
    for depth in (1, 2, 3):
        roots: dict[str, list[list[str]]] = {}
        for one in known:
            modules_around = one.rule.torch.split(".")[:-1]
            if len(modules_around) >= depth:
                roots.setdefault(".".join(modules_around[:depth]), []).append(one.rule.jax.split(".")[:-1])
        found = {path: ".".join(_common(places)) for path, places in roots.items()}
        changed = [(path, place) for path, place in found.items() if path != place]
        yield {rf"^{pattern}(?=\.|$)": new for pattern, new in _templates(changed)}, []
    by_module: dict[str, list[Known]] = {}
    for one in known:
        by_module.setdefault(one.rule.torch.rpartition(".")[0], []).append(one)
    paths, rest = dict[str, str](), list[Known]()
    for path, own in by_module.items():
        places = {one.rule.jax.rpartition(".")[0] for one in own}
        place = places.pop()
        if not places and all(_is_built_in(one, path, place, modules) for one in own):
            paths[path] = place
        else:
            rest += own
    changed = [(path, place) for path, place in paths.items() if path != place]
    heads = dict(_head(path, place) for path, place in changed)
    yield {f"^{pattern}\\.": f"{new}." for pattern, new in _templates(heads.items())}, rest
    yield {rf"^{pattern}(?=\.|$)": new for pattern, new in _templates(heads.items())}, rest
    yield {f"^{pattern}$": new for pattern, new in _templates(changed)}, rest


def _head(path: str, place: str) -> tuple[str, str]:
    """Remove what two paths have in common at the end."""
    ours, theirs = path.split("."), place.split(".")
    while len(ours) > 1 and len(theirs) > 1 and ours[-1] == theirs[-1]:
        ours.pop()
        theirs.pop()
    return ".".join(ours), ".".join(theirs)


def _is_built_in(one: Known, path: str, place: str, modules: Mapping[str, nnx.Module]) -> bool:
    """Return whether the built-in rules convert the tensor, once the module `path` is called `place`."""
    leaf, jax_leaf = (name.rpartition(".")[2] for name in (one.rule.torch, one.rule.jax))
    rules = layer_rules(modules[place]) if place in modules else ()
    rule = next((rule for rule in rules if rule.jax == jax_leaf), LeafRule(jax_leaf, jax_leaf))
    if rule.torch != leaf or one.rule.into or not rule.fits(one.shape, one.jax_shape):
        return False
    if rule.box(one.shape) != one.rule.box(one.shape):
        return False
    numbers = np.arange(math.prod(one.shape)).reshape(one.shape)
    return np.array_equal(rule.to_jax(numbers, one.jax_shape), one.rule.to_jax(numbers, one.jax_shape))


def _patterns(known: Sequence[Known]) -> list[LeafRule]:
    """Return the rules with one pattern in place of names that differ in their numbers only."""
    groups: dict[LeafRule, list[tuple[str, str]]] = {}
    for one in known:
        groups.setdefault(dataclasses.replace(one.rule, torch="", jax=""), []).append((one.rule.torch, one.rule.jax))
    found = []
    for rule, names in groups.items():
        found += [dataclasses.replace(rule, torch=a, jax=b) for a, b in _templates(names, literal=False)]
    return found


def _templates(pairs: Iterable[tuple[str, str]], *, literal: bool = True) -> list[tuple[str, str]]:
    """Return regular expressions and replacements for pairs of names; those that differ in numbers only become one.

    `literal`: also escape names that stand alone.
    """
    left, found = list(dict.fromkeys(pairs)), list[tuple[str, str]]()
    for count in (9, 2, 1):  # how many of the numbers, from the first on, become a group
        groups: dict[str, list[tuple[str, str]]] = {}
        for ours, theirs in left:
            groups.setdefault(_general(ours, count), []).append((ours, theirs))
        for pattern, members in groups.items():
            news = {_replacement(ours, theirs, count) for ours, theirs in members}
            if len(members) > 1 and len(news) == 1:
                found.append((pattern, news.pop()))
                left = [pair for pair in left if pair not in members]
    return found + [(re.escape(a) if literal else a, b) for a, b in left]


def _general(name: str, count: int) -> str:
    numbers = itertools.count()
    return re.sub(r"\d+", lambda m: r"(\d+)" if next(numbers) < count else m[0], re.escape(name))


def _replacement(ours: str, theirs: str, count: int) -> str:
    """Write the numbers of `theirs` that are in `ours`, too, as references to their groups."""
    numbers = re.findall(r"\d+", ours)[:count]
    free = list(range(len(numbers)))

    def reference(match: re.Match[str]) -> str:
        place = next((i for i in free if numbers[i] == match[0]), None)
        if place is None:
            return match[0]
        free.remove(place)
        return f"\\g<{place + 1}>" if match.end() < len(theirs) and theirs[match.end()].isdigit() else f"\\{place + 1}"

    return re.sub(r"\d+", reference, theirs.replace("\\", r"\\"))
