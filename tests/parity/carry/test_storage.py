"""Writing into PyTorch's memory: exactly where all agree, by name where they do not, and never a part of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity import jax_to_torch, torch_to_jax
from parity.carry.arrays import to_numpy
from parity.carry.storage import write

Tensors = dict[str, torch.Tensor]


def holding(tensors: Tensors) -> torch.nn.Module:
    module = torch.nn.Module()
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.nn.Parameter):
            module.register_parameter(name, tensor)
        else:
            module.register_buffer(name, tensor)
    return module


def like(tensors: Tensors) -> nnx.Module:
    model = nnx.Module()
    for name, tensor in tensors.items():
        setattr(model, name, nnx.Variable(jnp.zeros(tuple(tensor.shape))))
    return model


def slices() -> Tensors:
    whole = torch.randn(6, 2)
    return {"a": whole[1:], "whole": whole, "b": whole[:, 1], "c": whole.T, "d": whole[::2], "e": whole.view(-1)[3:8]}


def interleaved() -> Tensors:
    whole = torch.randn(4, 6)
    return {"even": whole[:, ::2], "odd": whole[:, 1::2]}


def repeated() -> Tensors:
    return {"w": torch.zeros(2), "rows": torch.arange(4.0).expand(3, -1), "columns": torch.randn(3, 1).expand(3, 4)}


def windows() -> Tensors:
    long = torch.randn(9)
    return {"windows": long.unfold(0, 3, 1), "gaps": torch.randn(12).as_strided((2, 2, 2), (6, 2, 2)), "long": long}


def conjugated() -> Tensors:
    z = torch.randn(4, dtype=torch.complex64)
    views = {"conj": z.conj(), "pairs": torch.view_as_real(z), "imag": z.imag, "minus": z.conj().imag}
    return {"z": z, **views, "alone": torch.randn(2, dtype=torch.complex128).conj()}


def of_numpy() -> Tensors:
    """Two storages over the same memory."""
    array = np.arange(8.0)
    return {"a": torch.from_numpy(array), "b": torch.from_numpy(array[2:5])}


def of_parameters() -> Tensors:
    p = torch.nn.Parameter(torch.randn(4, 3))
    return {"p": p, "row": p.unbind()[1], "part": torch.nn.Parameter(p.detach()[2:]), "flat": p.view(-1)}


def tied_twice() -> Tensors:
    p = torch.nn.Parameter(torch.randn(3))
    return {"a": p, "b": p, "c": torch.nn.Parameter(p.detach())}


def empty() -> Tensors:
    return {"none": torch.zeros(0, 3), "w": torch.randn(2), "also": torch.nn.Parameter(torch.zeros(2, 0))}


KINDS = [slices, interleaved, repeated, windows, conjugated, of_numpy, of_parameters, tied_twice, empty]


@pytest.mark.parametrize("make", KINDS)
def test_what_shares_memory_comes_back(x64: None, make: Callable[[], Tensors]):
    tensors = make()
    module, model = holding(tensors), like(tensors)
    torch_to_jax(module, model)
    before = {name: x.detach().clone() for name, x in tensors.items()}
    places = {name: x.data_ptr() for name, x in tensors.items()}
    with torch.no_grad():
        for x in tensors.values():
            x.as_strided((1,), (1,)).zero_() if x.numel() else None
    jax_to_torch(model, module)
    for name, x in module.state_dict().items():
        assert torch.equal(x, before[name]), name
        assert (x.data_ptr(), x.dtype) == (places[name], before[name].dtype)


@pytest.mark.parametrize("make", [x for x in KINDS if x not in (interleaved, empty)])
def test_what_differs_where_memory_is_shared_is_refused_and_nothing_is_written(x64: None, make: Callable[[], Tensors]):
    tensors = {"first": torch.ones(3), **make()}
    module, model = holding(tensors), like(tensors)
    torch_to_jax(module, model)
    before = {name: to_numpy(x).copy() for name, x in tensors.items()}
    for i, (name, x) in enumerate(tensors.items()):
        draw = np.random.RandomState(i).standard_normal(tuple(x.shape))
        getattr(model, name).set_value(jnp.asarray(draw.astype(to_numpy(x).dtype)))
    with pytest.raises(ValueError, match=r"share memory|repeats numbers|are one tensor"):
        jax_to_torch(model, module)
    for name, x in tensors.items():
        np.testing.assert_array_equal(to_numpy(x), before[name])


def test_the_numbers_between_those_of_a_view_stay():
    whole = torch.arange(6.0)
    write({"view": (view := whole.as_strided((2, 2), (4, 0)))}, {"view": np.array([[9.0, 9.0], [8.0, 8.0]], "f4")})
    assert whole.tolist() == [9, 1, 2, 3, 8, 5]
    assert view.stride() == (4, 0)


def test_memory_that_is_shared_keeps_its_dtype_or_is_refused():
    whole = torch.randn(4, dtype=torch.float64)
    tensors = {"whole": whole, "part": whole[1:]}
    arrays = {"whole": np.arange(4, dtype=np.float32), "part": np.arange(1, 4, dtype=np.float32)}
    before = whole.clone()
    with pytest.raises(
        ValueError, match=r"whole and part share memory in PyTorch, as float64, and would become float32"
    ):
        write(tensors, arrays)
    assert torch.equal(whole, before)
    write(tensors, arrays, cast=True)
    assert (whole.tolist(), whole.dtype) == ([0, 1, 2, 3], torch.float64)


def test_tied_tensors_change_their_dtype_together():
    """Another tensor on the same memory, also one that is not written to."""
    p = torch.nn.Parameter(torch.randn(3, dtype=torch.float64))
    tensors = {"a": p, "b": torch.nn.Parameter(p.detach()), "c": p.detach()}
    write(tensors, {"a": np.ones(3, "f4"), "b": np.ones(3, "f4")})
    assert {(x.data_ptr(), x.dtype) for x in tensors.values()} == {(p.data_ptr(), torch.float32)}
    for arrays in ({"a": np.ones(3), "b": np.zeros(3)}, {"a": np.ones(3), "b": np.ones(3, "f2")}):
        with pytest.raises(ValueError, match=r"a and b.* one tensor in PyTorch and differ in JAX"):
            write(tensors, arrays)


def quantised() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


UNFIT: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "sparse": (lambda: torch.eye(3).to_sparse(), r"a is sparse coo, not dense: call \.to_dense"),
    "rows": (lambda: torch.eye(3).to_sparse_csr(), r"a is sparse csr, not dense"),
    "quantised": (quantised, r"a is quantised: call \.dequantize"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(1)]), "a is nested"),
    "meta": (lambda: torch.zeros(3, device="meta"), "a is on the device meta, without memory"),
    "half complex": (lambda: torch.zeros(3, dtype=torch.complex32), "a: numpy has no complex32"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support|The PyTorch API of nested|ComplexHalf|.*quantize")
@pytest.mark.parametrize("kind", UNFIT)
def test_tensors_that_cannot_be_written_to_are_named_first(kind: str):
    make, message = UNFIT[kind]
    first = torch.zeros(2)
    with pytest.raises(ValueError, match=message):
        write({"first": first, "a": make()}, {"first": np.ones(2, "f4"), "a": np.ones(3, "f4")}, cast=True)
    assert not first.any()


def test_tensors_of_inference_mode():
    with torch.inference_mode():
        layer = torch.nn.Linear(2, 2)
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"weight is an inference tensor: make the model outside"):
        jax_to_torch(model, layer)
    with torch.inference_mode():
        jax_to_torch(model, layer)
        np.testing.assert_array_equal(layer.weight.numpy().T, model.kernel[...])


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_file_that_is_mapped_to_be_read(tmp_path: Path):
    """Writing there would end the process."""
    np.save(tmp_path / "table.npy", np.zeros(3000, "f4"))
    table = torch.from_numpy(np.load(tmp_path / "table.npy", mmap_mode="r"))
    with pytest.raises(ValueError, match="table lies in memory that may only be read"):
        write({"table": table}, {"table": np.ones(3000, "f4")})


def test_a_write_that_fails_takes_the_others_back(monkeypatch: pytest.MonkeyPatch):
    tensors = {name: torch.zeros(2) for name in "abc"} | {"d": torch.zeros(2, dtype=torch.float64)}
    copy_, calls = torch.Tensor.copy_, []

    def failing(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        calls.append(self)
        if len(calls) == 3:
            raise RuntimeError("out of memory\nand more")
        return copy_(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "copy_", failing)
    with pytest.raises(ValueError, match=r"cannot be written \(out of memory\): nothing was changed$"):
        write(tensors, {name: np.ones(2, "f4") for name in tensors})
    assert not any(x.any() for x in tensors.values())
    assert tensors["d"].dtype == torch.float64


def test_jax_takes_all_or_nothing_too():
    class Odd(nnx.Param):
        def set_value(self, value: Any, **options: Any) -> None:
            if kept:
                raise TypeError("read only")
            super().set_value(value * 2, **options)

    kept: list[int] = []
    for text in ("b of JAX does not keep what it is given.*: nothing was changed", "read only: nothing was changed"):
        model = nnx.Module()
        model.a, model.b = nnx.Param(jnp.zeros(2)), Odd(jnp.zeros(2))
        with pytest.raises(ValueError, match=text):
            torch_to_jax({"a": torch.ones(2), "b": torch.ones(2)}, model)
        assert not np.any(model.a[...])
        assert not np.any(model.b[...])
        kept.append(1)


def test_a_state_dict_of_copies_is_refused():
    """What is written to a copy is lost."""
    layer = torch.nn.Linear(2, 2)
    layer.register_state_dict_post_hook(lambda module, state, *_: state.update(weight=state["weight"].clone()))
    with pytest.raises(ValueError, match=r"weight is made anew by state_dict\(\): what is written there is lost"):
        jax_to_torch(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), layer)


def test_an_abstract_model_of_jax_has_no_numbers():
    model = nnx.eval_shape(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    layer = torch.nn.Linear(2, 2)
    before = layer.weight.clone()
    with pytest.raises(ValueError, match=r"bias of JAX holds no numbers \(it is abstract: initialise"):
        jax_to_torch(model, layer)
    gone = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    jax.tree.leaves(gone.kernel.get_value())[0].delete()
    with pytest.raises(ValueError, match="kernel of JAX holds no numbers"):
        jax_to_torch(gone, layer)
    assert torch.equal(layer.weight, before)
