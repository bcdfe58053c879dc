from __future__ import annotations

import pytest

from t2t_common.run.peak_flops import peak_tflops, run_peak


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197.0),
        ("TPU v5", 459.0),
        ("TPU v5 something", None),
        ("TPU v4", 275.0),
        ("TPU v4 lite", None),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA L40", None),
        ("cpu", None),
    ],
)
def test_the_longest_name_wins_and_others_are_unknown(kind: str, peak: float | None):
    assert peak_tflops(kind) == peak


def test_the_peak_of_a_run_is_that_of_all_devices():
    assert run_peak("cpu", 2) is None
    assert run_peak("cpu", 3, 0.5) == 1.5e12
    assert run_peak("TPU v4", 4) == 1100e12
