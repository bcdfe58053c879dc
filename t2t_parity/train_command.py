"""`python -m parity train NAME`: train a model side by side, as `t2t_jax.train` and its PyTorch twin do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from t2t_common.io import cli
from t2t_common.io.files import check_target, write_text
from t2t_common.io.terminal import make_console, plain
from t2t_config import Recipe
from t2t_parity.runner import run

if TYPE_CHECKING:
    import numpy as np
    import torch
    from flax import nnx

    from parity.side_by_side.optimizers import Training
    from parity.side_by_side.trajectory import Step, TrainingProof


@dataclasses.dataclass(frozen=True)
class Train:
    """Check that training is the same in PyTorch and in JAX: optimizer, schedule, decay, average, every step."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the model, as listed by t2t_torch.list_models()."""
    recipe: str | None = None
    """Recipe in t2t_config.RECIPES, for example cifar10_t2t_vit_14; None uses the model's ImageNet recipe."""
    steps: int = 20
    """Number of optimizer steps; the recipe's schedule is rescaled to this length."""
    lr: float | None = None
    """Peak learning rate; None uses the recipe's."""
    weight_decay: float | None = None
    """Weight decay; None uses the recipe's."""
    img_size: int | None = None
    """Side of the square images in pixels; None uses the model's."""
    num_classes: int = 10
    """Number of classes of the head."""
    batch: int = 2
    """Batch size."""
    seed: int = 0
    """Seed for the random weights and images."""
    json: Path | None = None
    """File for all measurements as JSON."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "num_classes", "lr", "img_size"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}")


def recipe(options: Train) -> Recipe:
    """Return the recipe for `steps` epochs of one step: warm-up from lr / 10 for a quarter, if any, then cosine."""
    from t2t_config import recipe as named_recipe
    from t2t_config.recipes import imagenet

    own = imagenet(options.name) if options.recipe is None else named_recipe(options.recipe)
    lr = own.lr if options.lr is None else options.lr
    return dataclasses.replace(
        own,
        model=options.name,
        lr=lr,
        # float32 cannot resolve steps at the recipe's own 1e-6, which are as small as the rounding of the weights.
        warmup_lr=lr / 10,
        min_lr=min(own.min_lr, lr),
        weight_decay=own.weight_decay if options.weight_decay is None else options.weight_decay,
        epochs=options.steps,
        warmup_epochs=options.steps // 4 if own.warmup_epochs else 0,
        num_classes=options.num_classes,
    )


def training(recipe: Recipe, jax_model: nnx.Module) -> Training:
    """Return the training of `t2t_jax.train` and its PyTorch twin for `recipe` at one step per epoch."""
    from parity.side_by_side.optimizers import Training, classification
    from t2t_jax.training import optim
    from t2t_torch.training import optim as torch_optim

    model: Any = jax_model
    decay = recipe.ema_decay

    def in_torch(model: torch.nn.Module) -> Any:
        torch_optim.freeze(model, recipe.frozen or ())
        return torch_optim.recipe_optimizer(recipe, model, steps_per_epoch=1)

    def in_jax(params: dict[str, Any]) -> Any:
        return optim.recipe_optimizer(recipe, params, steps_per_epoch=1, no_decay=model.no_weight_decay())

    return Training(
        torch=in_torch,
        jax=in_jax,
        jax_rate=optim.schedule(recipe, 1),
        loss=classification(recipe.label_smoothing),
        torch_ema=None if decay is None else lambda model: torch_optim.Ema(model, decay),
        jax_ema=None if decay is None else lambda ema, values: optim.update_ema(ema, values, decay),
    )


def images(options: Train, shape: tuple[int, ...], step: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return random images and labels that depend only on the seed and the step."""
    import numpy as np

    draws = np.random.RandomState([options.seed, step])
    return [draws.standard_normal((options.batch, *shape))], draws.randint(0, options.num_classes, options.batch)


def main(args: Sequence[str], prog: str) -> int:
    """Run the command; return its exit code."""
    description = Train.__doc__ or ""
    return run(lambda: run_train(cli.parse(Train, args, prog=prog, description=description), make_console()))


def run_train(options: Train, console: Console) -> int:
    """Train, print every step and the verdict, and return the exit code."""
    from parity.side_by_side.trajectory import train_side_by_side
    from t2t_parity.pair import make_pair

    check_target(options.json)
    ours = recipe(options)
    sizes: dict[str, Any] = {} if options.img_size is None else {"img_size": options.img_size}
    with console.status(f"{options.name}: creating both models"):
        torch_model, jax_model = make_pair(options.name, seed=options.seed, num_classes=options.num_classes, **sizes)
    model: Any = torch_model
    shape = (model.in_chans, *model.img_size)
    optimizer = "SGD" if ours.optimizer == "sgd" else "AdamW"
    console.print(f"{options.name}, {options.steps} {optimizer} steps, batch {options.batch}, images {list(shape)}")
    console.print("distance between the frameworks / distance travelled", HEADER, sep="\n", highlight=False)
    with console.status(f"{options.name}: first step, compiling"):
        proof = train_side_by_side(
            torch_model,
            jax_model,
            lambda step: images(options, shape, step),
            options.steps,
            training(ours, jax_model),
            progress=lambda number, step: console.print(line(number, step), highlight=False),
        )
    for text in summary(proof):
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    if options.json is not None:
        settings = {key: str(v) if isinstance(v, Path) else v for key, v in dataclasses.asdict(options).items()}
        write_text(options.json, proof.to_json(settings))
        console.print(plain(f"figures written to {options.json}"), soft_wrap=True)
    return cli.OK if proof.passed else cli.FAILED


HEADER = f"{'step':>5}{'loss PyTorch':>15}{'loss JAX':>15}{'float64':>11}{'f32 JAX':>11}{'f32 PyTorch':>13}"


def line(number: int, step: Step) -> str:
    """Format one step as a row under `HEADER`."""
    losses = f"{number:>5}{step.loss_torch:>15.9f}{step.loss_jax:>15.9f}"
    return losses + f"{step.distance64:>11.1e}{step.distance32_jax:>11.1e}{step.distance32_torch:>13.1e}"


def summary(proof: TrainingProof) -> list[str]:
    """Return one line per kind of row, the trajectory, the causes, and the verdict."""
    from parity.report import view
    from parity.report.terminal import cause_lines

    lines = []
    for kind in dict.fromkeys(row.kind for row in proof.rows):
        rows = [row for row in proof.rows if row.kind == kind]
        worst = max(rows, key=lambda row: (not row.passed, row.error))
        status = "ok" if all(row.passed for row in rows) else "FAILED"
        where = f" {worst.name}" if worst.name else ""
        note = f": {worst.note}" if worst.note else ""
        lines.append(f"{kind}: {status}, worst {worst.error:.1e}, gate {worst.gate:.1e}{where}{note}")
    lines += [view.training(proof.trajectory), *cause_lines(proof.causes)]
    return [*lines, "EQUAL" if proof.passed else "DIFFERENT"]
