"""In a confined process without the port's file: run exported programs on weights and inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import numpy as np

KNOWN = re.compile(r"lapack_\w+|ducc_fft|cu_threefry2x32\w*|Sharding|SPMD\w+|stablehlo\.\w+|mhlo\.\w+|chlo\.\w+")
"""Functions outside of a program that it may call: JAX's own linear algebra and the like."""


def answer(meta: Mapping[str, Any], given: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the results of every run: {"program", "precision", "arguments"} with names of arrays in `given`."""
    found: dict[str, np.ndarray] = {}
    programs: dict[tuple[str, bool], Any] = {}
    for i, run in enumerate(meta["runs"]):
        double = run["precision"] == "float64"
        with jax.enable_x64(double), jax.default_matmul_precision("highest"):
            try:
                if (run["program"], double) not in programs:
                    programs[run["program"], double] = loaded(given[run["program"]])
                arguments = [in_precision(given[name], run["precision"]) for name in run["arguments"]]
                results = programs[run["program"], double](*arguments)
                found |= {f"{i}/{j}": np.asarray(x) for j, x in enumerate(results)}
            except Exception as error:
                text = (str(error).strip().splitlines() or [""])[0][:300]
                return {"error": f"the port's program does not run: {text}"}, {}
    return {}, found


def loaded(program: np.ndarray) -> Any:
    """Return an exported program, compiled when it is called.

    Raises:
        ValueError: It calls a function outside of it that is not JAX's own.
    """
    exported = jax.export.deserialize(bytearray(program.tobytes()))
    text = exported.mlir_module()
    called = re.findall(r"custom_call @\"?([^\s\"(]+)", text) + re.findall(r"call_target_name = \"([^\"]+)\"", text)
    if foreign := [name for name in called if not KNOWN.fullmatch(name)]:
        raise ValueError(f"it calls {foreign[0]}")
    return jax.jit(exported.call)


def in_precision(array: np.ndarray, precision: str) -> np.ndarray:
    """Return an array in the type that it has in a run of this precision."""
    if array.dtype.kind == "c":
        return array.astype("complex128" if precision == "float64" else "complex64")
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        return array.astype(precision)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
