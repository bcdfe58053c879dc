"""Right pairs of architectures that are not ours, written from their definitions, and mistakes that people make there."""

from parity.selftest.foreign.architecture import Architecture
from parity.selftest.foreign.convolutions import CONVOLUTIONS
from parity.selftest.foreign.decoders import DECODERS
from parity.selftest.foreign.encoders import ENCODERS
from parity.selftest.foreign.images import IMAGES
from parity.selftest.foreign.mixtures import MIXTURES
from parity.selftest.foreign.operators import OPERATORS
from parity.selftest.foreign.recurrent import RECURRENT

FOREIGN: dict[str, Architecture] = {
    **DECODERS,
    **ENCODERS,
    **RECURRENT,
    **IMAGES,
    **CONVOLUTIONS,
    **MIXTURES,
    **OPERATORS,
}
"""Every architecture by its name."""

__all__ = ["FOREIGN", "Architecture"]
