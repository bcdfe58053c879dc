"""Detection, before unpickling, of pickles that expand far beyond their size, nest too deeply or modify classes."""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Iterator
from typing import IO, Any

MAX_DEPTH = 100
"""Maximum nesting depth; checkpoints have about ten levels. Python's own hash of nested tuples crashes at 10^5."""

_MARK = pickletools.markobject
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_FILLS = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
"""Opcodes that insert objects into the lowest object that they take from the stack."""
_NAMES = frozenset({"GLOBAL", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"})
"""Opcodes that push a class or a function."""
_EMPTY = frozenset({"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"})


class _Object:
    """Known properties of an object: nesting depth, whether it is inside another one, and its name if it is code."""

    __slots__ = ("code", "depth", "inside")

    def __init__(self, depth: int = 0, code: str = "") -> None:
        self.depth, self.code, self.inside = depth, code, False

    def holds(self, deepest: int) -> None:
        """Record that an object of this depth is inside this one."""
        if self.depth > deepest:
            return
        if self.inside:  # the depth of the containing object would have to be recomputed
            raise pickle.UnpicklingError("an object that grows inside another")
        self.depth = deepest + 1


_Entry = tuple[int, _Object]
_LEAF: _Entry = (1, _Object())
"""Shared entry for numbers and strings: their total size is bounded by the number of bytes."""


def operations(pickled: IO[bytes], budget: int) -> Iterator[tuple[str, Any]]:
    """Yield name and argument of every operation of the pickle that starts at the position of `pickled`.

    A pickle may use an object repeatedly: a tuple of two times a tuple of two times ... has 2^40 elements in 100 bytes,
    and using it as a dictionary key visits all of them. Each level of nested tuples takes one byte, and hashing it
    takes one C stack frame. A pickle may also set attributes (BUILD), including those of a class or function, which
    would affect all later users.

    Args:
        pickled: Binary file.
        budget: Maximum number of elements of an object, counted once per use.

    Raises:
        pickle.UnpicklingError: If an object has more elements or is deeper than `MAX_DEPTH`, or a class or function is
            modified.
        ValueError: If the pickle is truncated or invalid.
    """
    stack: list[_Entry | None] = []  # number of elements of each object, and the object; None is a mark
    memory: dict[int, _Entry] = {}
    for op, arg, _position in pickletools.genops(pickled):
        yield op.name, arg
        top = (stack[-1] if stack else None) or _LEAF
        if op.name in _PUTS:
            memory[int(arg or 0)] = top
        elif op.name == "MEMOIZE":
            memory[len(memory)] = top
        elif op.name in _GETS:
            stack.append(memory.get(int(arg or 0), _LEAF))
        elif op.name == "DUP":
            stack.append(top)
        elif op.name == "MARK":
            stack.append(None)
        else:
            taken = _taken(stack, op.stack_before)
            made = _made(op.name, arg, taken, budget) if op.stack_after else _LEAF
            stack += [made] * len(op.stack_after)


def _taken(stack: list[_Entry | None], before: list[Any]) -> list[_Entry]:
    """Return the objects that an operation takes from the stack, the lowest first."""
    count, taken = len(before), []
    if _MARK in before:
        while stack and (top := stack.pop()) is not None:
            taken.append(top)
        count = before.index(_MARK)
    for _ in range(count):
        taken.append((stack.pop() if stack else None) or _LEAF)
    return taken[::-1]


def _made(name: str, arg: Any, taken: list[_Entry], budget: int) -> _Entry:
    """Return the object that an operation pushes for the objects it took."""
    if name in _NAMES:
        return 1, _Object(code=".".join(str(arg).split(" ")) if name == "GLOBAL" else "something")
    if not taken:
        return (1, _Object()) if name in _EMPTY else _LEAF
    places = 1 + sum(places for places, _ in taken)
    if places > budget:
        raise pickle.UnpicklingError("an object that expands by repeated use")
    inner = taken[1:] if name in _FILLS else taken
    made = taken[0][1] if name in _FILLS and taken[0] is not _LEAF else _Object()
    if name == "BUILD" and made.code:
        raise pickle.UnpicklingError(f"it would change GLOBAL {made.code}")
    if inner:
        made.holds(max(held.depth for _, held in inner))
        for _, held in inner:
            held.inside = held is not _LEAF[1]
    if made.depth > MAX_DEPTH:
        raise pickle.UnpicklingError(f"objects nested more than {MAX_DEPTH} levels deep")
    return places, made
