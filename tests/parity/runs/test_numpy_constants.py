"""NumPy arrays of 64 bits in a JAX model, which runs in float32 and in float64."""

from __future__ import annotations

import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import parity
from parity.runs.numpy_constants import convert_by_precision

IDS = np.random.RandomState(0).randint(0, 11, (2, 5))
PLACES = np.arange(5)[None] + np.zeros((2, 5), int)  # int64
TABLE = np.sin(np.arange(20)[:, None] / (1 + np.arange(6)[None]))  # float64
START = np.array([3, 0])


class Ours(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = torch.nn.Embedding(11, 6), torch.nn.Linear(6, 4)
        self.register_buffer("table", torch.from_numpy(TABLE), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        table: Any = self.table
        places = table[torch.from_numpy(PLACES)] + table[3:8]
        return self.fc(self.embed(ids) * places.to(self.fc.weight.dtype))


def theirs(params: Any, ids: jax.Array) -> jax.Array:
    h = params["embed"]["embedding"][ids]
    table = jnp.asarray(TABLE)  # float32 or float64, as the rest
    places = table[PLACES] + jax.lax.dynamic_slice(TABLE, START, (5, 6))[None]
    return (h * jax.lax.add(places, np.zeros((2, 5, 6)))) @ params["fc"]["w"] + params["fc"]["b"][None, None]


PARAMS = {
    "embed": {"embedding": np.zeros((11, 6), np.float32)},
    "fc": {"w": np.zeros((6, 4), np.float32), "b": np.zeros(4, np.float32)},
}


def test_tables_and_indices_of_numpy():
    torch_model, jax_model = Ours(), parity.function(theirs, PARAMS)
    parity.randomize(torch_model)
    parity.torch_to_jax(torch_model, jax_model)
    report = parity.check(torch_model, jax_model, IDS)
    assert report.passed, report
    assert max(row.error for row in report.rows if row.precision == "float64") < 1e-14


def test_each_precision_gets_its_own_digits():
    convert_by_precision()
    third = np.array([1 / 3])
    for wide in (False, True, False, True):
        with jax.enable_x64(wide):
            kind = np.float64 if wide else np.float32
            found = np.asarray(jax.jit(lambda x: x + third)(jnp.zeros(1, kind)))
        assert found.dtype == kind
        assert found[0] == kind(1 / 3)


def test_an_array_is_held_once():
    convert_by_precision()
    numbers = np.ones((3, 4), np.float32)
    program = jax.make_jaxpr(lambda x: jax.lax.add(x, numbers) * jax.lax.sub(x, numbers))(numbers + 1)
    assert len(program.consts) == 1


def test_several_threads():
    convert_by_precision()
    numbers, found = np.array([1 / 3]), list[np.ndarray]()

    def run(wide: bool) -> None:
        with jax.enable_x64(wide):
            found.extend(np.asarray(jax.jit(lambda x: x * numbers)(jnp.ones(1))) for _ in range(5))

    threads = [threading.Thread(target=run, args=(wide,)) for wide in (False, True) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert {x.dtype.name: float(x[0]) for x in found} == {"float32": float(np.float32(1 / 3)), "float64": 1 / 3}
