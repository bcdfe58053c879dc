"""The same run on one device, on eight virtual ones, and in two processes; how arrays are split; what is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from t2t_config import Recipe
from t2t_jax.parallel.mesh import check_batch, join_processes, make_mesh, mesh_shape, param_spec
from t2t_jax.train import prepare
from tests.support.mesh_runs import STEPS
from tests.support.once import made_once

ROOT = Path(__file__).parents[3]
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
MESHES = {"one": "data=1", "data": "data=8", "fsdp": "fsdp=8", "mixed": "data=4,fsdp=2", "scanned": "data=2,fsdp=4"}


def start(order: dict[str, Any]) -> subprocess.Popen[str]:
    env = {**os.environ, "XLA_FLAGS": FAST, "JAX_PLATFORMS": "cpu"}
    args = [sys.executable, "-m", "tests.support.mesh_runs", json.dumps(order)]
    return subprocess.Popen(args, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env)


@pytest.fixture(scope="module")
def eight(idx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `mesh_runs` says of every mesh, with eight devices in one process."""

    def make() -> dict[str, Any]:
        process = start({"devices": 8, "data": str(idx_folder), "meshes": MESHES})
        out, _ = process.communicate()
        assert process.returncode == 0
        return json.loads(out)

    return made_once("eight", make, tmp_path_factory)


@pytest.mark.parametrize("mesh", ["data", "fsdp", "mixed", "scanned"])
def test_eight_devices_train_and_count_as_one(eight: dict[str, Any], mesh: str):
    one, several = eight["one"], eight[mesh]
    assert len(set(one["losses"])) == len(one["losses"]) == STEPS
    np.testing.assert_allclose(several["losses"], one["losses"], rtol=1e-6)
    assert several["accuracy"] == one["accuracy"]
    assert several["confusion"] == one["confusion"]
    assert several["sample"] == pytest.approx(one["sample"], rel=1e-6)
    assert several["compilations"] == one["compilations"] == 1


@pytest.mark.parametrize(("mesh", "fsdp"), [("data", 1), ("fsdp", 8), ("mixed", 2)])
def test_weights_and_moments_are_split_and_stay_split(eight: dict[str, Any], mesh: str, fsdp: int):
    found = eight[mesh]
    assert found["parts"] == found["moments"] == found["later"]
    whole = found["whole"]["blocks.0.mlp.fc1.kernel"]
    assert whole == [64, 128]
    assert found["parts"]["blocks.0.mlp.fc1.kernel"] == [64, 128 // fsdp]
    assert found["parts"]["cls_token"] == found["whole"]["cls_token"]


def test_stacked_weights_are_split_block_by_block(eight: dict[str, Any]):
    found = eight["scanned"]
    assert found["parts"] == found["moments"] == found["later"]
    assert found["whole"]["blocks.mlp.fc1.kernel"] == [2, 64, 128]
    assert found["parts"]["blocks.mlp.fc1.kernel"] == [2, 64, 32]
    assert found["parts"]["blocks.norm1.scale"] == [2, 64]


@pytest.mark.parametrize("mesh", ["data", "fsdp", "mixed", "scanned"])
def test_no_message_carries_images(eight: dict[str, Any], mesh: str):
    assert eight[mesh]["messages"] > 0
    assert eight[mesh]["carrying"] == []
    assert eight["one"]["messages"] == 0


def test_two_processes_train_as_one(eight: dict[str, Any], idx_folder: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    order = {"devices": 1, "data": str(idx_folder), "meshes": {"both": "fsdp=2"}}
    processes = [start({**order, "distributed": f"{address},2,{index}"}) for index in range(2)]
    outs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    # Gloo says on the same stream that it has connected.
    found, one = json.loads(outs[0].splitlines()[-1])["both"], eight["one"]
    np.testing.assert_allclose(found["losses"], one["losses"], rtol=1e-6)
    assert found["accuracy"] == one["accuracy"]
    assert found["confusion"] == one["confusion"]
    assert np.sum(one["confusion"]) == one["accuracy"][0]
    assert found["sample"] == pytest.approx(one["sample"], rel=1e-6)
    assert found["parts"]["blocks.0.mlp.fc1.kernel"] == [64, 64]


def test_the_largest_axis_that_divides_is_split():
    assert param_spec("blocks.0.mlp.fc1.kernel", (384, 1152), 4) == P(None, "fsdp")
    assert param_spec("blocks.0.mlp.fc2.kernel", (1152, 384), 4) == P("fsdp")
    assert param_spec("tokens_to_token.attention1.kqv.kernel", (147, 192), 4) == P(None, "fsdp")
    assert param_spec("head.kernel", (384, 1001), 4) == P("fsdp")  # the larger axis does not divide
    assert param_spec("x.kernel", (7, 9), 4) == P()
    # Of stacked blocks each: never the axis in front, whatever divides.
    assert param_spec("blocks.mlp.fc1.kernel", (16, 384, 1152), 4) == P(None, None, "fsdp")
    assert param_spec("blocks.x.kernel", (16, 7, 9), 4) == param_spec("blocks.norm1.scale", (16, 384), 4) == P()
    for name in ("head.bias", "norm.scale", "cls_token", "dist_token", "pos_embed"):
        assert param_spec(name, (1, 1, 64), 4) == P(), name


def test_meshes_are_read_as_they_are_written():
    assert mesh_shape(None, 8) == (8, 1)
    assert mesh_shape("data=4,fsdp=2", 8) == mesh_shape("fsdp=2, data=4", 8) == (4, 2)
    assert mesh_shape("fsdp=8", 8) == (1, 8)
    for text in ("", "data", "data=0", "data=2,data=2", "model=2", "data=2;fsdp=2"):
        with pytest.raises(ValueError, match="write it as data=4,fsdp=2"):
            mesh_shape(text, 8)
    with pytest.raises(ValueError, match="needs 16 devices, there are 8"):
        mesh_shape("data=4,fsdp=4", 8)


def test_a_batch_that_does_not_divide_is_refused_with_the_remedy():
    class Eight:
        size = 8

    check_batch(64, Eight(), parts=2, group=8)
    with pytest.raises(ValueError, match="batch_size 60 does not divide among 8 devices: choose a multiple of 8"):
        check_batch(60, Eight())
    with pytest.raises(ValueError, match="in 3 micro-batches: choose a multiple of 24"):
        check_batch(64, Eight(), parts=3)
    with pytest.raises(ValueError, match=r"mixup_group 64 does not divide the 8 images.*choose --mixup-group 8"):
        check_batch(64, Eight(), group=64)
    with pytest.raises(ValueError, match="mixup_group 8 does not divide the 4 images"):
        check_batch(64, Eight(), parts=2, group=8, group_in_parts=True)


def test_a_run_without_devices_is_refused(recipe: Recipe):
    with pytest.raises(ValueError, match="needs 2 devices, there are 1"):
        prepare(recipe, mesh="data=2")
    for text in ("localhost", "localhost:1,2", "localhost:1,2,2"):
        with pytest.raises(ValueError, match="HOST:PORT,COUNT,INDEX"):
            join_processes(text)


def test_alone_nobody_is_joined(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: pytest.fail("joined"))
    join_processes(None)
    join_processes("off")
    assert make_mesh().size == 1
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: joined.append(args))
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "t1v-0,t1v-1")
    join_processes(None)
    join_processes("host:1234,4,3")
    assert joined == [(), ("host:1234", 4, 3)]
