"""Check that tensors are plain: dense, with their own data, in a dtype that other libraries support."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from t2t_config.text import few

BEYOND_NUMPY = re.compile(r"float[48]_|bits|u?int[1-7]$")
"""Names of dtypes that NumPy does not have; bfloat16 is allowed, as it is widened where necessary."""


def why_not_plain(tensor: Tensor) -> str | None:
    """Return why a tensor is not plain and how to convert it; None if it is plain."""
    if is_traceable_wrapper_subclass(tensor):
        return f"is a {type(tensor).__name__}, which does not hold its own data: save a plain tensor"
    if tensor.is_quantized:
        return "is quantised: save its .dequantize()"
    if tensor.is_nested:
        return "is nested: save its .to_padded_tensor(0)"
    if tensor.layout != torch.strided:
        return f"is {str(tensor.layout).removeprefix('torch.').replace('_', ' ')}, not dense: save its .to_dense()"
    if tensor.device.type == "meta":
        return "is on the device meta, without numbers: load the model's weights before they are saved"
    if tensor.is_neg():
        return "has the negative bit of a view: save its .resolve_neg()"
    if tensor.is_conj():
        return "has the conjugate bit of a view: save its .resolve_conj()"
    name = str(tensor.dtype).removeprefix("torch.")
    if BEYOND_NUMPY.match(name):
        return f"is {name}: save its .float()"
    return None


def check_plain(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError if any tensors are not plain; the message explains the first and names the others."""
    found = {name: text for name, tensor in tensors.items() if (text := why_not_plain(tensor)) is not None}
    if not found:
        return
    first, *others = found
    more = f" (and {few(others)} too)" if others else ""
    raise ValueError(f"{few([first])} {found[first]}{more}")
