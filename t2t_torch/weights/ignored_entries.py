"""Stand-ins for objects in a pickled file that are not weights and are dropped: paths, dates, states of RNGs, ...

Each is replaced by an object of this module, so that no class or function named in a file is called. A file that names
anything else would run code, and is refused (see `t2t_torch.weights.safe_unpickle`).
"""

from __future__ import annotations

from typing import Any


class Inert:
    """Stand-in for a value that is not a weight: accepts any arguments and state, and stores nothing."""

    def __new__(cls, *_: object) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class InertDict:
    """Stand-in for a dictionary class: creates an ordinary dictionary, because it may contain weights."""

    def __new__(cls, *_: object) -> Any:
        return {}


class InertBytes:
    """Stand-in for `bytes`, which pickle protocol 2 calls for empty bytes: ignores its arguments, allocates nothing."""

    def __new__(cls, *_: object) -> Any:
        return b""


class InertList:
    """Stand-in for a list class: creates an ordinary list."""

    def __new__(cls, *_: object) -> Any:
        return []


_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_BUILTINS = (
    *("bool", "complex", "dict", "float", "frozenset", "int", "list", "object", "range", "set", "slice", "str"),
    *("long", "unicode", "xrange"),  # Python 2 names, which protocol 2 writes
)
_NUMBERS = (
    *("bool", "bool_", "str_", "bytes_", "object_", "void", "datetime64", "timedelta64", "complex64", "complex128"),
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64"),
)
_GENERATORS = ("__randomstate_ctor", "__generator_ctor", "__bit_generator_ctor")
_BIT_GENERATORS = ("_mt19937.MT19937", "_pcg64.PCG64", "_pcg64.PCG64DXSM", "_philox.Philox", "_sfc64.SFC64")
_SEEDS = ("bit_generator.SeedSequence", "bit_generator.__pyx_unpickle_SeedSequence")
_OMEGACONF = (
    *("base.ContainerMetadata", "base.Metadata", "dictconfig.DictConfig", "listconfig.ListConfig"),
    *(f"nodes.{kind}Node" for kind in ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String")),
)
_ATTRIBUTE_DICTS = (
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)

INERT: dict[str, Any] = {
    **{f"{module}.{name}": Inert for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **{f"datetime.{name}": Inert for name in ("date", "datetime", "time", "timedelta", "timezone")},
    **{f"builtins.{name}": Inert for name in _BUILTINS},  # default factories of a defaultdict
    **{f"numpy.{name}": Inert for name in _NUMBERS},
    **{f"numpy.random._pickle.{name}": Inert for name in _GENERATORS},
    **{f"numpy.ma.{name}": Inert for name in ("core._mareconstruct", "core.MaskedArray", "MaskedArray")},
    **{f"numpy.random.{name}": Inert for name in (*_BIT_GENERATORS, *_SEEDS)},
    **{f"omegaconf.{name}": Inert for name in _OMEGACONF},
    **dict.fromkeys(("typing.Any", "decimal.Decimal", "fractions.Fraction", "uuid.UUID", "zoneinfo.ZoneInfo"), Inert),
    **dict.fromkeys(("types.SimpleNamespace", "torch.torch_version.TorchVersion"), Inert),
    **dict.fromkeys(
        ("collections.defaultdict", "collections.OrderedDict", "collections.Counter", *_ATTRIBUTE_DICTS), InertDict
    ),
    "collections.deque": InertList,
    "builtins.bytes": InertBytes,
}
"""Full name of a class or function -> its stand-in."""
