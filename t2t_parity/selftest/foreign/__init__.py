"""Correct pairs of third-party architectures, written from their definitions, and common mistakes in them."""

from t2t_parity.selftest.foreign.architecture import Architecture
from t2t_parity.selftest.foreign.convolutions import CONVOLUTIONS
from t2t_parity.selftest.foreign.decoders import DECODERS
from t2t_parity.selftest.foreign.encoders import ENCODERS
from t2t_parity.selftest.foreign.images import IMAGES
from t2t_parity.selftest.foreign.mistakes.convolutions import CONVOLUTION_MISTAKES
from t2t_parity.selftest.foreign.mistakes.decoders import DECODER_MISTAKES
from t2t_parity.selftest.foreign.mistakes.encoders import ENCODER_MISTAKES
from t2t_parity.selftest.foreign.mistakes.images import IMAGE_MISTAKES
from t2t_parity.selftest.foreign.mistakes.mixtures import MIXTURE_MISTAKES
from t2t_parity.selftest.foreign.mistakes.operators import OPERATOR_MISTAKES
from t2t_parity.selftest.foreign.mistakes.recurrent import RECURRENT_MISTAKES
from t2t_parity.selftest.foreign.mixtures import MIXTURES
from t2t_parity.selftest.foreign.operators import OPERATORS
from t2t_parity.selftest.foreign.recurrent import RECURRENT
from t2t_parity.selftest.mutation import Mutation

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
