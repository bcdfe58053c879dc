"""What the doctor says of a machine, and that its traps are ones."""

from __future__ import annotations

import jax
import pytest
import torch

from parity import doctor
from parity.__main__ import main
from t2t_common.io import cli


@pytest.fixture(scope="module")
def traps() -> dict[str, doctor.Trap]:
    return {trap.name.split(":")[0]: trap for trap in doctor.measure_traps()}


@pytest.mark.parametrize(
    ("name", "least", "most", "remedy"),
    [
        ("jax.nn.gelu", 1e-4, 1e-3, "approximate=False"),
        ("nnx.LayerNorm", 1e-2, 1e-1, "use_fast_variance=False"),
        ("nnx.BatchNorm", 0.1, 1, "momentum=0.9"),
        ("optax.adamw", 0.98, 1, "weight_decay=1e-2"),
        ("jax.image.resize bicubic", 0.1, 1, "a = -0.75"),
    ],
)
def test_every_default_parts_the_frameworks(
    traps: dict[str, doctor.Trap], name: str, least: float, most: float, remedy: str
):
    assert least < traps[name].error < most
    assert remedy in traps[name].remedy


def test_the_epsilon_is_that_of_small_numbers():
    """Of variance 1e-4, 1e-5 in place of 1e-6 makes the result smaller by the root of 1.1 to 1.01."""
    with jax.enable_x64(True):
        trap = doctor._layer_norm_epsilon()
    assert trap.error == pytest.approx((1.1 / 1.01) ** 0.5 - 1, rel=0.1)
    assert trap.remedy == "epsilon=1e-5"


def test_it_prints_the_machine_and_every_trap(traps: dict[str, doctor.Trap], capsys: pytest.CaptureFixture[str]):
    assert cli.run(main, ["doctor"]) == cli.OK
    said = " ".join(capsys.readouterr().out.split())
    for text in (torch.__version__, jax.__version__, "jax.nn.gelu", "weight_decay=1e-2", "64-bit types off"):
        assert text in said


def test_notes_are_of_the_switches_as_they_are(monkeypatch: pytest.MonkeyPatch):
    with jax.enable_x64(True):
        assert doctor.warnings() == []
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        reduced, torch_reduced = doctor.warnings()
        assert "jax_default_matmul_precision='highest'" in reduced
        assert "set_float32_matmul_precision('highest')" in torch_reduced
        with jax.default_matmul_precision("highest"):
            assert doctor.warnings() == [torch_reduced]
    (off, *_) = doctor.warnings()
    assert "jax.enable_x64(True)" in off
