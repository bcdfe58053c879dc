"""Building blocks of the tables of rules: one function for each kind of tensor, with whole names on both sides.

Layouts: O out, I in, K spatial. PyTorch's convolutions are O I K.., its transposed ones I O K..
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from parity.carry.rules import LeafRule

RANKS = (1, 2, 3)
"""Numbers of spatial axes of a convolution."""

TRANSPOSED = "ConvTranspose"
"""Start of the names of PyTorch's transposed convolutions."""


def children_of(names: Sequence[str]) -> dict[str, set[str]]:
    """Map every path around the dotted `names` to what it contains."""
    inside: dict[str, set[str]] = {}
    for name in names:
        parts = name.split(".")
        for end in range(len(parts)):
            inside.setdefault(".".join(parts[:end]), set()).add(parts[end])
    return inside


def join(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf


def matrix(torch: str, jax: str) -> Iterator[LeafRule]:
    """A matrix (in, out) in JAX; with further axes, if the layer has several axes of inputs or outputs."""
    yield LeafRule(torch, jax, (1, 0))
    yield LeafRule(torch, jax, (1, 0), reshape=True)


def kernel(torch: str, jax: str, *, out_in: bool) -> Iterator[LeafRule]:
    """A convolution's kernel K.. I O in JAX; a transposed one's is flipped, and K.. I O, or K.. O I if `out_in`.

    flax's `transpose_kernel=True`, K.. O I and not flipped, is the last alternative.
    """
    for rank in RANKS:
        spatial, first = tuple(range(2, 2 + rank)), tuple(range(rank))
        yield LeafRule(torch, jax, (*spatial, 1, 0))
        yield LeafRule(torch, jax, (*spatial, 1, 0) if out_in else (*spatial, 0, 1), flip=first, layer=TRANSPOSED)
        if not out_in:
            yield LeafRule(torch, jax, (*spatial, 1, 0), layer=TRANSPOSED)


def vector(torch: str, jax: str) -> Iterator[LeafRule]:
    """A tensor in the same order on both sides; axes of size 1, or several ones in place of one, are reshaped."""
    yield LeafRule(torch, jax)
    yield LeafRule(torch, jax, reshape=True)


def fused(torch: str, jax: list[str], axes: tuple[int, ...] | None) -> Iterator[LeafRule]:
    """PyTorch's tensor in equal parts along its first axis, each a tensor in JAX."""
    for i, name in enumerate(jax):
        yield LeafRule(torch, name, axes, (i, len(jax)), reshape=True)


def attention(
    path: str, names: tuple[str, str, str, str], *, weight: str, bias: str, in_out: bool
) -> Iterator[LeafRule]:
    """The projections of an attention layer: for `torch.nn.MultiheadAttention`, fused or with its own names."""
    axes = (1, 0) if in_out else None
    for leaf, kind in ((weight, "weight"), (bias, "bias")):
        own = axes if kind == "weight" else None
        inner = [join(path, f"{name}.{leaf}") for name in names[:3]]
        yield from fused(join(path, f"in_proj_{kind}"), inner, own)
        if kind == "weight":
            for letter, name in zip("qkv", inner, strict=True):
                yield LeafRule(join(path, f"{letter}_proj_weight"), name, own, reshape=True)
        yield LeafRule(join(path, f"out_proj.{kind}"), join(path, f"{names[3]}.{leaf}"), own, reshape=True)
