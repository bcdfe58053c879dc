"""Correct pairs whose JAX model is one of Linen, Equinox or Haiku, and mistakes in them."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from flax import nnx

from parity.carry.program import Adapter, Program
from t2t_parity.selftest.foreign.architecture import Architecture
from t2t_parity.selftest.mutation import Apply, Mutation
from t2t_parity.selftest.twins.transformer import KINDS, Port, TorchGPT, TorchViT, inputs

LIBRARIES = {"linen": "flax", "equinox": "equinox", "haiku": "dm-haiku"}
"""Library -> distribution, imported when a pair is made. The ports are in the file of the same name."""


def _adapter(library: str, port: Port) -> Adapter:
    try:
        module = importlib.import_module(f"t2t_parity.selftest.twins.{library}")
    except ModuleNotFoundError as error:
        raise ValueError(f"ports in {library} need a package ({error}): pip install {LIBRARIES[library]}") from error
    adapter: Adapter = module.port(port)
    return adapter


def _twin(library: str, kind: Any) -> Architecture:
    return Architecture(
        TorchViT if kind == "vit" else TorchGPT,
        lambda rngs: _adapter(library, Port(kind)).as_nnx(),
        functools.partial(inputs, kind),
        trains=True,
    )


TWINS: dict[str, Architecture] = {f"{kind} in {name}": _twin(name, kind) for name in LIBRARIES for kind in KINDS}
"""All pairs by name."""


def _ported(library: str, wrong: Port) -> Apply:
    """Run another port with the weights of the correct one."""

    def apply(model: nnx.Module) -> None:
        assert isinstance(model, Program)
        model.run_as(_adapter(library, wrong).as_nnx())

    return apply


def _mistakes(library: str, kind: Any) -> list[Mutation]:
    def mistake(name: str, module: str, cause: str | None, group: str = "forward", **wrong: Any) -> Mutation:
        pair = f"{kind} in {library}"
        return Mutation(f"{pair}: {name}", group, pair, module, cause, _ported(library, Port(kind, **wrong)))

    return [
        mistake("tanh gelu", "block1.act", "gelu form", tanh=True),
        mistake("epsilon of a LayerNorm", "block1.norm2", "epsilon", epsilon=1e-3),
        mistake("scores not scaled", "block1.attn", "attention scale", scaled=False),
        mistake("queries and keys exchanged", "block1.attn", "q/k/v order", exchanged=True),
        mistake("positions from one", "the model", "shifted by one", first_position=1),
        mistake("dropout at twice the rate", "block1.drop", "dropout rate", "train", rate=0.2),
        mistake("a dropout forgotten", "block1.drop", "dropout rate", "train", rate=0.0),
    ]


TWIN_MISTAKES = tuple(mistake for name in LIBRARIES for kind in KINDS for mistake in _mistakes(name, kind))
"""Mistakes in these pairs."""

__all__ = ["TWINS", "TWIN_MISTAKES"]
