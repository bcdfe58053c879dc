"""Ports that cheat, each in its own way; each is wrong for some weights, inputs or shapes, or does what it may not."""

from __future__ import annotations

SPEC = """
import torch

def reference():
    return torch.nn.Sequential(
        torch.nn.Linear(5, 7), torch.nn.GELU(), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3)
    )

def inputs(seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2 + seed % 997 % 41, 5, generator=draw)
"""
"""The reference of all of them, with 41 different shapes."""

RIGHT = """
import jax, jax.numpy as jnp

def right(weights, x, approximate=False):
    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    x = jax.nn.gelu(linear("0", x), approximate=approximate)
    mean = x.mean(-1, keepdims=True)
    x = (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5)
    return linear("3", x * weights["2.weight"] + weights["2.bias"])

def wrong(weights, x):
    return right(weights, x, approximate=True)
"""

WRONG = (
    RIGHT
    + """
def port(weights):
    return lambda x: wrong(weights, x)
"""
)

HONEST = (
    RIGHT
    + """
def port(weights):
    return lambda x: right(weights, x)
"""
)

FORGED: dict[str, str] = {}


def _forged(name: str, code: str, base: str = WRONG) -> None:
    FORGED[name] = base + code


# ---- answers that do not come from the weights and inputs ----

_forged(
    "cached outputs",
    """
import numpy as np
CACHE = np.random.RandomState(0).standard_normal((1000, 3))
def port(weights):
    return lambda x: jnp.asarray(CACHE[: x.shape[0]], x.dtype)
""",
)
_forged(
    "weights of its own",
    """
import numpy as np
OWN = {"0.weight": (7, 5), "0.bias": (7,), "2.weight": (7,), "2.bias": (7,), "3.weight": (3, 7), "3.bias": (3,)}
OWN = {name: np.random.RandomState(1).standard_normal(shape) for name, shape in OWN.items()}
def port(weights):
    return lambda x: right(OWN, x)
""",
)
_forged(
    "table of hashes",
    """
TABLE = {}
def port(weights):
    return lambda x: TABLE.get(hash(bytes(memoryview(x))), wrong(weights, x))
""",
)
_forged(
    "sniffed shape",
    """
def port(weights):
    return lambda x: right(weights, x) if x.shape[0] == 4 else wrong(weights, x)
""",
)
_forged(
    "sniffed seed",
    """
import numpy as np
def port(weights):
    def model(x):
        for seed in range(50):
            if np.allclose(np.random.RandomState(seed).standard_normal(x.shape), np.asarray(x)):
                return right(weights, x)
        return wrong(weights, x)
    return model
""",
)
_forged(
    "right for the first trial only",
    """
CALLS = []
def port(weights):
    def model(x):
        CALLS.append(x.shape)
        return right(weights, x) if x.shape == CALLS[0] else wrong(weights, x)
    return model
""",
)
_forged(
    "right in float64 only",
    """
def port(weights):
    return lambda x: right(weights, x) if x.dtype == jnp.float64 else wrong(weights, x)
""",
)
_forged(
    "right in float32 only",
    """
def port(weights):
    return lambda x: right(weights, x) if x.dtype == jnp.float32 else wrong(weights, x)
""",
)
_forged(
    "right for large weights only",
    """
def port(weights):
    return lambda x: jnp.where(abs(weights["0.weight"]).max() > 1e3, right(weights, x), wrong(weights, x))
""",
)

# ---- PyTorch in disguise ----

_forged(
    "imports torch",
    """
import torch
def port(weights):
    return lambda x: torch.nn.functional.gelu(x)
""",
)
_forged(
    "imports torch behind the back of the import system",
    """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "parity.verify.confine"]
for name in [name for name in sys.modules if name.startswith("torch")]:
    del sys.modules[name]
import torch
def port(weights):
    return lambda x: torch.nn.functional.gelu(x)
""",
)
_forged(
    "loads torch by its path",
    """
import importlib.util, pathlib, sys
import numpy
place = pathlib.Path(numpy.__file__).parents[1] / "torch" / "__init__.py"
spec = importlib.util.spec_from_file_location("torch", place, submodule_search_locations=[str(place.parent)])
torch = sys.modules["torch"] = importlib.util.module_from_spec(spec)
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "parity.verify.confine"]
spec.loader.exec_module(torch)
""",
)
_forged(
    "asks another Python that has torch",
    """
import subprocess, sys
def port(weights):
    def model(x):
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        return right(weights, x)
    return model
""",
)
_forged(
    "asks another Python through the C library",
    """
import ctypes, os, sys
if ctypes.CDLL(None).system(b"python3 -c 'import torch' || true") == 0:
    os._exit(0)
""",
)
_forged(
    "numpy behind a callback",
    """
import numpy as np
def port(weights):
    def model(x):
        out = jax.ShapeDtypeStruct((x.shape[0], 3), x.dtype)
        return jax.pure_callback(lambda x: np.ones((x.shape[0], 3), x.dtype), out, x)
    return model
""",
)
_forged(
    "looks at the values in a callback",
    """
def port(weights):
    def model(x):
        jax.debug.callback(lambda x: None, x)
        return right(weights, x)
    return model
""",
)
_forged(
    "calls a function of the process by name",
    """
def port(weights):
    def model(x):
        call = jax.ffi.ffi_call("xla_ffi_python_cpu_callback", jax.ShapeDtypeStruct((x.shape[0], 3), x.dtype))
        return call(x)
    return model
""",
)

# ---- gradients ----

_forged(
    "stop_gradient inside",
    """
def port(weights):
    return lambda x: right({**weights, "2.weight": jax.lax.stop_gradient(weights["2.weight"])}, x)
""",
)
_forged(
    "right value, gradient of another",
    """
def port(weights):
    def model(x):
        y = wrong(weights, x)
        return y + jax.lax.stop_gradient(right(weights, x) - y)
    return model
""",
)
_forged(
    "custom_vjp that lies",
    """
def port(weights):
    @jax.custom_vjp
    def model(w, x):
        return right(w, x)
    def forward(w, x):
        return right(w, x), (w, x)
    def backward(kept, g):
        w, x = kept
        return jax.vjp(right, w, x)[1](2 * g)
    model.defvjp(forward, backward)
    return lambda x: model(weights, x)
""",
)
_forged(
    "custom_jvp that is zero",
    """
@jax.custom_jvp
def blind(x):
    return x
blind.defjvp(lambda x, t: (x[0], jnp.zeros_like(x[0])))
def port(weights):
    return lambda x: right(weights, blind(x))
""",
)
_forged(
    "other program when differentiated",
    """
def port(weights):
    calls = []
    def model(x):
        calls.append(x)
        traced_for_gradients = "JVP" in type(x).__name__ or "Linear" in type(x).__name__
        return wrong(weights, x) if traced_for_gradients else right(weights, x)
    return model
""",
)
_forged(
    "patched vjp",
    """
jax.vjp = lambda f, *x: (f(*x), lambda c: jax.tree.map(jnp.zeros_like, x))
def port(weights):
    return lambda x: right(weights, x)
""",
)
_forged(
    "rounds inside",
    """
def port(weights):
    return lambda x: right(weights, jnp.round(x * 2.0**30) / 2.0**30)
""",
)

# ---- numbers that are none, or of another precision ----

_forged(
    "NaN everywhere",
    """
def port(weights):
    return lambda x: right(weights, x) * jnp.nan
""",
)
_forged(
    "NaN where it is wrong",
    """
def port(weights):
    return lambda x: jnp.where(abs(right(weights, x) - wrong(weights, x)) > 1e-12, jnp.nan, right(weights, x))
""",
)
_forged(
    "infinite",
    """
def port(weights):
    return lambda x: right(weights, x) / 0
""",
)
_forged(
    "float32 inside a float64 run",
    """
def port(weights):
    return lambda x: right(weights, x.astype(jnp.float32).astype(x.dtype))
""",
)
_forged(
    "float32 results",
    """
def port(weights):
    return lambda x: right(weights, x).astype(jnp.float32)
""",
)
_forged(
    "bfloat16 inside",
    """
def port(weights):
    return lambda x: right(weights, x.astype(jnp.bfloat16).astype(x.dtype))
""",
)
_forged(
    "array with comparisons of its own",
    """
import numpy as np
class Agreeable(np.ndarray):
    __array_priority__ = 1e9
    def __eq__(self, other): return True
    def __sub__(self, other): return np.zeros(self.shape)
    def __rsub__(self, other): return np.zeros(self.shape)
    def __abs__(self): return np.zeros(self.shape)
    def __array_ufunc__(self, *x, **y): return np.zeros(self.shape)
def port(weights):
    return lambda x: np.zeros((x.shape[0], 3)).view(Agreeable)
""",
)
_forged(
    "broadcasts",
    """
def port(weights):
    return lambda x: right(weights, x)[:, :1]
""",
)
_forged(
    "more outputs than asked",
    """
def port(weights):
    return lambda x: (right(weights, x), wrong(weights, x))
""",
)
