"""Digests of exported models: a zip, and a message of protobuf."""

from __future__ import annotations

import zipfile
from pathlib import Path

import onnx
import pytest

from t2t_common.io.sealed_exports import check_sealed, seal


def test_an_onnx_file_stays_one_and_every_bit_counts(tmp_path: Path):
    path = tmp_path / "m.onnx"
    model = onnx.ModelProto(producer_name="parity", ir_version=10)
    onnx.helper.set_model_props(model, {"model": "t2t"})
    path.write_bytes(model.SerializeToString())
    assert check_sealed(path) == ""
    seal(path)
    assert check_sealed(path) == "sha256"
    found = onnx.ModelProto.FromString(path.read_bytes())
    assert [entry.key for entry in found.metadata_props] == ["model", "sha256"]
    del found.metadata_props[-1]
    assert found == model
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        if len(content) - 76 <= place < len(content) - 64:  # it is no digest any more; the model is as it was
            assert check_sealed(path) == ""
        else:
            with pytest.raises(ValueError, match=r"m\.onnx is not as it was exported \(SHA-256\)"):
                check_sealed(path)


def test_an_archive(tmp_path: Path):
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.jax_export", bytes(range(16)))
    assert check_sealed(path) == "crc32"
    seal(path)
    assert check_sealed(path) == "sha256"
    path.write_bytes(path.read_bytes().replace(bytes(range(16)), bytes(range(15)) + b"\x0e"))
    with pytest.raises(ValueError, match=r"m\.zip is not as it was exported \(model\.jax_export is not as saved"):
        check_sealed(path)
