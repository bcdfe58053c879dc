"""The specification: a Python file, which is trusted, with the PyTorch reference and a generator of inputs.

    def reference() -> torch.nn.Module: ...
    def inputs(seed: int): ...            # a tensor, a tuple or a mapping of arguments, or parity.Inputs

`gradients = False` leaves the gradients out. Tolerances are parity's own and cannot be set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from parity.carry.model_types import torch_subject
from parity.verify.run import UnjudgeableError


@dataclasses.dataclass(frozen=True)
class Spec:
    """A loaded specification.

    Attributes:
        path, sha256: The file and the digest of its content.
        model: The reference in evaluation mode.
        inputs: Seed to inputs.
        gradients: Whether gradients are compared.
    """

    path: Path
    sha256: str
    model: torch.nn.Module
    inputs: Callable[[int], Any]
    gradients: bool

    @classmethod
    def load(cls, path: Path) -> Spec:
        """Run the file.

        Raises:
            FileNotFoundError: There is no such file.
            UnjudgeableError: It is no specification.
        """
        content = content_of(path)
        name = "parity_spec"
        module_spec = importlib.util.spec_from_file_location(name, path)
        if module_spec is None or module_spec.loader is None:
            raise UnjudgeableError(f"{path.name} is no Python file")
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[name] = module
        sys.path.insert(0, str(path.resolve().parent))  # what lies beside it, as when it is run
        try:
            module_spec.loader.exec_module(module)
            functions = [getattr(module, x, None) for x in ("reference", "inputs")]
            missing = [x for x, f in zip(("reference()", "inputs(seed)"), functions, strict=True) if not callable(f)]
            if missing:
                raise UnjudgeableError(f"{path.name} has no function {' and no '.join(missing)}")
            model = torch_subject(module.reference()).eval()
        except UnjudgeableError:
            raise
        except Exception as error:
            raise UnjudgeableError(f"{path.name}: {type(error).__name__}: {error}") from error
        finally:
            sys.path.remove(str(path.resolve().parent))
        gradients = getattr(module, "gradients", True)
        if not isinstance(gradients, bool):
            raise UnjudgeableError(f"{path.name}: gradients is {gradients!r}: write True or False")
        return cls(path, hashlib.sha256(content).hexdigest(), model, module.inputs, gradients)


def content_of(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        FileNotFoundError: There is none; the message says so in one line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give the path of a Python file")
    return path.read_bytes()
