"""The deterministic part of a convolutional VAE, decoded at the mean: PyTorch; Equinox, one image at a time.

Shapes: B images, C channels, h w pixels, Z latent features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import torch

from tests.foreign.pairs.common import Bug, ForeignPair, Side, array, normal, randomize

C, Z, SIDE = 6, 5, 8
INSIDE = 2 * C * (SIDE // 4) ** 2


class VAEOutput(NamedTuple):
    reconstruction: Any
    mean: Any
    std: Any
    kl: Any


class TorchEncoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1 = torch.nn.Conv2d(1, C, 3, 2, 1), torch.nn.LeakyReLU(0.2)
        self.conv2, self.act2 = torch.nn.Conv2d(C, 2 * C, 3, 2, 1), torch.nn.LeakyReLU(0.2)
        self.fc = torch.nn.Linear(INSIDE, 2 * Z)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.act2(self.conv2(self.act1(self.conv1(x))))
        mean, logvar = self.fc(x.flatten(1)).chunk(2, dim=1)
        return mean, logvar


class TorchDecoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(Z, INSIDE)
        self.net = torch.nn.Sequential(
            torch.nn.ReLU(),
            torch.nn.Upsample(scale_factor=2, mode="nearest"),
            torch.nn.Conv2d(2 * C, C, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Upsample(scale_factor=2, mode="nearest"),
            torch.nn.Conv2d(C, 1, 3, padding=1),
            torch.nn.Sigmoid(),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.net(self.fc(z).view(-1, 2 * C, SIDE // 4, SIDE // 4))


class Posterior(torch.nn.Module):
    """Standard deviation, and divergence from the standard normal distribution."""

    def forward(self, mean: torch.Tensor, logvar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.exp(0.5 * logvar), -0.5 * (1 + logvar - mean.pow(2) - logvar.exp()).sum(1)


class TorchVAE(torch.nn.Module):
    """(B, 1, h, w) -> reconstruction (B, 1, h, w), mean (B, Z), std (B, Z), KL divergence (B)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.posterior, self.decoder = TorchEncoder(), Posterior(), TorchDecoder()

    def forward(self, x: torch.Tensor) -> VAEOutput:
        mean, logvar = self.encoder(x)
        std, kl = self.posterior(mean, logvar)
        return VAEOutput(self.decoder(mean), mean, std, kl)


class VAE(eqx.Module):
    convs: tuple[eqx.nn.Conv2d, eqx.nn.Conv2d]
    to_mean: eqx.nn.Linear
    to_logvar: eqx.nn.Linear
    from_latent: eqx.nn.Linear
    smooth: tuple[eqx.nn.Conv2d, eqx.nn.Conv2d]
    bug: str = eqx.field(static=True)

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jax.nn.leaky_relu(self.convs[0](x), 0.2)
        x = jax.nn.leaky_relu(self.convs[1](x), 0.01 if self.bug == "leaky_slope" else 0.2)  # bug: leaky_slope
        x = x.ravel()
        return self.to_mean(x), self.to_logvar(x)

    def decode(self, z: jax.Array) -> jax.Array:
        x = self.from_latent(z).reshape(2 * C, SIDE // 4, SIDE // 4)
        for i, conv in enumerate(self.smooth):
            x = jax.nn.relu(x)
            method = "bilinear" if self.bug == "bilinear" and i == 1 else "nearest"
            x = conv(jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2]), method))  # bug: bilinear
        return jax.nn.sigmoid(x)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        mean, logvar = self.encode(x)
        variance = jnp.exp(logvar)
        return {
            "reconstruction": self.decode(mean),
            "mean": mean,
            "std": jnp.exp(logvar * (1.0 if self.bug == "no_half" else 0.5)),  # bug: no_half
            "kl": 0.5 * jnp.sum(variance + mean**2 - 1 - logvar),
        }


def converted(model: Any, bug: str) -> VAE:
    key = jax.random.key(0)
    encoder, decoder = model.encoder, model.decoder

    def filled(layer: Any, weight: Any, bias: Any) -> Any:
        new = (jnp.asarray(array(weight)), jnp.asarray(array(bias)).reshape(layer.bias.shape))
        return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, new)

    def conv(layer: Any, stride: int) -> Any:
        blank = eqx.nn.Conv2d(layer.in_channels, layer.out_channels, 3, stride, padding=1, key=key)
        return filled(blank, layer.weight, layer.bias)

    to_mean, to_logvar = (
        filled(eqx.nn.Linear(INSIDE, Z, key=key), encoder.fc.weight[part], encoder.fc.bias[part])
        for part in (slice(Z), slice(Z, None))
    )
    return VAE(
        convs=(conv(encoder.conv1, 2), conv(encoder.conv2, 2)),
        to_mean=to_mean,
        to_logvar=to_logvar,
        from_latent=filled(eqx.nn.Linear(Z, INSIDE, key=key), decoder.fc.weight, decoder.fc.bias),
        smooth=(conv(decoder.net[2], 1), conv(decoder.net[5], 1)),
        bug=bug,
    )


PAIR = ForeignPair(
    name="vae_equinox",
    file=__file__,
    torch_model=lambda seed: randomize(TorchVAE(), seed),
    jax_side=lambda model, bug: Side("equinox", converted(model, bug)),
    inputs=lambda seed: (normal(seed, 3, 1, SIDE, SIDE),),
    bugs={
        "leaky_slope": Bug(("encoder.act2",)),
        "bilinear": Bug(("decoder.net.4",)),
        "no_half": Bug(("posterior",)),
    },
)
