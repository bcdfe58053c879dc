"""Numbers of either framework as numpy arrays, and their conversion to another dtype without silent damage."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch


def to_numpy(value: Any) -> np.ndarray:
    """A tensor or array of either framework as numpy, bit for bit (bfloat16 and float8 by way of ml_dtypes).

    Conjugated and negated views of PyTorch are written out.
    """
    if isinstance(value, torch.Tensor):
        extended = _beyond_numpy(dtype_name(value))
        if extended is not None:
            bits = torch.int8 if value.element_size() == 1 else torch.int16
            return value.detach().cpu().resolve_neg().contiguous().view(bits).numpy().view(extended)
        return value.numpy(force=True)
    return np.asarray(value)


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """The inverse of `to_numpy`: a tensor with memory of its own.

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
    """The name of a tensor's dtype, as numpy has it."""
    return str(tensor.dtype).removeprefix("torch.")


def numpy_dtype(tensor: torch.Tensor) -> np.dtype:
    """The numpy type of a tensor's numbers.

    Raises:
        ValueError: numpy has none.
    """
    name = dtype_name(tensor)
    try:
        if name != "complex32":  # which ml_dtypes has, and neither PyTorch's way to numpy nor JAX
            return np.dtype(_beyond_numpy(name) or name)
    except TypeError:
        pass
    raise ValueError(f"numpy has no {name}: convert the tensor first")


def _beyond_numpy(name: str) -> Any:
    """The numpy type of that name that ml_dtypes adds, None for numpy's own."""
    return None if "complex" in name else getattr(ml_dtypes, name, None)


def is_integer(dtype: Any) -> bool:
    """Whether it is a type of whole numbers; bool is none."""
    return bool(jnp.issubdtype(dtype, jnp.integer))


def converted(array: np.ndarray, dtype: Any) -> np.ndarray:
    """`array` in `dtype`: exactly, but that floating numbers within the range of a floating `dtype` are rounded.

    Raises:
        ValueError: a number does not fit: whole numbers that change, finite ones that become infinite, fractions in
            place of whole numbers, complex in place of real ones. The message names the first.
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
    """Where a conversion did more than round."""
    source, target = before.dtype, after.dtype
    if not _is_whole(source) and not _is_whole(target):
        same = np.isnan(before) & np.isnan(after)
        same |= np.isinf(before) & np.isinf(after)  # the sign is kept by every conversion
        return ~(same | (np.isfinite(before) & np.isfinite(after)))
    if _is_whole(source) and _is_whole(target):
        return (after.astype(source) != before) | ((after < 0) != (before < 0))
    whole, moving = (before, after) if _is_whole(source) else (after, before)
    moving = moving.real.astype(np.float64)
    if whole.dtype == np.bool_:
        return moving != whole
    # A number beyond the integers wraps or saturates on its way there, and the comparison would not see it.
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
    """Whether both are the same bit for bit; whole numbers may differ in width, as long as all are equal."""
    if a.dtype != b.dtype and a.shape == b.shape and is_integer(a.dtype) and is_integer(b.dtype):
        try:
            return bool(np.array_equal(converted(a, b.dtype), b))
        except ValueError:
            return False
    return same_bits(a, b)


def first_line(error: BaseException) -> str:
    """The first line of the message of `error`, or its type where it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
