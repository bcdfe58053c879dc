"""Linen models: names of their variables, collections, scanned and rematerialised layers, and wrong arguments."""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

import parity
from parity import LeafRule, Rules
from tests.support.parity.pairs import images

KEY = jax.random.key(0)


class Block(nn.Module):
    width: int = 6

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        y = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")(x)
        y = nn.Dropout(0.5, deterministic=not train)(y)
        return x + nn.Dense(self.width, name="fc")(jnp.tanh(y))


class Net(nn.Module):
    """Convolution and batch norm in `setup`, blocks in a compact module."""

    remat: bool = False

    def setup(self) -> None:
        self.conv = nn.Conv(6, (3,), padding=1)
        self.bn = nn.BatchNorm(epsilon=1e-5)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        self.block = block()
        self.head = nn.Dense(3)

    def __call__(self, x: Any, train: bool) -> Any:
        x = self.bn(self.conv(x), use_running_average=not train)
        return self.head(self.block(x, train).mean(1))


class TorchBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = torch.nn.LayerNorm(6), torch.nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc(torch.tanh(self.norm(x)))


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = torch.nn.Conv1d(4, 6, 3, padding=1), torch.nn.BatchNorm1d(6)
        self.block, self.head = TorchBlock(), torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, N, C)
        x = self.bn(self.conv(x.mT)).mT
        return self.head(self.block(x).mean(1))


X = images(2, 5, 4).astype(np.float32)


def random(model: torch.nn.Module) -> torch.nn.Module:
    parity.randomize(model)
    return model


@pytest.mark.parametrize("remat", [False, True])
def test_a_model_with_statistics_and_dropout(remat: bool):
    module = Net(remat)
    variables = module.init(KEY, X, train=False)
    adapter, torch_model = parity.linen(module, variables, train=False), random(TorchNet())
    before = jax.tree.map(np.asarray, variables)
    ledger = parity.torch_to_jax(torch_model, adapter)
    assert {"block.norm.scale", "bn.mean", "bn.var", "bn.scale"} <= {entry.jax for entry in ledger}
    assert jax.tree.all(jax.tree.map(np.array_equal, before, variables))
    assert jax.tree.structure(adapter.variables) == jax.tree.structure(variables)
    np.testing.assert_array_equal(adapter.variables["batch_stats"]["bn"]["mean"], torch_model.bn.running_mean)
    report = parity.assert_parity(torch_model, adapter, X)
    assert report.settings["jax_model"] == "linen Net"
    program = adapter.as_nnx()
    kinds = {name: type(getattr(program, name)) for name in program.names}
    assert kinds["bn.mean"] is nnx.BatchStat
    assert kinds["bn.scale"] is nnx.Param


def test_float32_in_the_module_is_its_own_dtype_and_no_leak():
    """A dtype that the module holds is set to that of the run, as for NNX."""
    torch_model = random(torch.nn.Linear(4, 3))
    module = nn.Dense(3, dtype=jnp.float32)
    adapter = parity.linen(module, module.init(KEY, X[0]))
    parity.torch_to_jax(torch_model, adapter)
    assert parity.check(torch_model, adapter, X[0]).passed


def test_stacked_layers_of_a_scan():
    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            scan = nn.scan(
                lambda block, x, _: (block(x), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            return scan(Block(name="blocks"), x, None)[0]

    class Stack(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList(TorchBlock() for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    x = images(2, 5, 6)
    module, torch_model, rules = Scanned(), random(Stack()), Rules(stacked={"blocks": "blocks"})
    adapter = parity.linen(module, module.init(KEY, x))
    ledger = parity.torch_to_jax(torch_model, adapter, rules=rules)
    assert [e.jax_shape for e in ledger if e.torch == "blocks.1.fc.weight"] == [(3, 6, 6)]
    parity.assert_parity(torch_model, adapter, x, rules=rules)
    back = Stack()
    parity.jax_to_torch(adapter, back, rules=rules)
    for name, tensor in torch_model.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name])


def test_frozen_dicts_and_partitioned_arrays():
    class Sharded(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            init = nn.with_partitioning(nn.initializers.ones, ("a", "b"))
            return nn.Dense(3, kernel_init=init, name="fc")(x)

    module = Sharded()
    variables = flax.core.freeze(module.init(KEY, X[0]))
    adapter = parity.linen(module, variables)
    torch_model = torch.nn.Module()
    torch_model.fc = torch.nn.Linear(4, 3)
    parity.torch_to_jax(torch_model, adapter)
    assert isinstance(adapter.variables, flax.core.FrozenDict)
    kernel = adapter.variables["params"]["fc"]["kernel"]
    assert isinstance(kernel, nn.Partitioned)
    np.testing.assert_array_equal(kernel.value, torch_model.fc.weight.detach().T)


def test_names_in_two_collections():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return (
                x * self.param("scale", nn.initializers.ones, (4,))
                + self.variable("buffers", "scale", jnp.ones, 4).value
            )

    adapter = parity.linen(Twice(), Twice().init(KEY, X[0, 0]))
    assert set(adapter.as_nnx().names) == {"scale", "buffers.scale"}


def test_abstract_variables_are_filled():
    module = Net()
    adapter = parity.linen(module, jax.eval_shape(lambda: module.init(KEY, X, train=False)), train=False)
    torch_model = random(TorchNet())
    parity.torch_to_jax(torch_model, adapter)
    assert parity.check(torch_model, adapter, X, level="forward").passed


def test_inside_nnx():
    """`nnx.bridge.ToNNX` is an NNX module, as before."""
    wrapped = nnx.bridge.ToNNX(nn.Dense(3), rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(wrapped, X[0])
    rules = Rules(leaves={nnx.bridge.ToNNX: (LeafRule("weight", "kernel", (1, 0)),)})
    torch_model = random(torch.nn.Linear(4, 3))
    parity.torch_to_jax(torch_model, wrapped, rules=rules)
    assert parity.check(torch_model, wrapped, X[0], rules=rules, level="forward").passed


# ---- wrong arguments ----


@pytest.mark.parametrize(
    ("module", "variables", "message"),
    [
        (Net, {"params": {}}, "not the class Net as the module"),
        (torch.nn.Linear(4, 3), {"params": {}}, "not a Linear as the module"),
        (Net(), {"conv": {}, "head": {}}, r'hold conv, head, and not params: .*\{"params": params\}'),
        (Net(), {}, "hold nothing"),
        (Net(), [1], "a dict, not a list"),
    ],
)
def test_what_is_no_module_with_its_variables(module: Any, variables: Any, message: str):
    with pytest.raises(ValueError, match=message):
        parity.linen(module, variables)


def without(collection: str) -> dict[str, Any]:
    variables = dict(Net().init(KEY, X, train=False))
    del variables[collection]
    return variables


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda v: v, {"train": True}, r"Cannot update variable .*|needs PRNG .*pass what switches that off"),
        (lambda v: v, {}, "missing 1 required positional argument: 'train'"),
        (lambda v: without("batch_stats"), {"train": False}, "Pass all the variables that module.init returned"),
    ],
)
def test_what_cannot_run(change: Any, options: dict[str, Any], message: str):
    torch_model, module = random(TorchNet()), Net()
    adapter = parity.linen(module, change(module.init(KEY, X, train=False)), **options)
    rules = Rules(torch_only=["bn.running_*"])
    with pytest.raises(ValueError, match=message) as raised:
        parity.check(torch_model, adapter, X, rules=rules if "batch_stats" not in adapter.variables else None)
    assert "\n" not in str(raised.value)


def test_a_model_in_training_mode_says_what_it_needs():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dropout(0.5, deterministic=False)(nn.Dense(3, name="fc")(x))

    torch_model = torch.nn.Sequential()
    torch_model.add_module("fc", torch.nn.Linear(4, 3))
    variables = Dropped().init({"params": KEY, "dropout": KEY}, X[0])
    message = r'needs PRNG for "dropout".* draws random numbers: pass what switches that off, as parity\.linen'
    with pytest.raises(ValueError, match=message):
        parity.check(torch_model, parity.linen(Dropped(), variables), X[0])
