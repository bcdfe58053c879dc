"""The training step as a program for TPUs, compiled by libtpu. Without libtpu these fail: make test-tpu."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SMALL = ("--model", "t2t_vit_micro", "--img-size", "32", "--topology", "v5e-4")


def compile_step(*options: str, report: Path) -> tuple[int, str, dict[str, Any]]:
    """Exit code, terminal text and report of the command, which finds its own environment variables."""
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-m", "t2t_jax.compile", *SMALL, *options, "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=Path(__file__).parents[2])
    assert report.exists(), done.stderr
    return done.returncode, done.stdout, json.loads(report.read_text())


def test_a_small_step_compiles_and_fits(tmp_path: Path):
    text = tmp_path / "step.hlo"
    code, said, report = compile_step(
        "--mesh", "data=2,fsdp=2", "--batch", "64", "--hlo", str(text), report=tmp_path / "r.json"
    )
    assert (code, report["fits"], report["device_kind"]) == (0, True, "TPU v5 lite")
    assert text.read_text().count("T(8,128)") > 1000
    memory = report["memory"]
    assert memory["args"] > 0 < memory["temp"]
    assert memory["total"] == memory["args"] + memory["out"] - memory["alias"] + memory["temp"] + memory["code"]
    assert memory["alias"] > 0.9 * memory["out"]  # the state is donated
    assert "fits" in said
    # Weights are gathered, gradients summed; no image, token or logit leaves its device.
    assert {"all-gather", "all-reduce"} <= report["collectives"].keys() | {"reduce-scatter"}
    assert report["carry_batch"] == []
    assert report["float32_products"] == 0
    assert 0.95 < report["product_flops"] / report["analytic_flops"] < 1.05
    assert report["flops"] > report["product_flops"]
    assert report["bytes_accessed"] > memory["args"] + memory["out"]


def test_what_does_not_fit_is_exit_code_1(tmp_path: Path):
    code, said, report = compile_step("--batch", str(2**22), report=tmp_path / "r.json")
    assert (code, report["fits"]) == (1, False)
    assert "DOES NOT FIT" in said
