"""Right ports in every library, each with its specification."""

from __future__ import annotations

from tests.parity.verify.forged import HONEST
from tests.parity.verify.forged import SPEC as MLP

PORTS: dict[str, tuple[str, str]] = {"mlp, function": (MLP, HONEST)}
"""Name -> (specification, port)."""


def _honest(name: str, spec: str, port: str) -> None:
    PORTS[name] = (
        "import torch\nimport torch.nn.functional as F\n" + spec,
        "import jax\nimport jax.numpy as jnp\n" + port,
    )


# ---- one network in every library ----

PORTS["mlp, nnx by names"] = (
    MLP,
    """
import jax
from flax import nnx
import parity

class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([
            nnx.Linear(5, 7, rngs=rngs), nnx.Dropout(0.1, rngs=rngs), nnx.LayerNorm(7, epsilon=1e-5, rngs=rngs),
            nnx.Linear(7, 3, rngs=rngs, dtype="float32"),
        ])
    def __call__(self, x):
        x = jax.nn.gelu(self.layers[1](self.layers[0](x)), approximate=False)
        return self.layers[3](self.layers[2](x))

rules = parity.Rules(rename={r"^(\\d)": r"layers.\\1"})

def port():
    return Net(nnx.Rngs(0))
""",
)
PORTS["mlp, nnx by hand"] = (
    MLP,
    """
import jax
from flax import nnx

def port(weights):
    rngs = nnx.Rngs(0)
    first, last = nnx.Linear(5, 7, rngs=rngs), nnx.Linear(7, 3, rngs=rngs)
    norm = nnx.LayerNorm(7, epsilon=1e-5, rngs=rngs)
    for layer, name in ((first, "0"), (last, "3")):
        layer.kernel[...] = weights[f"{name}.weight"].T
        layer.bias[...] = weights[f"{name}.bias"]
    norm.scale[...], norm.bias[...] = weights["2.weight"], weights["2.bias"]
    return lambda x: last(norm(jax.nn.gelu(first(x), approximate=False)))
""",
)
PORTS["mlp, linen"] = (
    MLP,
    """
from flax import linen as nn

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Dense(7)(x), approximate=False)
        return nn.Dense(3)(nn.LayerNorm(epsilon=1e-5)(x))

def port(weights):
    def dense(name):
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}
    norm = {"scale": weights["2.weight"], "bias": weights["2.bias"]}
    variables = {"params": {"Dense_0": dense("0"), "Dense_1": dense("3"), "LayerNorm_0": norm}}
    return lambda x: Net().apply(variables, x)
""",
)
PORTS["mlp, equinox"] = (
    MLP,
    """
import equinox as eqx
import jax

def port(weights):
    key = jax.random.key(0)
    first, norm, last = eqx.nn.Linear(5, 7, key=key), eqx.nn.LayerNorm(7), eqx.nn.Linear(7, 3, key=key)
    def filled(layer, name):
        return eqx.tree_at(lambda x: (x.weight, x.bias), layer, (weights[f"{name}.weight"], weights[f"{name}.bias"]))
    first, norm, last = filled(first, "0"), filled(norm, "2"), filled(last, "3")
    return jax.vmap(lambda x: last(norm(jax.nn.gelu(first(x), approximate=False))))
""",
)
PORTS["mlp, haiku"] = (
    MLP,
    """
import haiku as hk
import jax

def net(x):
    x = jax.nn.gelu(hk.Linear(7)(x), approximate=False)
    return hk.Linear(3)(hk.LayerNorm(-1, True, True, eps=1e-5)(x))

def port(weights):
    def linear(name):
        return {"w": weights[f"{name}.weight"].T, "b": weights[f"{name}.bias"]}
    norm = {"scale": weights["2.weight"], "offset": weights["2.bias"]}
    params = {"linear": linear("0"), "linear_1": linear("3"), "layer_norm": norm}
    return lambda x: hk.transform(net).apply(params, None, x)
""",
)

# ---- functions of every kind ----

_honest(
    "attention with a mask by name",
    """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8)
    def forward(self, x, mask=None, scale=1.0):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * scale
        scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, 8))
def reference():
    return Net()
def inputs(seed):
    draw = torch.Generator().manual_seed(seed)
    n = 3 + seed % 5
    mask = torch.arange(n)[None] < torch.tensor([[n], [2]])
    return {"x": torch.randn(2, n, 8, generator=draw), "mask": mask, "scale": 0.5}
""",
    """
def port(weights):
    def linear(name, x):
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]
    def model(x, mask, scale):
        b, n, _ = x.shape
        q, k, v = jnp.moveaxis(linear("qkv", x).reshape(b, n, 3, 2, 4), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * scale
        scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
        return linear("out", jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(b, n, 8))
    return model
""",
)
_honest(
    "convolutions and batch norm",
    """
def reference():
    down, up = torch.nn.Conv2d(2, 4, 3, padding=1, stride=2), torch.nn.ConvTranspose2d(4, 3, 2, stride=2)
    return torch.nn.Sequential(down, torch.nn.BatchNorm2d(4), torch.nn.ReLU(), up)
def inputs(seed):
    return torch.randn(2, 2, 6 + 2 * (seed % 3), 8, generator=torch.Generator().manual_seed(seed))
""",
    """
def port(weights):
    def model(x):
        layout = ("NCHW", "OIHW", "NCHW")
        x = jax.lax.conv_general_dilated(x, weights["0.weight"], (2, 2), ((1, 1), (1, 1)), dimension_numbers=layout)
        x = x + weights["0.bias"][:, None, None]
        scale = weights["1.weight"] / jnp.sqrt(weights["1.running_var"] + 1e-5)
        x = (x - weights["1.running_mean"][:, None, None]) * scale[:, None, None] + weights["1.bias"][:, None, None]
        x = jax.nn.relu(x)
        y = jnp.einsum("bihw,iokl->bohkwl", x, weights["3.weight"])
        b, o, h, k, w, l = y.shape
        return y.reshape(b, o, h * k, w * l) + weights["3.bias"][:, None, None]
    return model
""",
)
_honest(
    "tied embedding, outputs by name",
    """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(11, 6), torch.nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
    def forward(self, ids):
        x = self.embed(ids)
        y = self.head(torch.tanh(x.cumsum(1)))
        return {"logits": y, "best": y.argmax(-1), "states": (x, x.mean(1))}
def reference():
    return Net()
def inputs(seed):
    return torch.randint(0, 11, (2, 4 + seed % 3), generator=torch.Generator().manual_seed(seed))
""",
    """
def port(weights):
    def model(ids):
        x = weights["embed.weight"][ids]
        y = jnp.tanh(jnp.cumsum(x, 1)) @ weights["head.weight"].T
        return {"states": (x, x.mean(1)), "logits": y, "best": y.argmax(-1)}
    return model
""",
)
_honest(
    "RMSNorm in float32 by design",
    """
class Norm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(6))
    def forward(self, x):
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * y.to(x.dtype)
def reference():
    return torch.nn.Sequential(torch.nn.Linear(6, 6), Norm())
def inputs(seed):
    return torch.randn(1 + seed % 30, 6, generator=torch.Generator().manual_seed(seed))
""",
    """
def port(weights):
    def model(x):
        x = x @ weights["0.weight"].T + weights["0.bias"]
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-6)
        return weights["1.weight"] * y.astype(x.dtype)
    return model
""",
)
_honest(
    "layers stacked in a scan, with remat",
    """
def reference():
    return torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.SiLU()) for _ in range(4)])
def inputs(seed):
    return torch.randn(1 + seed % 30, 6, generator=torch.Generator().manual_seed(seed))
""",
    """
def port(weights):
    stack = {x: jnp.stack([weights[f"{i}.0.{x}"] for i in range(4)]) for x in ("weight", "bias")}
    @jax.checkpoint
    def layer(x, p):
        return jax.nn.silu(x @ p["weight"].T + p["bias"]), None
    return jax.jit(lambda x: jax.lax.scan(layer, x, stack)[0])
""",
)
_honest(
    "LSTM",
    """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(3, 5, batch_first=True)
    def forward(self, x):
        return self.lstm(x)[0]
def reference():
    return Net()
def inputs(seed):
    return torch.randn(2, 2 + seed % 5, 3, generator=torch.Generator().manual_seed(seed))
""",
    """
def port(weights):
    w, u, b, c = (weights[f"lstm.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    def model(xs):
        def step(carry, x):
            h, s = carry
            i, f, g, o = jnp.split(x @ w.T + h @ u.T + b + c, 4, axis=-1)
            s = jax.nn.sigmoid(f) * s + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(s)
            return (h, s), h
        start = jnp.zeros((xs.shape[0], 5), xs.dtype)
        return jnp.moveaxis(jax.lax.scan(step, (start, start), jnp.moveaxis(xs, 1, 0))[1], 0, 1)
    return model
""",
)
_honest(
    "right custom derivative",
    """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)
    def forward(self, x):
        return F.softplus(self.fc(x))
def reference():
    return Net()
def inputs(seed):
    return torch.randn(1 + seed % 30, 4, generator=torch.Generator().manual_seed(seed))
""",
    """
@jax.custom_vjp
def softplus(x):
    return jnp.logaddexp(x, 0)
softplus.defvjp(lambda x: (softplus(x), x), lambda x, g: (g * jax.nn.sigmoid(x),))
def port(weights):
    return lambda x: softplus(x @ weights["fc.weight"].T + weights["fc.bias"])
""",
)
_honest(
    "stop_gradient where the reference detaches",
    """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    def forward(self, x):
        return self.a(x) * self.b(x).detach() + x
def reference():
    return Net()
def inputs(seed):
    return torch.randn(1 + seed % 30, 4, generator=torch.Generator().manual_seed(seed))
""",
    """
def port(weights):
    def linear(name, x):
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]
    return lambda x: linear("a", x) * jax.lax.stop_gradient(linear("b", x)) + x
""",
)
_honest(
    "complex numbers",
    """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.filter = torch.nn.Parameter(torch.randn(5, dtype=torch.complex64))
    def forward(self, x):
        z = torch.fft.rfft(x) * self.filter
        return z, torch.fft.irfft(z, n=8)
def reference():
    return Net()
def inputs(seed):
    return torch.randn(1 + seed % 30, 8, generator=torch.Generator().manual_seed(seed))
""",
    """
def port(weights):
    def model(x):
        z = jnp.fft.rfft(x) * weights["filter"]
        return z, jnp.fft.irfft(z, n=8)
    return model
""",
)
_honest(
    "buffers that are not saved",
    """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(6))
        self.register_buffer("table", torch.sin(torch.arange(6) * 0.7), persistent=False)
        self.register_buffer("count", torch.tensor(3))
    def forward(self, x):
        return x * self.table * self.scale + self.count
def reference():
    return Net()
def inputs(seed):
    return torch.randn(1 + seed % 30, 6, generator=torch.Generator().manual_seed(seed))
""",
    """
def port(weights):
    return lambda x: x * weights["table"] * weights["scale"] + weights["count"]
""",
)
_honest(
    "frozen weights, and no gradient asked",
    """
gradients = False
def reference():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Hardswish())
    model[0].bias.requires_grad_(False)
    return model
def inputs(seed):
    return torch.randn(1 + seed % 30, 4, generator=torch.Generator().manual_seed(seed))
""",
    """
def port(weights):
    return lambda x: jax.nn.hard_swish(x @ weights["0.weight"].T + weights["0.bias"])
""",
)
_honest(
    "images in another layout, nnx by names",
    """
def reference():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.Sigmoid())
def inputs(seed):
    return torch.randn(2, 3, 5 + seed % 4, 6, generator=torch.Generator().manual_seed(seed))
""",
    """
from flax import nnx
import parity
rules = parity.Rules(rename={r"^(\\d)": r"layers.\\1"})
class Net(nnx.Module):
    def __init__(self, rngs):
        conv = nnx.Conv(3, 4, (3, 3), padding="VALID", rngs=rngs)
        self.layers = nnx.List([conv, nnx.GroupNorm(4, 2, epsilon=1e-5, rngs=rngs)])
    def __call__(self, x):
        return jax.nn.sigmoid(self.layers[1](self.layers[0](x)))
def port():
    return Net(nnx.Rngs(0)), lambda model, x: jnp.moveaxis(model(jnp.moveaxis(x, 1, -1)), -1, 1)
""",
)
