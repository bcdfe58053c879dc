"""Training mode of adapters: batch statistics, running statistics, dropout and gradients, in every library."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

import parity
from parity.carry.program import Adapter
from parity.report.report import Report

KEY = jax.random.key(0)
X = np.random.RandomState(0).standard_normal((16, 6))
RATE = 0.2


class BiasedNorm(torch.nn.BatchNorm1d):
    """Batch normalization whose running variance is the biased one, as in flax, Equinox and Haiku."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        old, new, rate = self.running_var, x.detach().var(0, correction=0), self.momentum
        assert old is not None
        assert rate is not None
        old = old.clone()
        y = super().forward(x)
        if self.training:
            self.running_var = (1 - rate) * old + rate * new
        return y


class TorchNet(torch.nn.Module):
    """(B, 6) -> (B, 4)."""

    def __init__(self, norm: Callable[[int], torch.nn.Module] = BiasedNorm) -> None:
        super().__init__()
        self.fc, self.bn = torch.nn.Linear(6, 8), norm(8)
        self.drop, self.head = torch.nn.Dropout(RATE), torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(torch.relu(self.bn(self.fc(x)))))


class LinenNet(nn.Module):
    rate: float = RATE
    momentum: float = 0.9
    stream: str = "dropout"

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.Dense(8, name="fc")(x)
        norm = nn.BatchNorm(not train, momentum=self.momentum, epsilon=1e-5, use_fast_variance=False, name="bn")
        x = nn.Dropout(self.rate, deterministic=not train, rng_collection=self.stream)(nn.relu(norm(x)))
        return nn.Dense(4, name="head")(x)


def linen(**changes: Any) -> Adapter:
    module = LinenNet(**changes)
    variables = module.init(KEY, X, train=False)
    return parity.linen(module, variables, train=False, train_kwargs={"train": True})


class EquinoxNet(eqx.Module):
    fc: eqx.nn.Linear
    bn: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, rate: float = RATE, momentum: float = 0.9) -> None:
        self.fc, self.head = eqx.nn.Linear(6, 8, key=KEY), eqx.nn.Linear(8, 4, key=KEY)
        self.bn = eqx.nn.BatchNorm(8, "examples", mode="batch", momentum=momentum, eps=1e-5)
        self.drop = eqx.nn.Dropout(rate)

    def __call__(self, x: jax.Array, state: eqx.nn.State, *, key: jax.Array | None = None) -> Any:
        x, state = self.bn(self.fc(x), state)
        return self.head(self.drop(jax.nn.relu(x), key=key)), state


def equinox(**changes: Any) -> Adapter:
    model, state = eqx.nn.make_with_state(EquinoxNet)(**changes)
    return parity.equinox(model, state=state)


def haiku(rate: float = RATE, momentum: float = 0.9) -> Adapter:
    def net(x: jax.Array, is_training: bool) -> jax.Array:
        x = hk.BatchNorm(True, True, momentum, name="bn")(hk.Linear(8, name="fc")(x), is_training)
        x = jax.nn.relu(x)
        x = hk.dropout(hk.next_rng_key(), rate, x) if is_training else x
        return hk.Linear(4, name="head")(x)

    transformed = hk.transform_with_state(net)
    init = transformed.init(KEY, X, is_training=True)
    return parity.haiku(transformed, *init, is_training=False, train_kwargs={"is_training": True})


PARAMS: Mapping[str, Any] = {
    "fc": {"w": np.zeros((6, 8), np.float32), "b": np.zeros(8, np.float32)},
    "bn": {name: np.zeros(8, np.float32) for name in ("scale", "offset", "mean", "var")},
    "head": {"w": np.zeros((8, 4), np.float32), "b": np.zeros(4, np.float32)},
}


def apply(params: Any, x: Any, rate: float = 0.0, momentum: float = 1.0, key: Any = None) -> Any:
    bn, h = params["bn"], x @ params["fc"]["w"] + params["fc"]["b"][None]
    mean, var = (bn["mean"], bn["var"]) if key is None else (h.mean(0), h.var(0))
    h = jax.nn.relu((h - mean[None]) * (bn["scale"] / jnp.sqrt(var + 1e-5))[None] + bn["offset"][None])
    if key is not None and rate:
        h = jnp.where(jax.random.bernoulli(key, 1 - rate, h.shape), h / (1 - rate), 0)
    y = h @ params["head"]["w"] + params["head"]["b"][None]
    new = {"mean": momentum * bn["mean"] + (1 - momentum) * mean, "var": momentum * bn["var"] + (1 - momentum) * var}
    return (y, {"bn": new}) if key is not None else y


def function(rate: float = RATE, momentum: float = 0.9) -> Adapter:
    train = functools.partial(apply, rate=rate, momentum=momentum)
    return parity.function(apply, PARAMS, train=train, stateful=True)


ADAPTERS: Mapping[str, Callable[..., Any]] = {
    "linen": linen,
    "equinox": equinox,
    "haiku": haiku,
    "function": function,
}


def trained(adapter: Any, norm: Callable[[int], torch.nn.Module] = BiasedNorm) -> Report:
    torch_model = TorchNet(norm)
    parity.randomize(torch_model)
    parity.torch_to_jax(torch_model, adapter)
    if isinstance(getattr(adapter, "state", None), Mapping):  # Haiku's averages, after many steps
        for average in (x for name, x in adapter.state.items() if name.endswith("_ema")):
            average |= {"counter": jnp.asarray(1000), "hidden": average["average"]}
    return parity.check(torch_model, adapter, X, level="train")


def failed(report: Report) -> set[tuple[str, str]]:
    return {(row.name, row.kind) for row in report.failures if row.mode == "train"}


@pytest.mark.parametrize("library", ADAPTERS)
def test_a_right_port(library: str):
    report = trained(ADAPTERS[library]())
    assert report.passed, report
    compared = {(row.name, row.kind) for row in report.rows if row.mode == "train"}
    assert {("bn.running_mean", "buffer"), ("bn.running_var", "buffer"), ("drop", "dropout rate")} <= compared
    assert {("fc.weight", "gradient"), ("head.bias", "gradient"), ("input 0", "gradient")} <= compared


@pytest.mark.parametrize("library", ADAPTERS)
def test_another_rate_and_a_forgotten_dropout(library: str):
    for rate, text in ((0.3, "PyTorch draws 1 with probability 0.8, JAX with 0.7"), (0.0, "JAX draws nothing that")):
        report = trained(ADAPTERS[library](rate=rate))
        assert ("drop", "dropout rate") in failed(report)
        assert text in report.causes[0].description


@pytest.mark.parametrize("library", ADAPTERS)
def test_another_momentum(library: str):
    report = trained(ADAPTERS[library](momentum=0.99))
    assert failed(report) == {("bn.running_mean", "buffer"), ("bn.running_var", "buffer")}
    assert all("weight of the new value 0.1 -> 0.01" in cause.description for cause in report.causes)


def test_the_biased_variance_of_the_libraries_is_a_difference():
    report = trained(linen(), torch.nn.BatchNorm1d)
    assert failed(report) == {("bn.running_var", "buffer")}
    assert [cause.switch for cause in report.causes] == ["running variance"]


def test_statistics_that_are_not_updated():
    report = trained(parity.function(apply, PARAMS, train=lambda p, x, key: apply(p, x, RATE, 0.9, key)[0]))
    assert failed(report) == {("bn.running_mean", "buffer"), ("bn.running_var", "buffer")}


def test_one_mask_for_all_examples_is_another_law():
    class Shared(EquinoxNet):
        def __call__(self, x: jax.Array, state: eqx.nn.State, *, key: jax.Array | None = None) -> Any:
            x, state = self.bn(self.fc(x), state)
            same = None if key is None else jax.random.key(1)
            return self.head(self.drop(jax.nn.relu(x), key=same)), state

    made: Any = eqx.nn.make_with_state(Shared)
    model, state = made()
    assert ("drop", "dropout rate") in failed(trained(parity.equinox(model, state=state)))


def test_the_mode_as_an_attribute_of_a_linen_module():
    class Net(nn.Module):
        train: bool = False

        @nn.compact
        def __call__(self, x: Any) -> Any:
            net: Any = LinenNet(name="net")
            return net(x, train=self.train)

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = TorchNet()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    torch_model = Wrapped()
    parity.randomize(torch_model)
    adapter = parity.linen(Net(), Net().init(KEY, X), train_module=Net(train=True))
    parity.torch_to_jax(torch_model, adapter)
    assert parity.check(torch_model, adapter, X, level="train").passed


def test_initializers_that_linen_traces_for_their_shapes_draw_nothing():
    torch_model = torch.nn.Embedding(11, 6)
    module = nn.Embed(11, 6)
    ids = np.arange(10).reshape(2, 5)
    adapter = parity.linen(module, module.init(KEY, ids), train_kwargs={})
    parity.torch_to_jax(torch_model, adapter)
    assert parity.check(torch_model, adapter, ids, level="train").passed


def test_options_of_an_equinox_call():
    """A flag of the call switches dropout on, as in the library's BERT."""

    class Net(eqx.Module):
        fc: eqx.nn.Linear
        drop: eqx.nn.Dropout

        def __call__(self, x: jax.Array, enable_dropout: bool, key: jax.Array | None = None) -> jax.Array:
            return self.drop(self.fc(x), inference=not enable_dropout, key=key)

    torch_model = torch.nn.Sequential()
    torch_model.add_module("fc", torch.nn.Linear(6, 4))
    torch_model.add_module("drop", torch.nn.Dropout(RATE))
    model = Net(eqx.nn.Linear(6, 4, key=KEY), eqx.nn.Dropout(RATE))
    adapter = parity.equinox(model, enable_dropout=False, train_kwargs={"enable_dropout": True})
    parity.torch_to_jax(torch_model, adapter)
    assert parity.check(torch_model, adapter, X, level="train").passed


WRONG: Any = {"rngs": {"dropout": KEY}, "train": 0.1}
VARIABLES = LinenNet().init(KEY, X, train=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parity.linen(LinenNet(), VARIABLES, train=False), r"train_kwargs=\{\"train\": True\}"),
        (
            lambda: parity.linen(LinenNet(stream="noise"), VARIABLES, train=False, train_kwargs={"train": True}),
            r"rngs=\('dropout', 'drop_path'\)",
        ),
        (
            lambda: parity.linen(LinenNet(), VARIABLES, train=False, train_kwargs={"train": True}, mutable=False),
            r"mutable=\['batch_stats'\]",
        ),
        (
            lambda: parity.linen(LinenNet(), VARIABLES, train=False, train_kwargs={"training": True}),
            "in training mode: TypeError: .* unexpected keyword argument 'training'",
        ),
        (lambda: parity.linen(LinenNet(), VARIABLES, mutable=["cache"]), "mutable names cache, and the variables hold"),
        (
            lambda: parity.linen(LinenNet(), VARIABLES, train_kwargs=WRONG["train"]),
            "train_kwargs has to be a dict, not a float",
        ),
        (lambda: parity.linen(LinenNet(), VARIABLES, rngs=WRONG["rngs"]), "rngs are the names of the random"),
        (lambda: parity.linen(LinenNet(), VARIABLES, train_module=nn.Dense(4)), "train_module is a Dense, not a Linen"),
        (lambda: parity.function(apply, PARAMS), r"parity\.function\(f, params, train=f_in_training\)"),
        (
            lambda: parity.function(apply, PARAMS, train=WRONG["train"]),
            "train is the function in training mode, not a float",
        ),
        (lambda: parity.function(apply, PARAMS, stateful=True), r"parity\.function\(\.\.\., train=\.\.\.\)"),
        (
            lambda: parity.function(apply, PARAMS, train=lambda p, x: apply(p, x), stateful=True),
            r"train has to return a tuple \(output, new params\)",
        ),
        (
            lambda: parity.function(apply, PARAMS, train=lambda p, x: (x, {"bn": {"mean": x}}), stateful=True),
            r"gives bn\.mean the shape \[16, 6\], not \[8\]",
        ),
        (
            lambda: parity.function(apply, PARAMS, train=lambda p, x: x if x.sum() > 0 else -x),
            "train cannot be traced by JAX",
        ),
    ],
)
def test_wrong_arguments_are_one_line(make: Callable[[], Adapter], message: str):
    with pytest.raises(ValueError, match=message) as raised:
        parity.check(TorchNet(), make(), X, level="train")
    assert "\n" not in str(raised.value)
