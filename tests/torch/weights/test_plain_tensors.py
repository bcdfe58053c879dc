"""Tensors that no weight can be read from: one line that names them, in every command of both packages."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import t2t_jax
import t2t_torch
from parity.__main__ import main as parity_main
from t2t_common.io import cli
from t2t_jax.checkpoint import load_weights, save_model
from t2t_jax.state import model_arrays
from t2t_torch.weights.plain_tensors import check_plain

SIZES = {"img_size": 16, "in_chans": 1, "num_classes": 3}
NAME = "t2t_vit_micro"

NOT_PLAIN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "float8": (lambda x: x.to(torch.float8_e4m3fn), "is float8_e4m3fn: save its .float()"),
    "sparse": (lambda x: x.to_sparse(), "is sparse coo, not dense"),
    "compressed": (lambda x: x.to_sparse_csr(), "is sparse csr, not dense"),
    "quantised": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "is quantised"),
    "meta": (lambda x: x.to("meta"), "is on the device meta"),
    "nested": (lambda x: torch.nested.nested_tensor([x[0], x[1, :5]]), "is nested"),
    "negative": (lambda x: torch.complex(x, x).conj().imag, "has the negative bit"),
    "conjugate": (lambda x: torch.complex(x, x).conj(), "has the conjugate bit"),
}
OTHER_TYPES = {
    "complex": lambda x: torch.complex(x, x),
    "whole": lambda x: x.to(torch.int8),
    "unsigned": lambda x: x.abs().to(torch.uint16),
    "truth": lambda x: x > 0,
}


def state(change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    weights = t2t_torch.create_model(NAME, **SIZES).state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of nested and compressed tensors
        return weights | {"blocks.1.mlp.fc1.weight": change(weights["blocks.1.mlp.fc1.weight"])}


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(ValueError, match="w") as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_a_tensor_that_is_no_plain_one_is_named(tmp_path: Path, kind: str):
    change, says = NOT_PLAIN[kind]
    weights = state(change)
    torch.save({"state_dict": weights}, tmp_path / "w.pth")
    torch_model, jax_model = t2t_torch.create_model(NAME, **SIZES), t2t_jax.create_model(NAME, **SIZES)
    for action in (
        lambda: t2t_torch.load_checkpoint(torch_model, tmp_path / "w.pth"),
        lambda: load_weights(jax_model, tmp_path / "w.pth"),
    ):
        assert f"w.pth: blocks.1.mlp.fc1.weight {says}" in refusal(action)
    message = refusal(lambda: t2t_torch.save_checkpoint(weights, tmp_path / "v.pth"))
    assert f"cannot write {tmp_path / 'v.pth'}: blocks.1.mlp.fc1.weight {says}" in message
    assert not (tmp_path / "v.pth").exists()


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_numbers_that_no_weight_is_made_of_are_named(tmp_path: Path, kind: str):
    """PyTorch drops the imaginary part with a warning; numpy too."""
    torch.save({"state_dict": state(OTHER_TYPES[kind])}, tmp_path / "w.pth")
    torch_model, jax_model = t2t_torch.create_model(NAME, **SIZES), t2t_jax.create_model(NAME, **SIZES)
    before = torch_model.state_dict()["head.weight"].clone()
    assert "blocks.1.mlp.fc1.weight is" in refusal(lambda: t2t_torch.load_checkpoint(torch_model, tmp_path / "w.pth"))
    assert "blocks.1.mlp.fc1.kernel is" in refusal(lambda: load_weights(jax_model, tmp_path / "w.pth"))
    assert torch.equal(torch_model.state_dict()["head.weight"], before)


def test_complex_tables_and_first_layers_are_refused_before_they_are_fitted(tmp_path: Path):
    own = t2t_torch.create_model(NAME, **SIZES).state_dict()
    for name in ("pos_embed", "tokens_to_token.attention1.norm1.weight"):
        torch.save(own | {name: torch.complex(own[name], own[name])}, tmp_path / "w.pth")
        larger = {"img_size": 32, "in_chans": 3, "num_classes": 3}
        torch_model, jax_model = t2t_torch.create_model(NAME, **larger), t2t_jax.create_model(NAME, **larger)
        for action in (
            lambda model=torch_model: t2t_torch.load_checkpoint(model, tmp_path / "w.pth"),
            lambda model=jax_model: load_weights(model, tmp_path / "w.pth"),
        ):
            assert "is complex64: weights are float64" in refusal(action)


def test_complex_weights_of_a_folder_are_refused(tmp_path: Path):
    model = t2t_jax.create_model(NAME, **SIZES)
    arrays = model_arrays(model)
    save_model(tmp_path / "w", arrays | {"head.bias": arrays["head.bias"] + 1j}, {"model": NAME, **SIZES})
    assert "head.bias is complex64" in refusal(lambda: load_weights(model, tmp_path / "w"))
    assert cli.run(parity_main, ["convert", str(tmp_path / "w"), str(tmp_path / "w.pth")]) == cli.MISUSED
    assert not (tmp_path / "w.pth").exists()


def test_a_jagged_tensor_in_a_process_that_knows_none(tmp_path: Path):
    """PyTorch reads them only where torch.nested was imported."""
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    torch.save({"state_dict": {"head.weight": nested}}, tmp_path / "w.pth")
    code = "import sys; from t2t_torch import read_state_dict; read_state_dict(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "w.pth"], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("w.pth holds nested tensors: save their .to_padded_tensor(0)")


def test_the_first_is_explained_and_the_others_named():
    plain = torch.ones(2, 2)
    check_plain({"a": plain, "b": plain.bfloat16(), "c": plain.int()})
    with pytest.raises(ValueError, match=r"^b is sparse coo, not dense: save its \.to_dense\(\) \(and c, d too\)$"):
        check_plain({"a": plain, "b": plain.to_sparse(), "c": plain.to("meta"), "d": plain.to_sparse()})
