"""The compile command as far as it goes without libtpu; tests/tpu has the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from t2t_common.io import cli
from t2t_jax.aot.topology import num_chips, topology_name
from t2t_jax.compile import Options, Report, compile_step, main, matrix_products

SMALL = {"model": "t2t_vit_micro", "topology": "v5e-4", "img_size": 32, "batch": 64, "export_only": True}


def test_topologies_by_both_of_their_names():
    assert topology_name("v5e:4x4") == topology_name("v5e-16") == topology_name("v5litepod-16") == "v5e:4x4"
    assert num_chips("v5p-8") == 4
    assert num_chips("v5e:8x8") == 64
    for name in ("v5e", "v5e-17", "tpu:2x2", "v5e:4"):
        with pytest.raises(ValueError, match="write it as v5e:4x4"):
            topology_name(name)


def test_products_are_counted_with_their_dtypes_and_as_often_as_they_run():
    def program(a: jax.Array, b: jax.Array, c: jax.Array) -> Any:
        low = jnp.einsum("nij,jk->nik", a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))
        highest = jnp.einsum("nij,nij->n", a, a, precision="highest")
        mixed = jax.lax.dot(c.T, b.astype(jnp.bfloat16), preferred_element_type=jnp.float32)

        def body(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, None]:
            return jax.checkpoint(lambda x: x @ weight)(x), None

        return low, highest, mixed, jax.lax.scan(body, c, jnp.ones((3, 4, 4)))

    sizes = (4, 5, 6), (6, 7), (6, 4)
    products = matrix_products(jax.make_jaxpr(program)(*map(jnp.ones, sizes)).jaxpr)
    assert products.dtypes == {
        "bf16 x bf16 -> bf16": 1,
        "f32 x f32 -> f32 (highest)": 1,
        "f32 x bf16 -> f32": 1,
        "f32 x f32 -> f32": 3,
    }
    assert products.float32 == 4
    assert products.flops == 2 * (4 * 5 * 7 * 6 + 4 * 30 + 4 * 7 * 6 + 3 * 6 * 4 * 4)


def test_products_of_kernels_and_of_every_device_are_counted():
    def kernel(a_ref: Any, b_ref: Any, c_ref: Any) -> None:
        c_ref[...] = a_ref[...] @ b_ref[...]

    def part(a: jax.Array, b: jax.Array) -> jax.Array:
        return pl.pallas_call(
            kernel,
            grid=(3, 2),
            in_specs=[pl.BlockSpec((8, 16), lambda i, j: (i, 0)), pl.BlockSpec((16, 4), lambda i, j: (0, j))],
            out_specs=pl.BlockSpec((8, 4), lambda i, j: (i, j)),
            out_shape=jax.ShapeDtypeStruct((24, 8), a.dtype),
        )(a, b)

    mesh = AbstractMesh((5,), ("data",), (AxisType.Auto,))
    program = jax.shard_map(part, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), check_vma=False)
    products = matrix_products(jax.make_jaxpr(program)(jnp.ones((120, 16)), jnp.ones((16, 8))).jaxpr)
    assert products.dtypes == {"f32 x f32 -> f32": 5 * 3 * 2}
    assert products.flops == 2 * 120 * 16 * 8


def test_lowering_alone_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    args = ["--model", "t2t_vit_micro", "--topology", "v5e-4", "--img-size", "32", "--batch", "64", "--export-only"]
    files = ["--json", str(tmp_path / "r.json"), "--hlo", str(tmp_path / "r.mlir")]
    assert cli.run(main, [*args, "--mesh", "data=2,fsdp=2", *files]) == 0
    assert "lowering only: neither compiled nor shown to fit" in capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["lowering_only"], report["fits"], report["memory"]) == (True, None, None)
    assert report["float32_products"] == 0
    assert report["product_flops"] == pytest.approx(report["analytic_flops"], rel=0.05)
    assert "stablehlo" in (tmp_path / "r.mlir").read_text()


def test_a_step_in_parts_or_with_a_scan_counts_whatever_runs():
    whole, _ = compile_step(Options(**SMALL))
    parts, _ = compile_step(Options(**SMALL, grad_accum_steps=2))
    scanned, _ = compile_step(Options(**SMALL, scan_blocks=True))
    assert parts.product_flops == scanned.product_flops == whole.product_flops
    assert scanned.products == whole.products


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topology", "v5e-4"], "--model"),
        (["--model", "t2t_vit_micr", "--topology", "v5e-4"], "did you mean t2t_vit_micro"),
        (["--model", "t2t_vit_micro", "--topology", "v5e"], "write it as v5e:4x4"),
        (["--model", "t2t_vit_micro", "--topology", "v5e-4"], 'libtpu is missing: pip install -e ".[tpu]"'),
        (["--model", "t2t_vit_micro", "--topology", "v5e-4", "--export-only", "--batch", "30"], "multiple of 4"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("t2t_jax.aot.topology.has_libtpu", lambda: False)
    assert cli.run(main, options) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1


def test_no_room_and_a_travelling_batch_do_not_hold():
    memory = dict.fromkeys(("args", "out", "alias", "temp", "code"), 1) | {"total": 10}
    report = Report(
        *("t2t_vit_14", "v5e:4x4", {"data": 16, "fsdp": 1}, 1024, 224, "bfloat16", False, {}, 0, 98, 100),
        memory=memory,
        hbm=16,
        flops=120.0,
        bytes_accessed=128e6,
        collectives={"all-reduce": (2, 10)},
        carry_batch=[],
        compile_seconds=1.0,
    )
    assert report.holds
    assert "0.9800 of the analytic 100" in str(report)
    assert "2.0 MB an image" in str(report)  # of 64 images a device
    report.carry_batch = ["all-gather"]
    assert not report.holds
    report.carry_batch, report.hbm = [], 9
    assert not report.holds
    assert "DOES NOT FIT" in str(report)
