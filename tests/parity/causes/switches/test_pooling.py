"""Mistakes with pooling: windows, tokens, resizing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from tests.support.parity.named import Function, Tensor, cause_of, draw

X, IMAGE = draw(2, 5, 8), draw(2, 3, 7, 7)
KEEP = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()


class Masked(torch.nn.Module):
    """The mean of the tokens that are no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keep", KEEP)

    def forward(self, x: Tensor) -> Tensor:
        k = self.keep[..., None].to(x.dtype)
        return (x * k).sum(1) / k.sum(1)


class Mean(Masked):
    def forward(self, x: Tensor) -> Tensor:
        self.keep.sum()
        return x.mean(1)


def averaged(x: Tensor, **options: bool) -> Tensor:
    return F.avg_pool2d(x, 3, 2, 1, **options)


Case = tuple[torch.nn.Module, Tensor, Callable[[Tensor], Tensor], str]
CASES: dict[str, Case] = {
    "padding in the mean": (Masked(), X, lambda x: x.mean(1), "pooling"),
    "padding in the count": (Masked(), X, lambda x: (x * KEEP[..., None]).sum(1) / 5, "pooling"),
    "the mean of all but padding": (Mean(), X, Masked().forward, "pooling"),
    "first for the mean": (Masked(), X, lambda x: x[:, 0], "token taken"),
    "last for the first": (Function(lambda x: x[:, 0]), X, lambda x: x[:, -1], "token taken"),
    "mean for the first": (Function(lambda x: x[:, 0]), X, lambda x: x.mean(1), "pooling"),
    "padding counted": (Function(averaged), IMAGE, lambda x: averaged(x, count_include_pad=False), "pooling"),
    "ceil mode": (Function(lambda x: F.max_pool2d(x, 2)), IMAGE, lambda x: F.avg_pool2d(x, 2), "pooling"),
    "SAME": (
        Function(lambda x: F.max_pool2d(x, 3, 2, 1)),
        draw(2, 3, 8, 8),
        lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2),
        "padding",
    ),
    "nearest": (
        Function(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
        IMAGE,
        lambda x: F.interpolate(x, scale_factor=2),
        "resize",
    ),
    "corners": (
        Function(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)),
        IMAGE,
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        "resize",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_mistake_is_named(name: str) -> None:
    module, x, wrong, switch = CASES[name]
    cause = cause_of(module, x, wrong(x))
    assert cause is not None
    assert cause.switch == switch, cause
    assert cause.error_after <= 1e-13
