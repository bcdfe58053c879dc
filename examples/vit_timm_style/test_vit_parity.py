"""A ViT with other names and another cut of the attention on either side, proven: `pytest examples/vit_timm_style`."""

import numpy as np
from flax import nnx
from torch.nn import Module
from vit_jax import VisionTransformer as JaxViT
from vit_torch import VisionTransformer as TorchViT

from parity import LeafRule, Rules, torch_to_jax

# PyTorch's fused qkv, row block i of 3, is flax's query, key and value; both give (D, heads, D / heads).
QKV = [
    rule
    for i, name in enumerate(("query", "key", "value"))
    for rule in (
        LeafRule("qkv.weight", f"{name}.kernel", (1, 0), part=(i, 3), reshape=True),
        LeafRule("qkv.bias", f"{name}.bias", part=(i, 3), reshape=True),
    )
]
OUT = [LeafRule("proj.weight", "out.kernel", (1, 0), reshape=True), LeafRule("proj.bias", "out.bias")]
RULES = Rules(
    rename={
        r"^patch_embed\.proj": "embedding",
        r"^norm$": "encoder_norm",
        r"^blocks\.": "encoder.",
        r"\battn\b": "self_attention",
        r"\bls(\d)": r"scale\1",
        r"\bfc1\b": "up",
        r"\bfc2\b": "down",
    },
    leaves={nnx.MultiHeadAttention: [*QKV, *OUT]},
    unpaired=["patch_embed", "blocks", "*.attn.*", "*.self_attention.*"],  # cut differently: judged with what is around
)


def make_pair() -> tuple[Module, nnx.Module]:
    torch_model, jax_model = TorchViT(), JaxViT(rngs=nnx.Rngs(0))
    torch_to_jax(torch_model, jax_model, rules=RULES)
    return torch_model, jax_model


def test_vit_is_the_same_in_both_frameworks(parity):
    torch_model, jax_model = make_pair()
    images = np.random.RandomState(0).standard_normal((2, 3, 32, 32))
    parity.assert_parity(torch_model, jax_model, images, rules=RULES)
