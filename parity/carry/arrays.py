"""Conversion of PyTorch and JAX tensors to and from numpy, and lossless conversion between dtypes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch


def to_numpy(value: Any) -> np.ndarray:
    """Convert a PyTorch or JAX tensor to numpy, bit for bit (bfloat16 and float8 use the types of ml_dtypes).

    Lazy conjugation and negation of PyTorch views are resolved.
    """
    if isinstance(value, torch.Tensor):
        extended = _beyond_numpy(dtype_name(value))
        if extended is not None:
            bits = torch.int8 if value.element_size() == 1 else torch.int16
            return value.detach().cpu().resolve_neg().contiguous().view(bits).numpy().view(extended)
        return value.numpy(force=True)
    return np.asarray(value)


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Convert a numpy array to a PyTorch tensor that owns its memory; the inverse of `to_numpy`.

    Raises:
        ValueError: PyTorch has no such dtype.
    """
    name = array.dtype.name
    dtype = None if name == "complex32" else getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or dtype.itemsize != array.itemsize or "int4" in name or "int2" in name:
        raise ValueError(f"PyTorch has no {name}")
    array = np.array(array, copy=True, order="C")
    if _beyond_numpy(name) is not None:
        return torch.from_numpy(array.view(f"i{array.itemsize}")).view(dtype)
    return torch.from_numpy(array)


def dtype_name(tensor: Any) -> str:
    """Return the numpy-style name of a tensor's dtype."""
    return str(tensor.dtype).removeprefix("torch.")


def numpy_dtype(tensor: torch.Tensor) -> np.dtype:
    """Return the numpy dtype that corresponds to a tensor's dtype.

    Raises:
        ValueError: numpy has no such dtype.
    """
    name = dtype_name(tensor)
    try:
        if name != "complex32":  # ml_dtypes has it, but neither PyTorch's conversion to numpy nor JAX supports it
            return np.dtype(_beyond_numpy(name) or name)
    except TypeError:
        pass
    raise ValueError(f"numpy has no {name}: convert the tensor first")


def _beyond_numpy(name: str) -> Any:
    """Return the ml_dtypes type called `name`, or None if the type is numpy's own."""
    return None if "complex" in name else getattr(ml_dtypes, name, None)


def is_integer(dtype: Any) -> bool:
    """Return whether `dtype` is an integer type; bool does not count as one."""
    return bool(jnp.issubdtype(dtype, jnp.integer))


def converted(array: np.ndarray, dtype: Any) -> np.ndarray:
    """Convert `array` to `dtype` exactly, except that floats within the range of a floating `dtype` are rounded.

    Raises:
        ValueError: A value does not fit: an integer that changes, a finite value that overflows to infinity, a
            fraction converted to an integer, or a complex value converted to a real one. The message gives the first.
    """
    dtype = np.dtype(dtype)
    if array.dtype == dtype:
        return array
    if jnp.issubdtype(array.dtype, jnp.complexfloating) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(f"complex numbers do not fit {dtype}, which is real")
    with np.errstate(all="ignore"):
        found = array.astype(dtype)
        wrong = _damaged(array, found)
    if wrong.any():
        raise ValueError(f"{array[wrong].ravel()[0]} does not fit {dtype}")
    return found


def _damaged(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return a mask of the elements that the conversion changed by more than rounding."""
    source, target = before.dtype, after.dtype
    if not _is_whole(source) and not _is_whole(target):
        same = np.isnan(before) & np.isnan(after)
        same |= np.isinf(before) & np.isinf(after)  # every conversion keeps the sign
        return ~(same | (np.isfinite(before) & np.isfinite(after)))
    if _is_whole(source) and _is_whole(target):
        return (after.astype(source) != before) | ((after < 0) != (before < 0))
    whole, moving = (before, after) if _is_whole(source) else (after, before)
    moving = moving.real.astype(np.float64)
    if whole.dtype == np.bool_:
        return moving != whole
    # Floats outside the integer range wrap or saturate in the cast, which the comparison alone would not detect.
    bits = 8 * whole.dtype.itemsize
    low, high = (0.0, 2.0**bits) if jnp.issubdtype(whole.dtype, jnp.unsignedinteger) else (-(2.0 ** (bits - 1)),) * 2
    fits = (moving >= low) & (moving < abs(high))
    back = np.where(fits, moving, 0)
    return ~fits | (back.astype(whole.dtype) != whole) | (back != np.trunc(back))


def _is_whole(dtype: np.dtype) -> bool:
    return dtype == np.bool_ or is_integer(dtype)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def same_numbers(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether both arrays are bitwise equal; integers of different widths are compared by value."""
    if a.dtype != b.dtype and a.shape == b.shape and is_integer(a.dtype) and is_integer(b.dtype):
        try:
            return bool(np.array_equal(converted(a, b.dtype), b))
        except ValueError:
            return False
    return same_bits(a, b)


def first_line(error: BaseException) -> str:
    """Return the first line of the error message, or the name of the error's type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]
