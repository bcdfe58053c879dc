"""NumPy arrays in JAX programs that are traced both with and without 64-bit types.

JAX keeps for every NumPy array what it becomes in a program, but not whether 64-bit types were enabled then: a program
that was traced in float32 and is traced again in float64 gets its float64 and int64 arrays in 32 bits, where its types
say 64, and fails (in JAX 0.10 with "lax.add requires arguments to have the same dtypes, got int32, int64").
"""

from __future__ import annotations

import functools
import importlib
import weakref
from typing import Any

import jax
import numpy as np


@functools.cache
def convert_by_precision() -> None:
    """Let JAX convert every NumPy array to the types that are enabled where it is used, from now on.

    Nothing is changed in a version of JAX without the hook for it.
    """
    try:
        register = importlib.import_module("jax._src.dtypes").register_canonicalize_value_handler
        typed: Any = importlib.import_module("jax._src.literals").TypedNdArray
    except (ImportError, AttributeError):
        return
    known = weakref.WeakValueDictionary[int, Any]()

    def converted(array: np.ndarray) -> Any:
        own = jax.dtypes.canonicalize_dtype(array.dtype)
        if own != array.dtype:
            return typed(np.asarray(array, own))
        # One object for each array, so that a program holds it once; it holds the array, whose id stays its own.
        found = known.get(id(array))
        if found is None:
            found = known[id(array)] = typed(array)
        return found

    register(np.ndarray, converted)
