"""What a foreign pair is: a PyTorch model, its JAX port in any library, and mistakes that the port can make."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

Axes = tuple[int, ...] | None
Kind = Literal["linen", "equinox", "haiku", "function", "nnx"]


@dataclasses.dataclass(frozen=True)
class Bug:
    """A mistake that the port makes if asked to. Its line ends with the comment `# bug: NAME`.

    Attributes:
        modules: Innermost PyTorch module whose arithmetic the port gets wrong first; several where it is ambiguous.
        training: It shows in training mode only, in the outputs or in the running statistics.
    """

    modules: tuple[str, ...]
    training: bool = False


@dataclasses.dataclass(frozen=True)
class Side:
    """The JAX side: an object of one library and its weights, converted by hand from the PyTorch model.

    Attributes:
        model: Linen module, Equinox or NNX model, Haiku's transformed function, or a function `f(params, *inputs)`.
        weights: Linen's variables, Haiku's or a function's parameters; Equinox and NNX models hold their own.
        state: Haiku's state, for `transform_with_state`.
        batched: An Equinox model takes a whole batch rather than one example.
        kwargs: Options of `apply` for Linen.
        takes: For each positional input the permutation from PyTorch's layout to the port's (None: the same).
        returns: The permutation of its output back to PyTorch's layout, if it has a single output.
        train: For models with BatchNorm: weights and inputs to the output in training mode and the new running
            statistics, by their PyTorch names.
    """

    kind: Kind
    model: Any
    weights: Any = None
    state: Any = None
    batched: bool = False
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    takes: tuple[Axes, ...] = ()
    returns: Axes = None
    train: Callable[..., tuple[jax.Array, dict[str, jax.Array]]] | None = None

    def adapter(self) -> Any:
        """Return the object that `parity.check` takes."""
        import parity

        if self.kind == "linen":
            return parity.linen(self.model, self.weights, **self.kwargs)
        if self.kind == "equinox":
            return parity.equinox(self.model, batched=self.batched)
        if self.kind == "haiku":
            return parity.haiku(self.model, self.weights, state=self.state)
        return self.model if self.kind == "nnx" else parity.function(self.model, self.weights)

    def run(self, inputs: Any) -> dict[str, np.ndarray]:
        """Return every output by name, in PyTorch's layout."""
        return self._named(jax.jit(self._call())(*self._given(inputs), **_keywords(inputs)))

    def derivative(self, direction: Side, inputs: Any) -> dict[str, np.ndarray]:
        """Return how fast every output changes if the weights move along those of another model's port."""

        def call(weights: Any) -> Any:
            return self._call()(weights, *self._given(inputs)[1:], **_keywords(inputs))

        push = jax.jit(lambda weights, tangents: jax.jvp(call, (weights,), (tangents,))[1])
        return self._named(push(self._weights(), direction._weights()))

    def run_train(self, inputs: Any) -> dict[str, np.ndarray]:
        """Return every output and the new running statistics in training mode."""
        assert self.train is not None
        output, statistics = jax.jit(self.train)(*self._given(inputs))
        return self._named(output) | {name: array(x) for name, x in statistics.items()}

    def program(self, inputs: Any, train: bool = False) -> Any:
        """Return the port traced by JAX, in evaluation or in training mode."""
        call = self.train if train else self._call()
        assert call is not None
        return jax.make_jaxpr(call)(*self._given(inputs), **_keywords(inputs))

    def _weights(self) -> Any:
        """Return the weights apart from the code, so that seeds share one program."""
        if self.kind == "nnx":
            return nnx.state(self.model)
        return self.model if self.kind == "equinox" else self.weights

    def _call(self) -> Callable[..., Any]:
        """Return a function of the weights and the inputs."""
        if self.kind == "linen":
            return functools.partial(self.model.apply, **self.kwargs)
        if self.kind == "equinox":
            return lambda model, *args: (model if self.batched else jax.vmap(model))(*args)
        if self.kind == "haiku" and self.state is None:
            return lambda params, *args, **kwargs: self.model.apply(params, None, *args, **kwargs)
        if self.kind == "haiku":
            return lambda params, *args, **kwargs: self.model.apply(params, self.state, None, *args, **kwargs)[0]
        if self.kind == "function":
            return self.model
        graph = nnx.graphdef(self.model)
        return lambda state, *args: nnx.merge(graph, state)(*args)

    def _given(self, inputs: Any) -> list[Any]:
        """Return the weights and the positional inputs in the port's layout."""
        if isinstance(inputs, Mapping):
            return [self._weights()]
        axes = self.takes or (None,) * len(inputs)
        pairs = zip(inputs, axes, strict=True)
        arrays = [jnp.asarray(x if permutation is None else np.transpose(x, permutation)) for x, permutation in pairs]
        return [self._weights(), *arrays]

    def _named(self, output: Any) -> dict[str, np.ndarray]:
        outputs = {name: array(x) for name, x in named(output).items()}
        return {k: x if self.returns is None else np.transpose(x, self.returns) for k, x in outputs.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class ForeignPair:
    """A PyTorch model and its port.

    Attributes:
        file: The file of the pair, `__file__`.
        torch_model: Seed to a model in evaluation mode, all of whose tensors are random.
        jax_side: The port with the weights of a PyTorch model, and with the bug of that name if it is not empty.
        inputs: Seed to a tuple of arrays, or a mapping of them by name, in PyTorch's layout.
    """

    name: str
    file: str
    torch_model: Callable[[int], torch.nn.Module]
    jax_side: Callable[[Any, str], Side]
    inputs: Callable[[int], Any]
    bugs: Mapping[str, Bug]

    def line_of(self, bug: str) -> int:
        """Return the number of the line that is marked with the bug's name."""
        lines = Path(self.file).read_text().splitlines()
        (number,) = (i for i, line in enumerate(lines, 1) if line.endswith(f"# bug: {bug}"))
        return number


def named(output: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested tuples, mappings and named tuples of tensors into tensors by their dotted names."""
    if hasattr(output, "_asdict"):
        output = output._asdict()
    if isinstance(output, tuple | list):
        output = dict(enumerate(output))
    if isinstance(output, Mapping):
        parts = [named(value, f"{prefix}{key}.") for key, value in output.items()]
        return {name: x for part in parts for name, x in part.items()}
    return {prefix.removesuffix("."): output}


def _keywords(inputs: Any) -> dict[str, jax.Array]:
    return {name: jnp.asarray(x) for name, x in inputs.items()} if isinstance(inputs, Mapping) else {}


def torch_outputs(model: torch.nn.Module, inputs: Any) -> dict[str, torch.Tensor]:
    """Return every output of the PyTorch model by name."""
    if isinstance(inputs, Mapping):
        return named(model(**{name: torch.from_numpy(x) for name, x in inputs.items()}))
    return named(model(*map(torch.from_numpy, inputs)))


def torch_run(model: torch.nn.Module, inputs: Any) -> dict[str, np.ndarray]:
    """Return every output of the PyTorch model by name, as arrays."""
    return {name: array(x) for name, x in torch_outputs(model, inputs).items()}


# ---- random weights and inputs ----


def randomize(model: torch.nn.Module, seed: int) -> Any:
    """Fill every tensor with random numbers of the size that it has in a trained model; return it for evaluation.

    Nothing stays 0 or 1, so that no layer is without effect: weights z / sqrt(fan in), scales 1 + 0.3 z, biases and
    running means 0.3 z, running variances in (0.5, 1.5).
    """
    draw = np.random.RandomState(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            z = torch.from_numpy(draw.standard_normal(tuple(tensor.shape))).float()
            if name.endswith("running_var"):
                tensor.copy_(1 + 0.5 * torch.sin(z))
            elif tensor.ndim >= 2:
                tensor.copy_(z / math.sqrt(math.prod(tensor.shape[1:])))
            elif tensor.is_floating_point():
                tensor.copy_((1 if name.endswith("weight") else 0) + 0.3 * z)
    return model.eval()


def normal(seed: int, *shape: int) -> np.ndarray:
    """Return standard normal numbers in float64 that float32 can hold."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32).astype(np.float64)


def integers(seed: int, high: int, *shape: int) -> np.ndarray:
    """Return random integers from 0 to high - 1 in int64."""
    return np.random.RandomState(seed).randint(0, high, shape)


# ---- weights of PyTorch layers as the libraries keep them ----


def array(tensor: Any) -> np.ndarray:
    """Return a tensor of either framework as numpy array."""
    return tensor.detach().numpy() if isinstance(tensor, torch.Tensor) else np.asarray(tensor)


def channels_last(kernel: Any) -> np.ndarray:
    """Return a convolution's weight, O I ... in PyTorch, as ... I O."""
    return np.moveaxis(array(kernel), (0, 1), (-1, -2))


def dense(linear: Any) -> dict[str, jax.Array]:
    """Return a Linear's weights for flax's Dense."""
    weights = {"kernel": jnp.asarray(array(linear.weight).T)}
    return weights if linear.bias is None else weights | {"bias": jnp.asarray(array(linear.bias))}


def conv(layer: Any) -> dict[str, jax.Array]:
    """Return a convolution's weights for flax's Conv."""
    weights = {"kernel": jnp.asarray(channels_last(layer.weight))}
    return weights if layer.bias is None else weights | {"bias": jnp.asarray(array(layer.bias))}


def norm(layer: Any) -> dict[str, jax.Array]:
    """Return scale and bias of a normalization for flax."""
    return {"scale": jnp.asarray(array(layer.weight)), "bias": jnp.asarray(array(layer.bias))}
