"""Random models of ours, small ones, and images at the edge of what numbers can be."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from hypothesis import strategies as st

from parity.carry.convert import as_dtype
from t2t_parity.pair import make_pair

_SHARED = {"in_chans": st.integers(1, 4), "num_classes": st.integers(0, 3), "depth": st.integers(1, 2)}
_SHARED |= {"mlp_ratio": st.sampled_from((0.5, 1.7, 4.0)), "qkv_bias": st.booleans()}
_SHARED |= {"qk_scale": st.sampled_from((None, 0.3)), "scan_blocks": st.booleans()}
_SIDE = st.integers(3, 24)
_T2T = {"tokens_type": st.sampled_from(("performer", "transformer", "convolution")), "token_dim": st.integers(2, 9)}
_T2T |= {"img_size": st.tuples(_SIDE, _SIDE), "aux_head": st.booleans()}
_VIT = {"patch_size": st.integers(2, 7), "img_size": st.tuples(st.integers(7, 24), st.integers(7, 24))}
_VIT |= {"distilled": st.booleans(), "representation_size": st.sampled_from((None, 5))}

_KINDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "t2t_vit_micro": _T2T,
    "t2t_vit_14_se": _T2T,
    "t2t_vit_16_ghost": _T2T | {"mlp_ratio": st.just(3.0)},
    "t2t_vit_dense": _T2T | {"scan_blocks": st.just(False), "depth": st.just(3)},
    "vit_deit_tiny_patch16_224": _VIT,
}


@st.composite
def models(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a model that fits together: any image size, heads, widths and options."""
    name = draw(st.sampled_from(sorted(_KINDS)))
    arguments = {key: draw(value) for key, value in (_SHARED | _KINDS[name]).items()}
    heads = draw(st.integers(1, 3))
    if name == "t2t_vit_dense":
        arguments |= {"num_heads": heads, "embed_dim": 2 * heads * draw(st.integers(1, 4))}
        arguments |= {"growth_rate": 2 * heads, "block_config": draw(st.sampled_from(((1,), (2,), (1, 1))))}
        if len(arguments["block_config"]) == 2:  # half of the first stage's width has to be split among the heads
            arguments["embed_dim"] = 4 * heads
    else:
        arguments |= {"num_heads": heads, "embed_dim": 2 * heads * draw(st.integers(8, 12))}
    return name, arguments


IMAGES = {
    "normal": lambda z: z,
    "of 1e30": lambda z: 1e30 * z,
    "denormal": lambda z: 1e-310 * z,
    "around 1e4": lambda z: 1e4 + z,
    "zero": lambda z: 0 * z,
    "all 1": lambda z: np.ones_like(z),
    "all 1e4": lambda z: np.full_like(z, 1e4),
    "all 1e30": lambda z: np.full_like(z, 1e30),
    "one NaN": lambda z: _with_one(z, np.nan),
    "one infinity": lambda z: _with_one(z, np.inf),
    "one -infinity": lambda z: _with_one(z, -np.inf),
    "NaN": lambda z: np.nan * z,
    "infinite": lambda z: np.inf * z,
}
"""What becomes of standard normal numbers (B, C, H, W)."""


def _with_one(z: np.ndarray, value: float) -> np.ndarray:
    z = z.copy()
    z.flat[z.size // 2] = value
    return z


class Pair:
    """A model of ours in both frameworks, in float64, for images in PyTorch's layout."""

    def __init__(self, name: str, **arguments: Any) -> None:
        torch_model, jax_model = make_pair(name, **arguments)
        self.torch_model = torch_model.double().eval()
        jax_model = as_dtype(jax_model, jnp.float64)
        jax_model.eval()
        graphdef, self._state = nnx.split(jax_model)
        # LLVM's least effort: a program here runs a few times only.
        options = {"xla_backend_optimization_level": 0}
        self._run = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x), compiler_options=options)

    def in_torch(self, x: np.ndarray, weights: float = 0.0) -> np.ndarray:
        """PyTorch's output; with `weights`, after every weight was changed by that share of itself, up or down."""
        draw = torch.Generator().manual_seed(0)
        own = {
            name: w * (1 + weights * (2.0 * torch.randint(0, 2, w.shape, generator=draw).to(w.dtype) - 1))
            for name, w in self.torch_model.named_parameters()
        }
        with torch.no_grad():
            return torch.func.functional_call(self.torch_model, own, (torch.from_numpy(x),)).numpy()

    def in_jax(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self._run(self._state, jnp.asarray(x.transpose(0, 2, 3, 1))))
