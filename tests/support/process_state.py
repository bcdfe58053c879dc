"""What a process shares between all its code, as comparable text; run as a program: what our packages change of it.

`python -m tests.support.process_state ACTION SCRATCH` prints as JSON what changed between importing every library that
ACTION needs and the end of ACTION, which is a name in `ACTIONS`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OURS = ("t2t_config", "t2t_common", "t2t_torch", "t2t_jax", "parity", "pytest_parity")
ROOT = Path(__file__).parents[2]
ALONE = {"t2t_torch.timm_models"}
"""Needs timm, which is not installed here."""


def snapshot() -> dict[str, str]:
    """Return all shared state by name."""
    state = {f"os.environ {name}": value for name, value in os.environ.items()}
    state |= {f"signal {number!r}": repr(signal.getsignal(number)) for number in signal.valid_signals()}
    for hooks, names in ((sys, ("excepthook", "unraisablehook", "displayhook")), (threading, ("excepthook",))):
        state |= {f"{hooks.__name__}.{name}": repr(getattr(hooks, name)) for name in names}
    state |= {"sys.stdout": repr(sys.stdout), "sys.stderr": repr(sys.stderr), "cwd": os.getcwd()}
    state |= {"warnings.filters": repr(warnings.filters), "warnings.showwarning": repr(warnings.showwarning)}
    state |= {"blocked signals": repr(signal.pthread_sigmask(signal.SIG_BLOCK, ()))}
    state |= {f"recursion {name}": repr(getattr(sys, f"get{name}")()) for name in ("recursionlimit", "switchinterval")}
    return state | dict(_loggers()) | dict(_libraries())


def _loggers() -> Iterator[tuple[str, str]]:
    named = {name: item for name, item in logging.root.manager.loggerDict.items() if isinstance(item, logging.Logger)}
    for name, logger in {**named, "root": logging.root}.items():
        if not name.startswith(OURS):
            state = (logger.level, logger.filters, logger.handlers, logger.disabled, logger.propagate)
            yield f"logger {name}", repr(state)


def _libraries() -> Iterator[tuple[str, str]]:
    modules = sys.modules
    if "jax" in modules:
        yield from ((f"jax.config.{name}", repr(value)) for name, value in modules["jax"].config.values.items())
    if "absl.flags" in modules:
        yield "absl flags", repr(modules["absl.flags"].FLAGS.is_parsed())
    if "tyro" in modules:
        yield "tyro", repr(modules["tyro"]._experimental_options)
    if "numpy" in modules:
        numpy = modules["numpy"]
        yield "numpy", repr((numpy.geterr(), numpy.get_printoptions(), numpy.random.get_state()[1].sum()))
    if "PIL.Image" in modules:
        yield "Pillow", repr(modules["PIL.Image"].MAX_IMAGE_PIXELS)
    if "PIL.ImageFile" in modules:
        yield "Pillow files", repr(modules["PIL.ImageFile"].LOAD_TRUNCATED_IMAGES)
    if "torch" in modules:
        torch = modules["torch"]
        for ask in ("get_default_dtype", "get_num_threads", "is_grad_enabled", "get_float32_matmul_precision"):
            yield f"torch.{ask}", repr(getattr(torch, ask)())
        yield "torch deterministic", repr(torch.are_deterministic_algorithms_enabled())
        yield "torch.backends.cudnn", repr((torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32))
        yield "torch.backends.mha", repr(torch.backends.mha.get_fastpath_enabled())


# --- Actions ------------------------------------------------------------------------------------------------


def import_everything(scratch: Path) -> None:
    """Import every module of every package, and none of their commands."""
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")) or [ROOT / f"{package}.py"]:
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if name not in ALONE and not name.endswith("__main__"):
                importlib.import_module(name)


def call_torch(scratch: Path) -> None:
    """Call what `t2t_torch` offers; train, evaluate and export in it."""
    import torch

    import t2t_torch
    from t2t_torch.train import train

    model = t2t_torch.create_model("t2t_vit_micro", img_size=16, num_classes=10, in_chans=1)
    t2t_torch.save_checkpoint(model, scratch / "model.pth")
    t2t_torch.load_checkpoint(model, scratch / "model.pth")
    t2t_torch.read_state_dict(scratch / "model.pth")
    t2t_torch.save_pretrained(model, scratch / "folder")
    t2t_torch.from_pretrained(scratch / "folder")
    model.eval()(torch.zeros(1, 1, 16, 16))
    train(_recipe(scratch), scratch / "torch-run")


def call_jax(scratch: Path) -> None:
    """Call what `t2t_jax` offers; save, load and train in it."""
    import jax.numpy as jnp

    import t2t_jax
    from t2t_jax.checkpoint import load_weights, save_model
    from t2t_jax.train import train

    model: Any = t2t_jax.create_model("t2t_vit_micro", img_size=16, num_classes=10, in_chans=1)
    save_model(scratch / "model", model)
    load_weights(model, scratch / "model")
    t2t_jax.save_pretrained(model, scratch / "folder")
    t2t_jax.from_pretrained(scratch / "folder")
    model(jnp.zeros((1, 16, 16, 1)))
    train(dataclasses.replace(_recipe(scratch), data_workers=1), scratch / "jax-run")


def call_parity(scratch: Path) -> None:
    """Check a pair of models, with the search for the cause of a difference."""
    import numpy as np
    import torch
    from flax import nnx

    import parity

    theirs = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3))
    ours = nnx.Sequential(
        nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.LayerNorm(8, rngs=nnx.Rngs(0)), nnx.Linear(8, 3, rngs=nnx.Rngs(0))
    )
    parity.check(theirs, ours, np.ones((2, 4), np.float32), rules=parity.Rules(rename={"^": "layers."}))


def options(scratch: Path) -> None:
    """Parse the options of a command."""
    from t2t_common.io import cli
    from t2t_common.run.options import LoggingOptions

    cli.parse(LoggingOptions, ["--peak-tflops", "1"], prog="nothing", description="nothing")
    with contextlib.suppress(ValueError):
        cli.parse(LoggingOptions, ["--peak-flops", "1"], prog="nothing", description="nothing")


ACTIONS: dict[str, Callable[[Path], None]] = {
    action.__name__: action for action in (import_everything, call_torch, call_jax, call_parity, options)
}


def _recipe(scratch: Path) -> Any:
    from tests.support.small_data import small_recipe, write_idx_folder

    return dataclasses.replace(small_recipe(write_idx_folder(scratch / "data")), epochs=1, cooldown_epochs=0)


# --- Changes ------------------------------------------------------------------------------------------------


def changes(action: str, scratch: Path) -> dict[str, list[str | None]]:
    """Return the state that `action` changes, as name -> [before, after], in a process of its own.

    What the libraries themselves change when they are imported is left out: all modules that the action loads, except
    ours, are imported before the first snapshot.
    """
    loaded = scratch / "loaded.json"
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(scratch), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for turn in ("list", "compare"):
        (folder := scratch / turn).mkdir()
        command = [sys.executable, "-m", "tests.support.process_state", action, str(folder), str(loaded)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **compiled})
        assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def main(action: str, scratch: Path, loaded: Path) -> None:
    libraries = json.loads(loaded.read_text()) if loaded.exists() else []
    for name in libraries:
        with contextlib.suppress(BaseException):
            importlib.import_module(name)
    before = snapshot()
    ACTIONS[action](scratch)
    after = snapshot()
    if not loaded.exists():
        loaded.write_text(json.dumps([name for name in sys.modules if name.partition(".")[0] not in (*OURS, "tests")]))
    new = {name: value for name, value in after.items() if name in before or not name.startswith("logger ")}
    differ = sorted(name for name in before.keys() | new.keys() if before.get(name) != new.get(name))
    print(json.dumps({name: [before.get(name), new.get(name)] for name in differ}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
