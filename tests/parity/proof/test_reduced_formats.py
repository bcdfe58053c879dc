"""Reduced formats: what they cost is measured beside PyTorch, and what strays further is seen."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx

from parity import Report, check
from parity.__main__ import main
from parity.proof import reduced_formats
from t2t_common.io import cli
from tests.support.parity.pairs import images, micro

X = images(2, 3, 32, 32)


def report_of(pair: Any) -> Report:
    return check(*pair, X, level="forward", formats=True)


def test_both_formats_are_judged_by_caps_of_their_own():
    report = report_of(micro())
    half, default = report.formats
    assert report.passed
    assert half.passed
    assert (half.name, half.format) == ("output", "bfloat16")
    assert half.torch_error is not None
    assert 2**-12 < half.torch_error < 2**-4
    assert 2**-12 < half.error <= half.cap == 3 * half.torch_error + 2**-9
    assert default.format.startswith("default products on ")
    assert default.error == 0  # on a CPU nothing is reduced
    assert default.cap == pytest.approx(3 * half.torch_error / 4 + 2**-11)
    assert "bfloat16" in report.render()


def test_they_are_measured_only_when_asked_for():
    assert check(*micro(), X, level="forward").formats == ()


def test_a_model_that_strays_in_bfloat16_alone_is_seen(monkeypatch: pytest.MonkeyPatch):
    """In float32 nothing is wrong with it: only the figure of the format fails."""
    honest = reduced_formats._computing_in

    def careless(model: Any, dtype: Any) -> nnx.Module:
        changed: Any = honest(model, dtype)
        changed.head.kernel[...] = 1.5 * changed.head.kernel[...]
        return changed

    monkeypatch.setattr(reduced_formats, "_computing_in", careless)
    report = report_of(micro())
    half, default = report.formats
    assert not half.passed
    assert half.error > 0.1
    assert default.passed
    assert (report.failures, report.failed_count) == ((), 1)
    assert not report.passed


def test_a_copy_computes_in_another_dtype_and_keeps_its_parameters():
    _, model = micro()
    changed: Any = reduced_formats._computing_in(model, jnp.bfloat16)
    head = changed.head
    assert (head.dtype, head.kernel.dtype) == (jnp.bfloat16, jnp.float32)
    assert head(jnp.ones((1, head.kernel.shape[0]))).dtype == jnp.bfloat16
    original: Any = model
    assert original.head.dtype is None


def test_the_command_shows_them(capsys: pytest.CaptureFixture[str]):
    small = ["--img-size", "32", "--num-classes", "10", "--level", "forward"]
    assert cli.run(main, ["check", "t2t_vit_micro", *small, "--formats"]) == cli.OK
    said = capsys.readouterr().out
    assert "bfloat16" in said
    assert "default products" in said
