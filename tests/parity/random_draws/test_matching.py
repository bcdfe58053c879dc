"""Which draws belong together, by law, size and place; what they get."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from parity.random_draws.matching import (
    GRID,
    OWN,
    SILENT,
    Law,
    Match,
    Site,
    Table,
    drawn,
    hand_out,
    match,
    moves,
    neutral,
    numbers,
    shared_states,
)

MASK = Law("bernoulli", 0.9)


def site(path: str, *shape: int, law: Law = MASK, index: int = 0, **more: object) -> Site:
    return dataclasses.replace(Site((path, 0), index, law, shape, path), **more)  # type: ignore[arg-type]


def test_names_of_the_laws_decide_what_can_answer_to_what() -> None:
    mask, uniform, noise = (site("a", 4, 3, law=law) for law in (MASK, Law("uniform"), Law("normal")))
    assert [m.mirrored for m in moves(mask, mask)] == [False]
    assert [m.mirrored for m in moves(mask, site("a", 4, 3, law=Law("bernoulli", 0.1)))] == [True]
    assert [m.mirrored for m in moves(mask, uniform)] == [False, True]
    assert moves(mask, noise) == moves(mask, site("a", 4, 3, law=Law("bernoulli", 0.8))) == ()
    assert moves(mask, site("a", 4, 1)) == ()
    assert moves(site("a", 4, law=Law("gamma")), site("a", 4, law=Law("gamma"))) == ()


@pytest.mark.parametrize(
    ("ours", "theirs", "axes"),
    [
        ((2, 3, 4, 5), (2, 4, 5, 3), (0, 2, 3, 1)),
        ((2, 3, 1, 1), (2, 1, 1, 3), (0, 1, 2, 3)),
        ((2, 3, 4), (3, 2, 4), (1, 0, 2)),
        ((6, 5, 5), (2, 3, 5, 5), (0, 1, 2)),
        ((2, 1, 1), (2,), (0, 1, 2)),
        ((2, 2), (2, 2), (0, 1)),
    ],
)
def test_axes_follow_the_shapes(ours: tuple[int, ...], theirs: tuple[int, ...], axes: tuple[int, ...]) -> None:
    found = moves(site("a", *ours), site("a", *theirs))
    given = np.arange(np.prod(ours)).reshape(ours)
    assert np.array_equal(found[0](given, "unit"), given.transpose(axes).reshape(theirs))


def test_equal_sides_leave_every_order_open_the_plain_one_first() -> None:
    found = moves(site("a", 3, 3, 3), site("a", 3, 3, 3))
    assert len(found) == 6
    assert found[0].axes == (0, 1, 2)


def test_the_nearest_are_paired_first() -> None:
    ours = [site("a", 4), site("b", 4), site("c", 4)]
    found = match(ours, [site("c", 4), site("b", 4)])
    assert [(m.torch.owner, m.jax.owner) for m in found.matches] == [("b", "b"), ("c", "c")]
    assert found.torch_only == (ours[0],)
    assert not found.complete
    elsewhere = match(ours[:1], [site("z", 4)])
    assert elsewhere.complete


def test_what_is_left_is_paired_to_say_what_differs() -> None:
    rate, size = site("a", 4, law=Law("bernoulli", 0.5)), site("b", 2)
    found = match([site("a", 4), site("b", 4)], [rate, size])
    assert [m.jax for m in found.rates] == [rate]
    assert [m.jax for m in found.sizes] == [size]
    assert found.matches == ()


def test_what_is_constant_is_no_draw() -> None:
    found = match([site("a", 4)], [site("a", 4, constant=True)])
    assert found.matches == ()
    assert len(found.torch_only) == len(found.jax_constant) == 1
    assert hand_out(found) == ({("a", 0): [SILENT]}, {("a", 0): [OWN]})


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("n", [2, 3, 1000])
def test_some_are_kept_and_some_dropped(keep: float, n: int) -> None:
    u = numbers(site("a", n), keep)
    assert 0 < (u < keep).sum() < n
    assert np.array_equal(u < keep, u.astype(np.float32) < np.float32(keep))
    assert np.array_equal(1 - u.astype(np.float32), (1 - u).astype(np.float32))
    assert (u * GRID % 2 == 1).all()
    assert (neutral(site("a", n, law=Law("bernoulli", keep))) < keep).all()


def test_a_rate_that_is_not_known_drops_some_and_keeps_some() -> None:
    u = numbers(site("a", 2, law=Law("uniform")))
    assert sorted(u < 0.9) == [False, True]


def test_both_sides_get_the_same_masks() -> None:
    ours, theirs = site("a", 2, 3, 4, 5), site("a", 2, 4, 5, 3, law=Law("bernoulli", 1 - 0.9))
    found = match([ours], [theirs])
    handed = hand_out(found)
    kept = handed[0]["a", 0][0] < 0.9
    dropped = handed[1]["a", 0][0] < 1 - 0.9
    assert np.array_equal(kept.transpose(0, 2, 3, 1), ~dropped)


def test_a_line_that_draws_several_times_is_one_draw_or_many() -> None:
    keys = ("00", "01", "02")
    at_once = match([site("a", 3, 5)], [site("a", 5, keys=keys)])
    assert at_once.complete
    table = hand_out(at_once)[1]["a", 0][0]
    assert isinstance(table, Table)
    given = drawn(Match(at_once.matches[0].torch, at_once.matches[0].jax, at_once.matches[0].moves))
    looked_up = table.lookup(np.array([[1], [2], [9]], np.uint8), (5,), 0.25)
    assert np.array_equal(looked_up, [*given[1:], np.full(5, 0.25)])
    one_by_one = match([site(f"a{i}", 5) for i in range(3)], [site("a", 5, keys=keys)])
    assert [m.jax.keys for m in one_by_one.matches] == [("00",), ("01",), ("02",)]
    assert not match([site("a", 5)], [site("a", 5, keys=keys)]).complete


def test_lines_of_one_loop_take_turns() -> None:
    keys = ("00", "01")
    ours = [site("b0", 5), site("b0", 5, index=1), site("b1", 5), site("b1", 5, index=1)]
    found = match(ours, [site("s", 5, keys=keys), site("s", 5, index=1, keys=("02", "03"))])
    assert [m.jax.keys for m in found.matches] == [("00",), ("02",), ("01",), ("03",)]


def test_one_state_of_the_generator_gives_one_draw() -> None:
    first, second, other = site("a", 4, state="s"), site("b", 5, state="s"), site("c", 5, state="t")
    assert list(shared_states([first, second, other])) == [(first, second)]
