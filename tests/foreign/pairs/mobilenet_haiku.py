"""MobileNet with inverted residuals, ReLU6 and squeeze-and-excitation: PyTorch as in torchvision; Haiku with state.

Shapes: B images, C channels, h w pixels, K classes.
"""

from __future__ import annotations

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F

from tests.foreign.pairs.common import Bug, ForeignPair, Side, array, channels_last, normal, randomize

K = 6
SETTINGS = ((8, 8, 1), (8, 12, 2), (12, 12, 1))
"""Channels in and out, and stride, of each inverted residual."""
EXPAND = 2


class ConvBNReLU(torch.nn.Sequential):
    def __init__(self, inside: int, outside: int, size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            torch.nn.Conv2d(inside, outside, size, stride, (size - 1) // 2, groups=groups, bias=False),
            torch.nn.BatchNorm2d(outside, eps=1e-3),
            torch.nn.ReLU6(inplace=True),
        )


class SqueezeExcitation(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Conv2d(width, width // 4, 1), torch.nn.Conv2d(width // 4, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1))))
        return x * (F.relu6(scale + 3) / 6)


class InvertedResidual(torch.nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        hidden = EXPAND * inside
        self.use_res_connect = stride == 1 and inside == outside
        self.conv = torch.nn.Sequential(
            ConvBNReLU(inside, hidden, 1),
            ConvBNReLU(hidden, hidden, 3, stride, groups=hidden),
            SqueezeExcitation(hidden),
            torch.nn.Conv2d(hidden, outside, 1, bias=False),
            torch.nn.BatchNorm2d(outside, eps=1e-3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class TorchMobileNet(torch.nn.Module):
    """(B, 3, h, w) -> (B, K)."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [InvertedResidual(*setting) for setting in SETTINGS]
        self.features = torch.nn.Sequential(ConvBNReLU(3, 8, 3, 2), *blocks, ConvBNReLU(12, 20, 1))
        self.classifier = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(20, K))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


def batch_norm(x: jax.Array, name: str) -> jax.Array:
    layer = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9, eps=1e-3, name=name)
    return layer(x, is_training=False)


def relu6(x: jax.Array) -> jax.Array:
    return jax.nn.relu(jnp.minimum(x, 6.0))


def conv(x: jax.Array, width: int, size: int, name: str, stride: int = 1, groups: int = 1) -> jax.Array:
    """Without bias; padded as PyTorch pads, not as `SAME` does at stride 2."""
    pad = (size // 2, size // 2)
    layer = hk.Conv2D(width, size, stride, padding=(pad, pad), with_bias=False, feature_group_count=groups, name=name)
    return layer(x)


def squeeze_excite(x: jax.Array, name: str, bug: str) -> jax.Array:
    width = x.shape[-1]
    count = 1 if bug == "sum_pool" else x.shape[1] * x.shape[2]
    s = hk.Linear(width // 4, name=f"{name}_squeeze")(x.sum((1, 2)) / count)  # bug: sum_pool
    s = hk.Linear(width, name=f"{name}_excite")(jax.nn.relu(s))
    gate = jax.nn.sigmoid(s) if bug == "soft_gate" else jnp.clip(s / 6 + 0.5, 0, 1)  # bug: soft_gate
    return x * gate[:, None, None, :]


def mobile_net(x: jax.Array, bug: str = "") -> jax.Array:
    x = relu6(batch_norm(conv(x, 8, 3, "stem", 2), "stem_bn"))
    for i, (inside, outside, stride) in enumerate(SETTINGS):
        here = bug if i == 1 else ""
        hidden = EXPAND * inside
        y = relu6(batch_norm(conv(x, hidden, 1, f"expand_{i}"), f"expand_bn_{i}"))
        y = batch_norm(conv(y, hidden, 3, f"depthwise_{i}", stride, groups=hidden), f"depthwise_bn_{i}")
        y = jax.nn.relu(y) if here == "plain_relu" else relu6(y)  # bug: plain_relu
        y = squeeze_excite(y, f"se_{i}", here)
        y = batch_norm(conv(y, outside, 1, f"project_{i}"), f"project_bn_{i}")
        x = x + y if stride == 1 and inside == outside else y
    x = relu6(batch_norm(conv(x, 20, 1, "last"), "last_bn"))
    return hk.Linear(K, name="classifier")(x.mean((1, 2)))


def converted(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}

    def put_conv(name: str, layer: Any) -> None:
        params[name] = {"w": jnp.asarray(channels_last(layer.weight))}

    def put_linear(name: str, layer: Any) -> None:
        weight = array(layer.weight)
        params[name] = {"w": jnp.asarray(weight.reshape(weight.shape[:2]).T), "b": jnp.asarray(array(layer.bias))}

    def put_norm(name: str, layer: Any) -> None:
        shape = (1, 1, 1, layer.num_features)
        params[name] = {
            "scale": jnp.asarray(array(layer.weight).reshape(shape)),
            "offset": jnp.asarray(array(layer.bias).reshape(shape)),
        }
        for end, tensor in (("mean", layer.running_mean), ("var", layer.running_var)):
            average = jnp.asarray(array(tensor).reshape(shape))
            counter = jnp.zeros((), jnp.int32)
            state[f"{name}/~/{end}_ema"] = {"average": average, "hidden": average, "counter": counter}

    first, *blocks, last = model.features
    put_conv("stem", first[0])
    put_norm("stem_bn", first[1])
    for i, block in enumerate(blocks):
        expand, depthwise, excitation, project, project_norm = block.conv
        put_conv(f"expand_{i}", expand[0])
        put_norm(f"expand_bn_{i}", expand[1])
        put_conv(f"depthwise_{i}", depthwise[0])
        put_norm(f"depthwise_bn_{i}", depthwise[1])
        put_linear(f"se_{i}_squeeze", excitation.fc1)
        put_linear(f"se_{i}_excite", excitation.fc2)
        put_conv(f"project_{i}", project)
        put_norm(f"project_bn_{i}", project_norm)
    put_conv("last", last[0])
    put_norm("last_bn", last[1])
    put_linear("classifier", model.classifier[1])
    return params, state


def side(model: Any, bug: str) -> Side:
    params, state = converted(model)
    transformed = hk.transform_with_state(lambda x: mobile_net(x, bug))
    return Side("haiku", transformed, params, state, takes=((0, 2, 3, 1),))


def torch_model(seed: int) -> TorchMobileNet:
    """Weights with which some values exceed 6, and some gates reach 0 or 1."""
    model = randomize(TorchMobileNet(), seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if ".conv.1.1." in name:
                tensor.mul_(12)
            if "fc2" in name:
                tensor.mul_(2)
    return model


PAIR = ForeignPair(
    name="mobilenet_haiku",
    file=__file__,
    torch_model=torch_model,
    jax_side=side,
    inputs=lambda seed: (normal(seed, 2, 3, 16, 12),),
    bugs={
        "plain_relu": Bug(("features.2.conv.1.2",)),
        "sum_pool": Bug(("features.2.conv.2",)),
        "soft_gate": Bug(("features.2.conv.2",)),
    },
)
