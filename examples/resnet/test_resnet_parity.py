"""A ResNet with BatchNorm, proven: `pytest examples/resnet`. The names agree, except inside flax's Sequential."""

import numpy as np
from flax import nnx
from resnet_jax import ResNet as JaxResNet
from resnet_torch import ResNet as TorchResNet
from torch import from_numpy
from torch.nn import Module

from parity import Rules, torch_to_jax

# nnx.Sequential keeps its modules in a list called `layers`; PyTorch's numbers them directly.
RULES = Rules(rename={r"\b(downsample|layers\.\d+)\.(\d+)": r"\1.layers.\2"})


def make_pair() -> tuple[Module, nnx.Module]:
    torch_model, jax_model = TorchResNet(), JaxResNet(rngs=nnx.Rngs(0))
    images = np.random.RandomState(1).standard_normal((8, 3, 32, 32)).astype(np.float32)
    torch_model(from_numpy(images))  # in training mode: the running statistics become this data's
    torch_to_jax(torch_model, jax_model, rules=RULES)
    return torch_model, jax_model


def test_resnet_is_the_same_in_both_frameworks(parity):
    torch_model, jax_model = make_pair()
    images = np.random.RandomState(0).standard_normal((2, 3, 32, 32))
    parity.assert_parity(torch_model, jax_model, images, rules=RULES)
