"""Cuts that bring the sizes of both models' tensors to agree."""

from __future__ import annotations

import itertools

import numpy as np

from parity.suggest.pieces import Piece, assembled, balanced


def pieces(*shapes: tuple[int, ...]) -> tuple[Piece, ...]:
    return tuple(Piece(f"t{i}", shape) for i, shape in enumerate(shapes))


def test_equal_sizes_stay_as_they_are():
    sides = pieces((4, 8), (8,)), pieces((8,), (8, 4))
    assert list(balanced(sides)) == [sides]


def test_fused_tensors_are_cut():
    ours, theirs = pieces((8, 8), (8, 8), (8, 8), (8,)), pieces((8, 24), (8,))
    found = next(balanced((ours, theirs)))
    assert found[0] == ours
    assert [piece.shape for piece in found[1]] == [(8, 8)] * 3 + [(8,)]
    assert [piece.box for piece in found[1]] == [((1, 0, 8),), ((1, 8, 16),), ((1, 16, 24),), ()]


def test_parts_of_unequal_lengths():
    ways = list(balanced((pieces((8, 8), (4, 8), (4, 8)), pieces((8, 16)))))
    lengths = {tuple(piece.shape[1] for piece in way[1]) for way in ways}
    assert {(8, 4, 4), (4, 8, 4), (4, 4, 8)} <= lengths


def test_fused_in_pytorch():
    found = next(balanced((pieces((24, 8)), pieces((8, 2, 4), (8, 2, 4), (8, 2, 4)))))
    assert [piece.box for piece in found[0]] == [((0, 0, 8),), ((0, 8, 16),), ((0, 16, 24),)]


def test_stacks_of_fused_tensors_are_cut_twice():
    found = next(balanced((pieces(*[(4, 5)] * 6, *[(5,)] * 3), pieces((3, 5, 8), (3, 5)))))
    assert sorted(piece.size for piece in found[1]) == sorted(piece.size for piece in found[0])
    assert found[1][0].box == ((0, 0, 1), (2, 0, 4))


def test_what_cannot_agree_is_left():
    sides = pieces((7,)), pieces((8,))
    assert list(balanced(sides)) == [sides]


def test_parts_make_the_whole_again():
    whole = np.arange(24.0).reshape(2, 3, 4)
    parts = [p for layer in Piece("t", whole.shape).cut(0, [1, 1]) for p in layer.cut(2, [1, 3])]
    values = {
        piece: whole[tuple(slice(a, b) for _, a, b in [piece.box[0], (1, 0, 3), piece.box[1]])] for piece in parts
    }
    np.testing.assert_array_equal(assembled(values, {"t": whole.shape})["t"], whole)


def test_a_part_lies_in_its_tensor_and_in_its_layer():
    layer, part = Piece("a.w", (2, 8)).cut(0, [1, 1])[1], Piece("a.w", (8,)).cut(0, [4, 4])[1]
    assert (layer.path, part.path) == ("a.#1.w", "a.w.#4")
    assert len({piece.path for piece in itertools.chain(Piece("w", (2, 8)).cut(0, [1, 1]))}) == 2
