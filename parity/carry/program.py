"""Models of other JAX libraries: immutable weights, presented as one `nnx.Module` whose `__call__` is a pure function.

`Adapter` is what `parity.linen`, `parity.equinox`, `parity.haiku` and `parity.function` return; `Program` is the module
that the rest of the package works with.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

if TYPE_CHECKING:
    from parity.carry.rules import LeafRule


Trained = tuple[Any, Mapping[str, Any]]
"""A model's output in training mode, and the arrays that it changed, by name."""


class Pure(abc.ABC):
    """A model's pure function of its named arrays."""

    @abc.abstractmethod
    def __call__(self, arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the model's output in evaluation mode.

        Raises:
            ValueError: The model cannot be run in this way; the message says what to change.
        """

    def train(self, arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any], key: Any) -> Trained:
        """Return the model's output in training mode, and the named arrays that training mode changes.

        Args:
            arrays, args, kwargs: As in evaluation mode.
            key: A key of `jax.random`, another one for every call.

        Raises:
            ValueError: The model cannot be run in this way; the message says what to change.
        """
        raise ValueError(self.no_training or "this model has no training mode")

    no_training: str | None = None
    """What to write so that the model can be run in training mode; None: it can."""

    def in_dtype(self, dtype: Any) -> Pure:
        """Return the function that computes in `dtype`, where the library holds a dtype beside the weights."""
        return self


@dataclasses.dataclass(frozen=True)
class Table:
    """Conversion rules of a program, with whole names on both sides.

    Several rules with the same two names are alternatives: PyTorch's layer type and the shapes decide, else the first.

    Attributes:
        rules: The rules; PyTorch's names are in JAX's module paths (`Rules.rename` is applied before).
        alone: Names of JAX's tensors that need no partner, such as the counter of a moving average.
        layers: Maps JAX's module paths to layer types of the library, where known.
    """

    rules: Sequence[LeafRule] = ()
    alone: Sequence[str] = ()
    layers: Mapping[str, type] = dataclasses.field(default_factory=dict)

    def told(self, leaves: Mapping[type, Sequence[LeafRule]]) -> Iterator[LeafRule]:
        """Yield the user's rules, given by layer type, with whole names; a rule for `Program` has whole names.

        Raises:
            ValueError: A layer type of another library is given, and the types of this program's layers are not known.
        """
        for layer_type, rules in leaves.items():
            if not self.layers and not issubclass(layer_type, nnx.Module):
                raise ValueError(
                    f"Rules(leaves={{{layer_type.__name__}: ...}}): the layer types of this model are not known; write "
                    "rules with whole names for parity.adapters.Program, as LeafRule('fc.weight', 'fc.kernel', (1, 0))"
                )
            paths = [path for path, layer in self.layers.items() if issubclass(layer, layer_type)]
            for path in paths + ([""] if layer_type is Program else []):
                for rule in rules:
                    torch, jax = (f"{path}.{name}".strip(".") for name in (rule.torch, rule.jax))
                    yield dataclasses.replace(rule, torch=torch, jax=jax)


class Program(nnx.Module):
    """A pure function of named arrays as one NNX module without inner modules.

    Its variables are attributes under their whole dotted names (`encoder.layer_0.Dense_0.kernel`). In training mode
    (`train`, as for any NNX module) it has a generator of random keys, and writes the variables that the function
    changes.
    """

    def __init__(self, variables: Mapping[str, nnx.Variable], pure: Pure, table: Table, title: str) -> None:
        """
        Raises:
            ValueError: A variable has the name of an attribute of this class.
        """
        for name, variable in variables.items():
            if hasattr(Program, name) or name in _OWN:
                raise ValueError(f"a tensor at the root of {title} is called {name}, which is reserved: rename it")
            setattr(self, name, variable)
        self._pure, self._table, self._title, self._names = pure, _Static(table), title, tuple(variables)
        self._training = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arrays = {name: getattr(self, name)[...] for name in self._names}
        if not self._training:
            return self._pure(arrays, args, kwargs)
        output, changed = self._pure.train(arrays, args, kwargs, self._keys())
        for name, array in changed.items():
            if array is not arrays[name]:
                self._write(name, array)
        return output

    def _write(self, name: str, array: Any) -> None:
        variable = getattr(self, name)
        if jax.numpy.shape(array) != variable.shape:
            raise ValueError(
                f"training mode of {self._title} gives {name} the shape {list(jax.numpy.shape(array))}, not "
                f"{list(variable.shape)}"
            )
        variable.set_value(jax.numpy.asarray(array, variable.dtype))

    def train(self, **attributes: Any) -> None:
        """Switch to training mode."""
        self._training, self._keys = True, nnx.Rngs(0)

    def eval(self, **attributes: Any) -> None:
        """Switch to evaluation mode."""
        self._training = False

    def require_training_mode(self) -> None:
        """Raise ValueError if the model cannot be run in training mode; the message says what to write."""
        if self._pure.no_training:
            raise ValueError(self._pure.no_training)

    @property
    def title(self) -> str:
        """The library and the name of its model."""
        return self._title

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the variables, in order."""
        return self._names

    @property
    def table(self) -> Table:
        return self._table.value

    def require_numbers(self) -> None:
        """Raise ValueError if a variable is abstract (`jax.eval_shape`) and was not filled."""
        empty = [name for name in self._names if isinstance(getattr(self, name).get_value(), jax.ShapeDtypeStruct)]
        if empty:
            raise ValueError(f"{empty[0]} of JAX holds no numbers: initialise the model outside of jax.eval_shape")

    def run_as(self, other: Program) -> None:
        """Compute another program's function of these variables; both have the same names."""
        self._pure = other._pure

    def compute_in(self, dtype: Any) -> None:
        """Let the function compute in `dtype`, whatever the library holds beside the weights."""
        self._pure = self._pure.in_dtype(dtype)


_OWN = ("_pure", "_table", "_title", "_names", "_training", "_keys", "_parity_path", "dtype", "param_dtype")


class _Static:
    """Holds a value that NNX does not look into."""

    def __init__(self, value: Table) -> None:
        self.value = value


class Adapter(abc.ABC):
    """Immutable weights of a model of another JAX library, taken wherever a `flax.nnx.Module` is."""

    @abc.abstractmethod
    def as_nnx(self) -> Program:
        """Return the model as an NNX module with variables of its own."""

    @abc.abstractmethod
    def update(self, program: Program) -> None:
        """Take the weights of `program`; the objects given by the user are not changed."""


def title_of(model: nnx.Module) -> str:
    """Return the name of a model in reports."""
    return model.title if isinstance(model, Program) else type(model).__name__
