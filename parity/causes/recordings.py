"""Record calls of modules for replay."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch

from parity.causes.replay import Recording, copied
from parity.recording.capture import Key
from parity.recording.inputs import Apply, positional


def record(
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    key: Key,
    paired: Collection[Key],
    apply: Apply = positional,
) -> Recording | None:
    """As `record_calls`, for one call; None if the call is never made."""
    return record_calls(model, inputs, {key}, paired, apply).get(key)


def record_calls(
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    keys: Collection[Key],
    paired: Collection[Key],
    apply: Apply = positional,
) -> dict[Key, Recording]:
    """Run `model` once and record these calls, in the order in which they return.

    Args:
        keys: Calls to record.
        paired: Calls whose results are held fixed when the enclosing call is replayed; a module without a partner is
            part of the enclosing module's arithmetic.
    """
    modules, wanted = dict(model.named_modules()), set(keys)
    count: dict[str, int] = {}
    open_keys: list[Key] = []
    given: dict[Key, tuple[Any, Any]] = {}
    inner: dict[Key, dict[Key, Any]] = {key: {} for key in wanted}
    found: dict[Key, Recording] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            key = (name, count.get(name, 0))
            count[name] = key[1] + 1
            open_keys.append(key)
            if key in wanted:
                given[key] = copied((args, kwargs))

        return hook

    def after(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        key = open_keys.pop()
        if key in wanted:
            found[key] = Recording(module, *given.pop(key), inner[key], modules, path=key[0])
        # The enclosing paired call; unpaired calls in between are part of its arithmetic.
        owners = [k for k in _around(open_keys, paired) if k in wanted] if key in paired else []
        for owner in owners:
            inner[owner][key] = copied(output)

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        with torch.no_grad():
            apply(model, copied(tuple(inputs)))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _around(open_keys: Sequence[Key], paired: Collection[Key]) -> Iterator[Key]:
    for key in reversed(open_keys):
        yield key
        if key in paired:
            return
