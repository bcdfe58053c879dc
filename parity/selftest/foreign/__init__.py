"""Correct pairs of third-party architectures, written from their definitions, and common mistakes in them."""

from parity.selftest.foreign.architecture import Architecture
from parity.selftest.foreign.convolutions import CONVOLUTIONS
from parity.selftest.foreign.decoders import DECODERS
from parity.selftest.foreign.encoders import ENCODERS
from parity.selftest.foreign.images import IMAGES
from parity.selftest.foreign.mistakes.convolutions import CONVOLUTION_MISTAKES
from parity.selftest.foreign.mistakes.decoders import DECODER_MISTAKES
from parity.selftest.foreign.mistakes.encoders import ENCODER_MISTAKES
from parity.selftest.foreign.mistakes.images import IMAGE_MISTAKES
from parity.selftest.foreign.mistakes.mixtures import MIXTURE_MISTAKES
from parity.selftest.foreign.mistakes.operators import OPERATOR_MISTAKES
from parity.selftest.foreign.mistakes.recurrent import RECURRENT_MISTAKES
from parity.selftest.foreign.mixtures import MIXTURES
from parity.selftest.foreign.operators import OPERATORS
from parity.selftest.foreign.recurrent import RECURRENT
from parity.selftest.mutation import Mutation

FOREIGN: dict[str, Architecture] = {
    **DECODERS,
    **ENCODERS,
    **RECURRENT,
    **IMAGES,
    **CONVOLUTIONS,
    **MIXTURES,
    **OPERATORS,
}
"""All architectures by name."""

MISTAKES: tuple[Mutation, ...] = (
    *DECODER_MISTAKES,
    *ENCODER_MISTAKES,
    *RECURRENT_MISTAKES,
    *IMAGE_MISTAKES,
    *CONVOLUTION_MISTAKES,
    *MIXTURE_MISTAKES,
    *OPERATOR_MISTAKES,
)
"""Common mistakes in these architectures."""

__all__ = ["FOREIGN", "MISTAKES", "Architecture"]
