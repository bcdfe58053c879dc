"""The generator of random pairs, and some of its pairs through the proof; tools/reliability/pairs.py runs many."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import jax
import numpy as np
import pytest
import torch

from tools.reliability import pairs
from tools.reliability.grammar import node as nodes
from tools.reliability.grammar import tree as grammar
from tools.reliability.grammar.direct import CHANGED, behaviour, difference
from tools.reliability.grammar.draw import draw_tree
from tools.reliability.grammar.node import GENERAL, IDS, IMAGE, TOKENS, VECTOR, Format, Node
from tools.reliability.grammar.shrink import candidates, shrunk
from tools.reliability.grammar.tree import *  # noqa: F403  (what a printed tree needs)
from tools.reliability.grammar.tree import Tree, located
from tools.reliability.grammar.verdict import (
    DIFFERENT,
    EQUAL,
    FALSE_PASS,
    NOT_RUN,
    Verdict,
    changed,
    derivative_is_wrong,
    flax_inputs,
    judge,
    only_gradients,
    quiet,
)

TREES = range(8)
"""Seeds of trees whose halves are compared directly."""

SAYING = (3000, 3007, 3008, 3010, 3011, 3016, 3018, 3023)
"""Seeds of quick trees, right and wrong ones, at every level."""

GIVEN = {
    VECTOR: Format(VECTOR, (6,)),
    TOKENS: Format(TOKENS, (4, 6), mask=True),
    IMAGE: Format(IMAGE, (4, 6, 6)),
    IDS: Format(IDS, (4,), mask=True, vocabulary=5),
}

LINEAR = grammar.Linear(6)

EXAMPLES: tuple[tuple[str, Node], ...] = (
    (TOKENS, LINEAR),
    (VECTOR, grammar.Mlp(gated=True)),
    *((VECTOR, grammar.Activation(name)) for name in ("gelu", "hardswish")),
    (TOKENS, grammar.Glu()),
    (IMAGE, grammar.Standardise()),
    (TOKENS, grammar.Positions(False)),
    (TOKENS, grammar.Buffers()),
    (TOKENS, grammar.Scale()),
    *((TOKENS, grammar.TokenMean(how)) for how in ("mean", "first", "max", "masked mean")),
    (IDS, grammar.Embedding(scaled=True)),
    (TOKENS, grammar.LayerNorm()),
    (TOKENS, grammar.RMSNorm()),
    (IMAGE, grammar.GroupNorm(2)),
    (IMAGE, grammar.BatchNorm()),
    (IMAGE, grammar.Conv(groups=2, stride=2)),
    (IMAGE, grammar.ConvTranspose(kernel=3, padding=1)),
    (IMAGE, grammar.Pool(window=3, stride=1, padding=1)),
    (IMAGE, grammar.Pool(False, window=3, stride=1, padding=1)),
    (IMAGE, grammar.SqueezeExcite()),
    (IMAGE, grammar.ToTokens()),
    (IMAGE, grammar.ToVector(True)),
    (TOKENS, grammar.Attention(2, causal=True, padded=True)),
    (TOKENS, grammar.Spectrum("complex filter")),
    (TOKENS, grammar.Spectrum("real part")),
    (TOKENS, grammar.Residual(LINEAR, "learned")),
    *((TOKENS, grammar.Branches(LINEAR, grammar.Scale(), how)) for how in ("concat", "sum", "product")),
    (TOKENS, grammar.Repeated(LINEAR)),
    (TOKENS, grammar.Bundle("nested")),
    (IDS, grammar.Tied(grammar.Linear(4))),
    (TOKENS, grammar.Chain((LINEAR, grammar.Activation()))),
    *((TOKENS, grammar.Heads(structure)) for structure in ("dict", "nested", "none")),
    *((TOKENS, grammar.Logits(how=how)) for how in ("", "masked finfo", "spectrum")),
    (IMAGE, grammar.Picture()),
)
"""What a node is given, and the node: every mistake of it is made."""


def test_a_tree_is_decided_by_its_seed():
    drawn = [draw_tree(seed) for seed in range(200)]
    assert drawn == [draw_tree(seed) for seed in range(200)]
    assert len(set(map(repr, drawn))) == 200
    assert [eval(repr(tree)) for tree in drawn] == drawn
    assert 60 < sum(tree.mistake is not None for tree in drawn) < 140
    assert {tree.level for tree in drawn} == {"forward", "gradients", "train"}


def test_every_node_is_drawn_and_is_wrong_somewhere():
    names = {kind.__name__ for kind in vars(grammar).values() if isinstance(kind, type) and issubclass(kind, Node)}
    names -= {"Node", "Container"}
    drawn = [draw_tree(seed) for seed in range(600)]
    assert {type(node).__name__ for tree in drawn for node in tree.root.walk()} == names
    wrong = {type(tree.mistake[0]).__name__ for tree in drawn if tree.mistake}
    assert len(names - wrong) <= 4


def leaves(output: Any) -> list[Any]:
    """The tensors of an output of PyTorch in the order of JAX: dicts by key."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        return [leaf for key in sorted(output) for leaf in leaves(output[key])]
    if dataclasses.is_dataclass(output):
        return leaves(tuple(vars(output).values()))
    return [] if output is None else [leaf for part in output for leaf in leaves(part)]


@pytest.mark.parametrize("seed", TREES)
def test_both_halves_are_the_same_function(seed):
    tree = draw_tree(seed).right
    model, flax_model = tree.models()
    inputs = [torch.from_numpy(x) for x in tree.inputs()]
    with torch.no_grad():
        wanted = leaves(model.double().eval()(*(x.double() if x.is_floating_point() else x for x in inputs)))
    with quiet():
        found = behaviour(flax_model, flax_inputs(tree), "forward")
    arrays = [x for x in found.values() if isinstance(x, np.ndarray)]
    float32 = any(getattr(node, "float32", False) for node in tree.root.walk())
    assert len(arrays) == len(wanted)
    for value, reference in zip(arrays, wanted, strict=True):
        assert value.shape == tuple(reference.shape)
        assert np.allclose(value, reference.numpy(), rtol=1e-5 if float32 else 1e-10, atol=1e-5 if float32 else 1e-10)


@pytest.mark.parametrize(("kind", "node"), EXAMPLES, ids=lambda value: str(value))
def test_every_mistake_of_a_node_changes_the_function(kind, node):
    given = GIVEN[kind]
    root = node if kind == IDS else grammar.Chain((grammar.Conv(4) if kind == IMAGE else LINEAR, node))
    tree = Tree(root, given, batch=3, seed=3, mask="float32" if root.uses_mask else "", level="gradients")
    inputs = flax_inputs(tree)
    mistakes = node.mistakes(given)
    assert mistakes
    with quiet():
        right = {level: behaviour(tree.models()[1], inputs, level) for level in ("forward", "gradients")}
        for wrong in mistakes:
            bad = dataclasses.replace(node, wrong=wrong)
            level = "gradients" if "stopped" in wrong else "forward"
            half = dataclasses.replace(tree, root=bad if root is node else root.with_children((root.children[0], bad)))
            error = difference(behaviour(half.models()[1], inputs, level), right[level])
            assert error > CHANGED, wrong


@pytest.mark.parametrize("wrong", ["gradient halved", "in float32", "one element off by 1e-5"])
def test_a_general_mistake_changes_the_function(wrong):
    assert wrong in GENERAL
    assert changed(Tree(dataclasses.replace(LINEAR, wrong=wrong), GIVEN[TOKENS])) > CHANGED


@pytest.mark.parametrize("wrong", grammar.Dropout().mistakes(GIVEN[TOKENS]))
def test_dropout_is_compared_in_training_mode(wrong):
    root = grammar.Chain((LINEAR, grammar.Dropout(wrong=wrong)))
    assert changed(Tree(root, GIVEN[TOKENS], level="train")) > CHANGED
    assert changed(Tree(root, GIVEN[TOKENS], level="forward")) == 0


def test_a_mistake_behind_a_gate_of_zero_is_in_vain():
    root = grammar.Residual(dataclasses.replace(LINEAR, wrong="bias missing"), "zero")
    tree = Tree(root, GIVEN[TOKENS], level="forward")
    assert changed(tree) == 0
    assert changed(dataclasses.replace(tree, level="gradients")) > CHANGED


@pytest.mark.parametrize("seed", SAYING)
def test_parity_says_what_it_has_to(seed):
    verdict = judge(draw_tree(seed))
    assert not verdict.fault, verdict


def test_a_fault_is_shrunk_to_what_shows_it():
    """As if `parity` passed every LayerNorm with another epsilon."""
    tree = next(
        tree
        for tree in map(draw_tree, range(10_000))
        if tree.mistake
        and tree.mistake[1] == "epsilon"
        and isinstance(tree.mistake[0], grammar.LayerNorm)
        and tree.size > 8
    )
    small = shrunk(tree, lambda tree: tree.mistake is not None, tries=500)
    assert small.size <= 3
    assert small.mistake == tree.mistake
    assert small.level == "forward"


def test_a_smaller_tree_keeps_the_mistake_and_fits():
    for seed in range(10):
        tree = draw_tree(seed)
        for candidate in candidates(tree):
            assert bool(candidate.mistake) == bool(tree.mistake)
            assert grammar.fits(candidate)


def test_a_campaign_goes_on_where_it_ended():
    tally = pairs.Tally(seed=7)
    for seed in range(7, 40):
        tree = draw_tree(seed)
        fault = FALSE_PASS if tree.mistake and seed % 2 else ""
        tally.add(pairs.Case(seed, tree, Verdict(DIFFERENT if tree.mistake else EQUAL, EQUAL, fault, "kind")))
    figures = tally.figures
    assert figures["pairs"] == 33 == figures["right"] + figures["wrong"]
    assert figures[FALSE_PASS] == len(figures["faults"]) > 0
    assert pairs.Tally.of(figures).figures == figures
    assert eval(figures["faults"][0]["pair"]).mistake


def test_what_is_given_to_a_node_is_known():
    draw = random.Random(0)
    for seed in range(30):
        tree = draw_tree(seed)
        path, node, given = draw.choice(list(located(tree.root, tree.given)))
        assert isinstance(node.out(given), Format)
        assert isinstance(nodes.build(node, given), torch.nn.Module)
        assert grammar.replaced(tree.root, path, node) == tree.root


def test_a_campaign_goes_on_when_its_processes_end(monkeypatch):
    """Python 3.11 waits for ever where a pool is to start processes anew (python/cpython#115634)."""
    monkeypatch.setattr(pairs, "LIFE", 1)
    monkeypatch.setattr(pairs, "BATCH", 1)
    assert [case.seed for case in pairs.cases(range(3), 1)] == [0, 1, 2]


def test_a_layout_that_parity_accepts_is_no_mistake():
    """Flattening an image in flax's order is right for a model that is given PyTorch's."""
    given = Format(IMAGE, (4, 8, 8))
    tree = Tree(
        grammar.Chain((grammar.ToVector(wrong="flax's order", flat=True), grammar.Logits(to=7))),
        given,
        seed=116,
        level="forward",
    )
    assert changed(tree) == 0


def test_random_numbers_are_not_the_same_for_all():
    given = Format(VECTOR, (5,))
    tree = Tree(grammar.Chain((grammar.Dropout(), grammar.Dropout())), given, level="train")
    first, second = (layer.rngs.key[...] for layer in tree.models()[1].layers)
    again = tree.models()[1].layers[0].rngs.key[...]
    assert not np.array_equal(jax.random.key_data(first), jax.random.key_data(second))
    assert np.array_equal(jax.random.key_data(first), jax.random.key_data(again))


def test_a_pair_of_which_pytorchs_half_does_not_run_is_not_judged():
    given = Format(VECTOR, (2,))
    assert judge(Tree(grammar.GroupNorm(groups=2), given, batch=1)).said == NOT_RUN


def chain(*parts: Node, batch: int = 1) -> Tree:
    return Tree(
        root=grammar.Chain((*parts, grammar.Logits(to=4))), given=Format(IMAGE, (6, 6, 7)), batch=batch, seed=938
    )


def test_a_derivative_of_pytorchs_that_is_wrong_is_no_reference():
    """BatchNorm2d in evaluation mode, where what comes back is the expanded gradient of a mean over tokens."""
    x = torch.randn(1, 6, 6, 7, dtype=torch.float64, requires_grad=True)
    layer = torch.nn.BatchNorm2d(6).double().eval()  # y = x / sqrt(1 + eps)
    loss = (layer(x).flatten(2).transpose(1, 2).mean(1) * torch.arange(6.0)).sum()
    right = (torch.arange(6.0) / 42 / (1 + layer.eps) ** 0.5)[:, None, None].expand(6, 6, 7)
    broken = bool((torch.autograd.grad(loss, x)[0][0] - right).norm() > 1e-3 * right.norm())
    tree = chain(grammar.BatchNorm(), grammar.ToTokens(), grammar.TokenMean())
    assert derivative_is_wrong(tree) == broken  # a later PyTorch may have mended it
    assert judge(tree).fault == ""


def test_only_failing_gradients_ask_for_pytorchs_own():
    assert only_gradients("activation gradient free float32, gradient free float64")
    assert not only_gradients("gradient free float64, output free float64")
    assert not only_gradients("derivative forced float64, gradient free float64")
    assert not only_gradients("ValueError in ledger.py:build")


def test_a_right_derivative_and_one_that_is_stopped_are_references():
    assert not derivative_is_wrong(chain(grammar.Activation("gelu"), grammar.ToTokens(), grammar.TokenMean()))
    assert not derivative_is_wrong(chain(grammar.Conv(), grammar.ToTokens(), grammar.TokenMean(), batch=2))


def test_what_was_a_fault_is_tried_again(tmp_path: Any):
    """Seed 4854 counted as a false alarm before PyTorch's own derivative was looked at."""
    fault = {"seed": 4854, "fault": "false alarm", "kind": "", "level": "gradients", "pair": ""}
    tree = draw_tree(4854)
    before = pairs.Tally(4854)
    before.add(pairs.Case(4854, tree, Verdict(EQUAL, DIFFERENT, "false alarm")))
    before.faults[:] = [fault]
    assert before.take_out(fault) == 4854
    assert not any(before.figures[name] for name in ("pairs", "right", "false alarm", "faults"))
    before.add(pairs.Case(4854, tree, Verdict(EQUAL, EQUAL)))
    again = pairs.Tally(4854)
    again.add(pairs.Case(4854, tree, Verdict(EQUAL, EQUAL)))
    assert before.figures == again.figures
