"""Every call of every module is seen, in both frameworks, and can be replaced."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity.recording.capture import Call, InPlaceError, Passed, jax_hooks, resolved, torch_calls, torch_hooks
from parity.recording.transformations import jax_calls
from tests.support.golden import rel_f
from tests.support.parity.pairs import images, micro, resnet, twice

X, GATE = images(3, 6).astype(np.float32), images(3, 6, seed=2).astype(np.float32)
KEYS = [("fc", 0), ("fc", 1), ("norm", 0), ("", 0)]
TORCH_X, JAX_X = (torch.from_numpy(X), torch.from_numpy(GATE)), (jnp.asarray(X), jnp.asarray(GATE))


def test_calls_come_in_the_order_of_their_return_and_are_counted():
    torch_model, jax_model = twice()
    ours, theirs = torch_calls(torch_model, TORCH_X), jax_calls(jax_model, JAX_X)
    assert list(ours) == list(theirs) == KEYS
    for key in KEYS:
        for a, b in zip(ours[key].inputs + ours[key].outputs, theirs[key].inputs + theirs[key].outputs, strict=True):
            assert rel_f(b, a) < 1e-6
    assert torch.equal(ours["fc", 0].inputs[0], TORCH_X[0])
    assert [x.shape for x in ours["", 0].inputs] == [(3, 6), (3, 6)]


def test_both_frameworks_call_the_same_modules():
    torch_model, jax_model = micro()
    x = images(1, 3, 32, 32).astype(np.float32)
    ours = torch_calls(torch_model.eval(), (torch.from_numpy(x),))
    shapes = jax.eval_shape(lambda x: jax_calls(jax_model, (x,)), jnp.asarray(x.transpose(0, 2, 3, 1)))
    assert set(ours) == set(shapes)
    assert len(ours) > 40


def test_only_what_is_asked_for_is_recorded():
    torch_model, jax_model = twice()
    assert list(torch_calls(torch_model, TORCH_X, only={("fc", 1)})) == [("fc", 1)]
    assert list(jax_calls(jax_model, JAX_X, only={("fc", 1)})) == [("fc", 1)]


def test_forced_calls_get_the_references_inputs_and_their_callers_its_outputs():
    torch_model, jax_model = twice()
    zeros, ones = np.zeros((3, 6), np.float32), np.ones((3, 6), np.float32)
    for calls, convert, model, x in (
        (torch_calls, torch.from_numpy, torch_model, TORCH_X),
        (jax_calls, jnp.asarray, jax_model, JAX_X),
    ):
        free = calls(model, x)
        reference = {("fc", 1): Call([convert(zeros)], [convert(ones)])}
        forced = calls(model, x, reference)
        # Its own arithmetic: the bias alone is left of zeros. What it was given is recorded before it is replaced.
        assert rel_f(forced["fc", 1].outputs[0], np.tile(torch_model.fc.bias.detach(), (3, 1))) < 1e-6
        assert rel_f(forced["fc", 1].inputs[0], free["fc", 1].inputs[0]) < 1e-6
        # The model goes on with the reference's ones.
        assert rel_f(forced["norm", 0].inputs[0], ones * GATE) < 1e-6
        outputs_only = calls(model, x, {("fc", 1): Call(None, [convert(ones)])})
        assert rel_f(outputs_only["fc", 1].outputs[0], free["fc", 1].outputs[0]) < 1e-6
        assert rel_f(outputs_only["norm", 0].inputs[0], ones * GATE) < 1e-6


@pytest.mark.parametrize("forced", [False, True])
def test_one_program_for_both_runs_returns_what_is_handed_on_once(forced: bool):
    _, jax_model = micro()
    x = jnp.asarray(images(1, 32, 32, 3).astype(np.float32))
    free = jax_calls(jax_model, (x,))
    reference = {key: Call([2 * x for x in call.inputs], [3 * x for x in call.outputs]) for key, call in free.items()}
    found = jax_calls(jax_model, (x,), reference, forced=jnp.asarray(forced))
    handed = [x for call in found.values() for x in (*call.inputs, *call.outputs) if isinstance(x, Passed)]
    assert len(handed) > len(found) / 2
    given = resolved(found, reference if forced else None)
    wanted = jax_calls(jax_model, (x,), reference) if forced else free
    for key, call in wanted.items():
        for a, b in zip(given[key].inputs + given[key].outputs, call.inputs + call.outputs, strict=True):
            assert a.dtype == b.dtype
            assert (a == b).all()


def test_work_in_place_is_found_out_and_does_no_harm():
    model, _ = resnet()
    x = torch.from_numpy(images(2, 3, 8, 8).astype(np.float32))
    with pytest.raises(InPlaceError):
        torch_calls(model.eval(), (x,), copies=False)
    calls = torch_calls(model, (x,), copies=True)
    assert (calls["relu", 0].inputs[0] < 0).any()  # as it was before ReLU worked on it
    assert torch.equal(calls["relu", 0].inputs[0], calls["bn1", 0].outputs[0])
    assert not torch.equal(calls["bn2", 0].outputs[0], calls["relu", 1].inputs[0])  # `out += identity` came between


def test_a_subclass_that_calls_its_base_is_one_call():
    class Base(nnx.Module):
        def __call__(self, x: jax.Array) -> jax.Array:
            return x + 1

    class Derived(Base):
        def __call__(self, x: jax.Array) -> jax.Array:
            return 2 * super().__call__(x)

    calls = jax_calls(Derived(), (jnp.ones(2),))
    assert list(calls) == [("", 0)]
    np.testing.assert_array_equal(calls["", 0].outputs[0], [4, 4])


def test_everything_is_put_back():
    torch_model, jax_model = twice()
    classes = {type(module): type(module).__call__ for _, module in nnx.iter_modules(jax_model)}

    def fail(key: object, tensors: object) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), jax_hooks(jax_model, fail, fail):
        jax_model(*JAX_X)
    with pytest.raises(RuntimeError, match="stop"), torch_hooks(torch_model, fail, fail):
        torch_model(*TORCH_X)
    assert all(cls.__call__ is call for cls, call in classes.items())
    torch_model(*TORCH_X)
    jax_model(*JAX_X)


def test_other_models_of_the_same_class_are_left_alone():
    _, jax_model = twice()
    _, other = twice()

    def spoil(key: object, tensors: list[jax.Array]) -> list[jax.Array]:
        return [0 * x for x in tensors]

    expected = other(*JAX_X)
    with jax_hooks(jax_model, lambda key, tensors: None, spoil):
        np.testing.assert_array_equal(other(*JAX_X), expected)
        assert not jax_model(*JAX_X).any()
