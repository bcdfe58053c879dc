"""Pair the calls of JAX modules with those of PyTorch modules, and find their layouts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import torch
from flax import nnx

from parity.carry.jax_names import every_path
from parity.carry.rules import Rules, matches
from parity.pairing.shapes import Shapes, jax_shapes, torch_shapes
from parity.precision.by_design import Design
from parity.precision.wide_torch import own_tables, wide
from parity.recording.align import closest_axes, fitting_axes
from parity.recording.capture import ROOT, Call, Key
from parity.recording.channels import Axes
from parity.recording.output_names import tensor_names
from parity.recording.structure import Form, difference
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide


@dataclasses.dataclass(frozen=True)
class Pair:
    """One call on both sides, with the layouts of its tensors.

    `inputs` are the indices of PyTorch's tensors that correspond to JAX's, in order; None: they cannot be matched.
    `outputs` are the same for the outputs; None: all. `output_names` are the names of the model's outputs, if several.
    """

    torch: Key
    jax: Key
    module: torch.nn.Module
    inputs: tuple[int, ...] | None
    input_axes: tuple[Axes, ...]
    output_axes: tuple[Axes, ...]
    output_names: tuple[str, ...] = ()
    outputs: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """The module's path, with the number of the call if it is not the first."""
        path, index = self.torch
        return path if index == 0 else f"{path}#{index + 1}"

    def reference(self, call: Call) -> Call:
        """Convert PyTorch's call to JAX's layout."""
        given = call.inputs or []
        inputs = None if self.inputs is None else aligned([given[i] for i in self.inputs], self.input_axes)
        return Call(inputs, aligned(call.outputs, self.output_axes))


@dataclasses.dataclass(frozen=True)
class Pairing:
    """All pairs of calls, the calls that neither have nor need a partner, and the shapes of PyTorch's calls.

    Attributes:
        different: (module, reason) of calls on both sides whose outputs cannot be compared.
        configured: (module, description) of calls whose results differ in dtype, as the models are configured.
        idle: Modules whose own weights PyTorch's model does not use on these inputs.
        design: Narrow formats that are used by design.
        forms: Structures of what the models themselves return.
    """

    pairs: tuple[Pair, ...]
    unpaired: tuple[str, ...]
    shapes: Mapping[Key, Shapes]
    different: tuple[tuple[str, str], ...] = ()
    configured: tuple[tuple[str, str], ...] = ()
    idle: tuple[str, ...] = ()
    design: Design = dataclasses.field(default_factory=Design)
    forms: tuple[Form, Form] | None = None

    @property
    def comparable(self) -> bool:
        """Whether the model's own outputs can be compared."""
        return any(pair.torch == ROOT for pair in self.pairs)

    @property
    def root(self) -> Pair:
        """The pair of the model's own call.

        Raises:
            StopIteration: The model itself was not called on both sides.
        """
        return next(pair for pair in self.pairs if pair.torch == ROOT)

    def sections(self, limit: float) -> Iterator[list[Pair]]:
        """Split the pairs, in order, into sections of at most `limit` bytes of float64 tensors (or one pair)."""
        section: list[Pair] = []
        size = 0
        for pair in self.pairs:
            shapes = self.shapes[pair.torch]
            needed = 8 * sum(math.prod(shape) for shape in (*shapes.inputs, *shapes.outputs))
            if section and size + needed > limit:
                yield section
                section, size = [], 0
            section.append(pair)
            size += needed
        yield section

    def with_children(self, section: Sequence[Pair]) -> list[Pair]:
        """Return `section` and the calls of direct children, which a forced run needs to judge the section."""
        paths = {pair.torch[0] for pair in self.pairs}
        inside = {pair.torch[0] for pair in section}
        return [pair for pair in self.pairs if pair in section or _parent(pair.torch[0], paths) in inside]


def _parent(path: str, paths: Collection[str]) -> str | None:
    """Return the nearest enclosing module of `path` that is called itself."""
    while path:
        path = path.rpartition(".")[0]
        if path in paths:
            return path
    return None


def aligned(arrays: Sequence[np.ndarray], axes: Sequence[Axes]) -> list[np.ndarray]:
    """Convert PyTorch's arrays to JAX's layout."""
    return [x if a is None else x.transpose(a) for x, a in zip(arrays, axes, strict=True)]


def pair_calls(
    torch_side: TorchSide,
    jax_side: JaxSide,
    arrays: Sequence[np.ndarray],
    rules: Rules,
    owner: torch.nn.Module | None = None,
    *,
    whole: bool = False,
) -> Pairing:
    """Pair all calls of both models, in the order in which PyTorch's calls return.

    The pairs refer to the modules of `owner` (by default the side's own), so that the side can be freed. Only modules
    without any tensors (an activation, a dropout, a reshape) may lack a partner: they are judged as part of the
    enclosing module. With `whole`, only the calls of the models themselves are paired.

    Raises:
        UnpairedError: Some modules have no partner; all of them are listed.
    """
    ours, theirs = torch_shapes(torch_side, arrays, jax_side.input_axes), jax_shapes(jax_side, arrays)
    modules = dict((owner or torch_side.model).named_modules())
    problems, unpaired, different, drafts = [], [], [], []
    # A module that exists on both sides, but is called by another method on one, is judged with the enclosing one.
    names = partner_paths(torch_side.model, jax_side.model, rules)
    here = set(names.values())
    there = {".".join(map(str, path)) for path, _ in nnx.iter_modules(jax_side.model)}
    partners = {(path, i): (names[path], i) for path, i in ours.calls if (names[path], i) in theirs}
    for key, shapes in ours.calls.items():
        path, _ = key
        if whole and key != ROOT:
            continue
        if key in partners:
            try:
                drafts.append(_Draft.of(key, partners[key], modules[path], shapes, theirs[partners[key]], rules))
            except _SideResultError as error:
                unpaired.append(f"{_label(key)}: {error}")
            except ValueError as error:
                different.append((_name(key), str(error)))
        elif _holds_own(modules[path]) and not (
            matches(path, rules.unpaired) or rules.in_stack(path, torch_side=True) or names[path] in there
        ):
            problems.append(f"{_label(key)} of PyTorch has no partner in JAX")
        else:
            unpaired.append(f"{_label(key)} of PyTorch")
    for key in () if whole else theirs.keys() - set(partners.values()):
        allowed = matches(key[0], rules.unpaired) or rules.in_stack(key[0], torch_side=False) or key[0] in here
        allowed = allowed or _inside_fused(jax_side.model, key[0], rules)
        allowed = allowed or _only_holds(jax_side.model, key[0], {draft.pair.jax[0] for draft in drafts}, rules)
        if _holds_tensors(jax_side.model, key[0]) and not allowed:
            problems.append(f"{_label(key)} of JAX has no partner in PyTorch")
        else:
            unpaired.append(f"{_label(key)} of JAX")
    if not drafts and not problems and not different:
        problems.append("no module was called on both sides")
    if problems:
        raise UnpairedError(f"{len(problems)} modules cannot be compared: " + "; ".join(problems))
    pairs = _decided(drafts, torch_side, jax_side, arrays)
    unpaired += [
        f"the inputs of {_label(x.torch)}: the two sides receive different tensors" for x in pairs if x.inputs is None
    ]
    configured = [
        (pair.name, how)
        for pair in pairs
        if (how := _configured(pair, ours.calls[pair.torch], theirs[pair.jax])) is not None
    ]
    idle = [path for path in ours.idle if not matches(path, rules.unpaired)]
    found = Pairing(tuple(pairs), tuple(sorted(unpaired)), ours.calls, tuple(different), tuple(configured), tuple(idle))
    return dataclasses.replace(found, forms=_forms(ours.calls, theirs))


def _forms(ours: Mapping[Key, Shapes], theirs: Mapping[Key, Shapes]) -> tuple[Form, Form] | None:
    """Return the structures of what the models themselves return."""
    a, b = (calls[ROOT].form if ROOT in calls else None for calls in (ours, theirs))
    return None if a is None or b is None else (a, b)


def _configured(pair: Pair, ours: Shapes, theirs: Shapes) -> str | None:
    """Describe how the floating dtypes of a call's results differ; for the model itself all dtypes, in order."""
    if theirs.dtypes != ours.dtypes:
        return f"{theirs.dtypes or 'no floating numbers'} in JAX, {ours.dtypes or 'no floating numbers'} in PyTorch"
    if pair.torch == ROOT and theirs.kinds != ours.kinds:
        return f"{', '.join(theirs.kinds)} in JAX, {', '.join(ours.kinds)} in PyTorch"
    return None


def with_design(
    pairing: Pairing,
    torch_side: TorchSide,
    jax_side: JaxSide,
    arrays: Sequence[np.ndarray],
    owner: torch.nn.Module,
) -> Pairing:
    """Add to `pairing` the formats below float64 in which both models compute, and which of them are by design."""
    with wide(torch_side.precision, torch_side.model) as asked, torch.no_grad():
        torch_side.apply(torch_side.model, torch_side.inputs(arrays))
    partners = {pair.jax[0]: pair.torch[0] for pair in pairing.pairs}
    tables = own_tables(owner, torch_side.precision)
    return dataclasses.replace(pairing, design=Design.of(asked, tables, jax_side.program(arrays), partners))


def partner_paths(torch_model: torch.nn.Module, jax_model: nnx.Module, rules: Rules) -> dict[str, str]:
    """Map PyTorch's path of every module to JAX's path of its partner, whether or not the partner exists.

    A module may have several names on either side. The root models are partners, even if JAX's model is nested one
    level deeper.
    """
    counted = {id(module): ".".join(map(str, path)) for path, module in nnx.iter_modules(jax_model)}
    jax_names = {path: counted[id(node)] for path, node in every_path(jax_model) if id(node) in counted}
    aliases: dict[int, list[str]] = {}
    for path, module in torch_model.named_modules(remove_duplicate=False):
        aliases.setdefault(id(module), []).append(path)
    found = {}
    for path, module in torch_model.named_modules():
        candidates = [rules.jax_path(name) for name in aliases[id(module)]] if path else [""]
        known = (jax_names[candidate] for candidate in candidates if candidate in jax_names)
        found[path] = next(known, candidates[0])
    return found


def _only_holds(model: nnx.Module, path: str, paired: Collection[str], rules: Rules) -> bool:
    """Whether a JAX module only wraps modules that have partners: it is judged with the enclosing one."""
    if path == rules.jax_path("") and path:
        return True
    module = next(m for p, m in nnx.iter_modules(model) if ".".join(map(str, p)) == path)
    inside = [p for p, m in nnx.iter_modules(module) if p]
    own = [p for p, node in nnx.iter_graph(module) if isinstance(node, nnx.Variable)]
    held = all(any(p[: len(q)] == q for q in inside) for p in own)
    return held and any(name.startswith(f"{path}.") for name in paired)


def _inside_fused(model: nnx.Module, path: str, rules: Rules) -> bool:
    """Whether an enclosing module has the rules for this one's tensors (attention and its projections)."""
    around = (m for p, m in nnx.iter_modules(model) if path.startswith(".".join(map(str, p)) + "."))
    return any("." in rule.jax for module in around for rule in rules.leaf_rules(module))


def _holds_own(module: torch.nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _holds_tensors(model: nnx.Module, path: str) -> bool:
    """Whether a module has variables other than generator state: dropout's draws are compared in training mode."""
    module = next(m for p, m in nnx.iter_modules(model) if ".".join(map(str, p)) == path)
    nodes = (node for _, node in nnx.iter_graph(module))
    return any(isinstance(node, nnx.Variable) and not isinstance(node, nnx.RngState) for node in nodes)


def _label(key: Key) -> str:
    path, index = key
    return (path or "the model") + (f" (call {index + 1})" if index else "")


def _name(key: Key) -> str:
    path, index = key
    return path if index == 0 else f"{path}#{index + 1}"


class UnpairedError(ValueError):
    """Modules have no partner by name."""


class _SideResultError(ValueError):
    """PyTorch's layer returns more than its flax counterpart; the rest is judged with the enclosing module."""


@dataclasses.dataclass(frozen=True)
class _Draft:
    """A pair whose layouts are not determined yet."""

    pair: Pair
    input_choices: list[list[Axes]]
    output_choices: list[list[Axes]]

    @property
    def open(self) -> bool:
        return any(len(choices) > 1 for choices in (*self.input_choices, *self.output_choices))

    @classmethod
    def of(cls, key: Key, partner: Key, module: torch.nn.Module, ours: Shapes, theirs: Shapes, rules: Rules) -> _Draft:
        """
        Raises:
            ValueError: The outputs differ in structure or shape.
            _SideResultError: PyTorch's layer returns additional results.
        """
        _check_structure(key, module, ours, theirs)
        rule = next((axes for pattern, axes in rules.layouts.items() if matches(key[0], [pattern])), "find")
        layer = module if key != ROOT else None
        outputs = [
            _candidates(a, b, _own_rule(f"output {i}", rules, rule) if key == ROOT else rule, layer, labels)
            for i, (a, b, labels) in enumerate(zip(ours.outputs, theirs.outputs, ours.output_labels, strict=True))
        ]
        inputs = _matching_inputs(ours, len(theirs.inputs))
        choices: list[list[Axes]] = []
        try:
            for i, b in zip(inputs or (), theirs.inputs, strict=False):
                choices.append(
                    _candidates(ours.inputs[i], b, "find" if key == ROOT else rule, module, ours.input_labels[i])
                )
        except ValueError:
            inputs, choices = None, []
        names = tuple(tensor_names(ours.form)) if key == ROOT and ours.form and len(outputs) > 1 else ()
        return cls(Pair(key, partner, module, inputs, (), (), names), choices, outputs)

    def decided(self, values: tuple[Call, Call] | None) -> Pair:
        """Return the pair with the layouts under which the tensors are closest, where several fit."""
        inputs, outputs = self.input_choices, self.output_choices
        if values is not None:
            given = [(values[0].inputs or [])[i] for i in self.pair.inputs or ()]
            inputs = _decide(inputs, given, values[1].inputs or [])
            outputs = _decide(outputs, values[0].outputs, values[1].outputs)
        input_axes, output_axes = (tuple(found[0] for found in choices) for choices in (inputs, outputs))
        return dataclasses.replace(self.pair, input_axes=input_axes, output_axes=output_axes)


def _check_structure(key: Key, module: torch.nn.Module, ours: Shapes, theirs: Shapes) -> None:
    found = difference(ours.form, theirs.form) if ours.form and theirs.form else None
    if found is None:
        return
    if isinstance(module, torch.nn.MultiheadAttention) and theirs.form and theirs.form.kind == "tensor":
        if len(ours.outputs) == 1:
            return  # (output, None): need_weights=False
        raise _SideResultError("PyTorch returns the attention weights too")
    raise ValueError(f"{found} (choose what is compared: torch_call=, jax_call=)" if key == ROOT else found)


def _own_rule(name: str, rules: Rules, otherwise: Axes | str) -> Axes | str:
    """Return the layout rule for one output of the model."""
    named = (axes for key, axes in rules.layouts.items() if key.startswith("output ") and matches(name, [key]))
    return next(named, otherwise)


def _candidates(
    a: tuple[int, ...],
    b: tuple[int, ...],
    rule: Axes | str,
    module: torch.nn.Module | None,
    labels: str | None,
) -> list[Axes]:
    if isinstance(rule, str) or (rule is not None and len(rule) != len(a)):
        return fitting_axes(a, b, module, labels)
    if (a if rule is None else tuple(a[axis] for axis in rule)) != b:
        raise ValueError(f"the layout rule {rule} does not turn {list(a)} into {list(b)}")
    return [rule]


def _matching_inputs(ours: Shapes, count: int) -> tuple[int, ...] | None:
    """Return the indices of PyTorch's inputs that correspond to JAX's `count` inputs; None if unknown.

    A tensor passed several times (q, k and v of self-attention) may be passed once on the other side.
    """
    if len(ours.inputs) == count:
        return tuple(range(count))
    distinct = tuple(i for i, repeats in enumerate(ours.repeats) if not repeats)
    return distinct if len(distinct) == count else None


def _decided(
    drafts: Sequence[_Draft], torch_side: TorchSide, jax_side: JaxSide, arrays: Sequence[np.ndarray]
) -> list[Pair]:
    """Determine the layouts of the pairs; where several fit, by one run of both models."""
    unsure = [draft for draft in drafts if draft.open]
    if not unsure:
        return [draft.decided(None) for draft in drafts]
    ours = torch_side.forward(arrays, only={draft.pair.torch for draft in unsure})
    theirs = jax_side.forward(arrays, only={draft.pair.jax for draft in unsure})
    return [draft.decided((ours[draft.pair.torch], theirs[draft.pair.jax]) if draft.open else None) for draft in drafts]


def _decide(choices: list[list[Axes]], ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> list[list[Axes]]:
    return [[closest_axes(c, a, b)] for c, a, b in zip(choices, ours, theirs, strict=False)]
