"""Pickles whose content is far larger than their bytes: seen before anything is made of them."""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Iterator
from typing import IO, Any

_MARK = pickletools.markobject


def operations(pickled: IO[bytes], budget: int) -> Iterator[tuple[str, Any]]:
    """Name and argument of every operation of the pickle at the position of `pickled`, and of no other after it.

    A pickle may use an object again: a tuple of two times a tuple of two times ... has 2^40 places in 100 bytes, and
    who makes it the key of a dictionary waits for all of them.

    Args:
        pickled: the file.
        budget: how many places an object may have, written out.

    Raises:
        pickle.UnpicklingError: an object has more.
        ValueError: cut off, or no pickle.
    """
    stack: list[int | None] = []  # places of each object; None is a mark
    memory: dict[int, int] = {}
    for op, arg, _position in pickletools.genops(pickled):
        yield op.name, arg
        top = (stack[-1] if stack else None) or 1
        if op.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memory[int(arg or 0)] = top
        elif op.name == "MEMOIZE":
            memory[len(memory)] = top
        elif op.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memory.get(int(arg or 0), 1))
        elif op.name == "DUP":
            stack.append(top)
        elif op.name == "MARK":
            stack.append(None)
        else:
            places = 1 + _taken(stack, op.stack_before)
            if places > budget:
                raise pickle.UnpicklingError("an object used again and again")
            stack += [places] * len(op.stack_after)


def _taken(stack: list[int | None], before: list[Any]) -> int:
    """Places of what an operation takes from the stack."""
    count, total = len(before), 0
    if _MARK in before:
        while stack and (top := stack.pop()) is not None:
            total += top
        count = before.index(_MARK)
    for _ in range(count):
        total += (stack.pop() if stack else None) or 0
    return total
