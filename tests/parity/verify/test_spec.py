"""Specifications that nobody can judge by are refused, with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity.verify.verdict import NOT_REACHED
from parity.verify.verify import verify_port
from tests.parity.verify.forged import HONEST, SPEC

BAD = {
    "no reference": ("def inputs(seed):\n    return None\n", r"has no function reference\(\)"),
    "no inputs": ("def reference():\n    return None\n", r"has no function inputs\(seed\)"),
    "an error": ("import torch\n1 / 0\n", "ZeroDivisionError"),
    "no module": ("def reference():\n    return 3\ndef inputs(seed):\n    return 3\n", "torch.nn.Module"),
    "one input for all": (
        SPEC.replace("manual_seed(seed)", "manual_seed(0)").replace("seed % 997 % 41", "1"),
        "draw with",
    ),
    "empty inputs": (SPEC.replace("2 + seed % 997 % 41", "0"), "inputs are empty"),
    "random reference": (
        SPEC.replace("torch.nn.GELU()", "Noise()")
        + "\nclass Noise(torch.nn.Module):\n    def forward(self, x):\n        return x + torch.rand(())\n",
        "two runs of the reference differ",
    ),
    "zero reference": (
        SPEC.replace("torch.nn.GELU()", "Zero()").replace("torch.nn.LayerNorm(7), torch.nn.Linear(7, 3)", "Zero()")
        + "\nclass Zero(torch.nn.Module):\n    def forward(self, x):\n        return x * 0\n",
        "nothing can be compared",
    ),
    "wrong shapes": (SPEC.replace(", 5, generator", ", 6, generator"), "the reference does not run"),
    "gradients that are no bool": (SPEC + "\ngradients = 1e-3\n", "write True or False"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_specifications_are_refused(name: str, tmp_path: Path):
    spec, why = BAD[name]
    (tmp_path / "spec.py").write_text(spec)
    (tmp_path / "port.py").write_text(HONEST)
    found = verify_port(tmp_path / "spec.py", tmp_path / "port.py", trials=1)
    assert found.exit_code == 2
    assert found.spec.status == "cannot be judged"
    assert found.numeric.status == NOT_REACHED
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(found.reason)
    assert "spec.py" in found.next


def test_files_that_are_not_there(tmp_path: Path):
    (tmp_path / "spec.py").write_text(SPEC)
    with pytest.raises(FileNotFoundError, match=r"port\.py is not a file"):
        verify_port(tmp_path / "spec.py", tmp_path / "port.py")
    with pytest.raises(ValueError, match="trials has to be positive"):
        verify_port(tmp_path / "spec.py", tmp_path / "spec.py", trials=0)
