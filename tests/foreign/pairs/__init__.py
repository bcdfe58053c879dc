"""Pairs of models in which the JAX side is a port as people write them, in a library and with a module tree of its own.

Each file has the PyTorch model, the port, the conversion of its weights by hand, and mistakes that the port can make.
"""

from tests.foreign.pairs import (
    bert_haiku,
    conv1d_function,
    conv3d_nnx,
    gpt_linen,
    graph_equinox,
    gru_function,
    llama_function,
    lstm_equinox,
    mobilenet_haiku,
    moe_nnx,
    resnet_linen,
    unet_linen,
    vae_equinox,
)
from tests.foreign.pairs.common import ForeignPair

PAIRS: tuple[ForeignPair, ...] = (
    gpt_linen.PAIR,
    llama_function.PAIR,
    bert_haiku.PAIR,
    lstm_equinox.PAIR,
    gru_function.PAIR,
    unet_linen.PAIR,
    resnet_linen.PAIR,
    mobilenet_haiku.PAIR,
    moe_nnx.PAIR,
    vae_equinox.PAIR,
    graph_equinox.PAIR,
    conv1d_function.PAIR,
    conv3d_nnx.PAIR,
)
"""All of them."""
