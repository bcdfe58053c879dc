"""Sizes at which a mistake has an effect, for mistakes without effect at the given sizes."""

from __future__ import annotations

import torch

HINTS = {
    "kernel flipped": "kernels longer than 1",
    "kernel transposed": "kernels whose sides differ",
    "head order": "more than one head, of a width other than the number of heads",
    "axis order": "axes longer than 1, of lengths that differ",
    "axis flipped": "axes longer than 1",
    "shifted by one": "axes longer than 1",
    "unfold order": "kernels longer than 1, and several channels",
    "groups": "more than one group, of several channels",
    "padding": "kernels longer than 1",
    "pooling": "more than one entry to pool",
    "resize": "another size than the input's own",
    "concat order": "parts that differ",
    "parts order": "parts that differ",
    "q/k/v order": "parts that differ",
    "attention mask": "a mask that hides something, more than one token",
    "softmax axis": "axes of lengths that differ",
}


def hint(switch: str, module: torch.nn.Module) -> str:
    """Return a one-line hint on the sizes to use, or that the step is the same function at any size."""
    sizes = HINTS.get(switch)
    if isinstance(module, torch.nn.modules.conv._ConvNd) and switch.startswith("kernel"):
        return f"equal at these sizes (kernel {list(module.kernel_size)}): use {sizes}"
    return f"equal at these sizes: use {sizes}" if sizes else "the same function of these tensors"
