"""Every figure in the prose of the pages, computed again: phrases of a page, with what the code says filled in."""

from __future__ import annotations

import inspect
import json
import math
import re
import tomllib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import torch
import yaml
from flax import nnx

from parity.judgement.rows import FLOAT64_NOISE, ZERO_BY_STRUCTURE
from parity.judgement.small_elements import FLOOR, LOOSER
from parity.measure.gates import Gates
from parity.side_by_side.trajectory import TrainingGates
from parity.suggest.match import AGREE
from parity.trace.locate import MOST_RUNS
from parity.trace.values.fingerprint import TOLERANCE
from parity.verify import verdict
from t2t_common.data import images, open_source
from t2t_common.io import cli
from t2t_common.run_page import confusion, writer
from t2t_config import MODELS, find_pretrained, model_config, recipe
from t2t_config.recipes import own_images
from t2t_config.shapes import soft_split_grids
from t2t_config.weights.download import MOST
from t2t_jax.ops import softmax
from t2t_jax.training import profile
from t2t_torch.weights.safe_unpickle import MAX_EXPANSION
from tests.support.golden import golden
from tests.support.pages.code_blocks import ROOT
from tests.torch.test_golden import GATE

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHON = PROJECT["requires-python"].removeprefix(">=")
SURVEY = json.loads((ROOT / "docs" / "parity.json").read_text())
WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 8: "eight", 9: "nine", 10: "ten", 14: "fourteen"}
ORDINALS = {5: "fifth", 100: "hundredth"}
OWN = recipe("own")
U = float(np.finfo(np.float32).eps) / 2
"""Rounding of float32, to nearest."""


def needs(package: str) -> str:
    """The least version of a dependency."""
    lines = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    return next(line.partition(">=")[2] for line in lines if line.startswith(f"{package}>="))


def default(function: Callable[..., Any], argument: str) -> str:
    """Default of an argument, as a page writes it."""
    function = function.__init__ if isinstance(function, type) else function
    return f"{inspect.signature(function).parameters[argument].default:g}".replace("1e-0", "1e-")


def tens(value: float) -> str:
    """The power of ten nearest to a measured error."""
    return f"1e{round(math.log10(value))}"


def twos(value: float) -> str:
    assert math.log2(value).is_integer()
    return f"2^{math.log2(value):.0f}"


def power(value: float) -> str:
    """A gate: 1e-13, 3e-6."""
    return re.sub(r"e-0?", "e-", f"{value:.0e}")


def bicubic(resize: Callable[[np.ndarray], Any]) -> str:
    """The a of a bicubic kernel (Keys 1981): of its weight for a pixel 1.25 away, where 9 pixels become 18."""
    impulse = np.tile(np.eye(9)[4][:, None], 9)
    weight = np.asarray(resize(impulse))[6, 9]
    return f"{weight / (1.25**3 - 5 * 1.25**2 + 8 * 1.25 - 4):.3g}"


def fewest_numbers(ratio: float) -> int:
    """Numbers of a tensor from which on 2 * 10^(6/n) is no longer above `ratio`."""
    return next(n for n in range(1, 1000) if 2 * 10 ** (6 / n) <= ratio)


def interpolate(image: np.ndarray, *, antialias: bool) -> Any:
    """PyTorch's bicubic, (9, 9) to (18, 18); with antialiasing it has to be JAX's."""
    image_1x1xHxW = torch.from_numpy(image)[None, None]
    found = torch.nn.functional.interpolate(image_1x1xHxW, (18, 18), mode="bicubic", antialias=antialias)[0, 0].numpy()
    assert not antialias or np.allclose(found, jax.image.resize(image, (18, 18), "bicubic"), atol=1e-6)
    return found


def added_to_norm() -> str:
    """What PyTorch adds to the norm of gradients that it clips to a norm of 1: 1 / scale - norm."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    weight.grad = torch.full((1,), 4.0, dtype=torch.float64)
    torch.nn.utils.clip_grad_norm_([weight], max_norm=1.0)
    return power(4 / weight.grad.item() - 4)


def accuracy_of_the_digits() -> float:
    """Top-1 of `python -m t2t_jax.train digits`, in per cent, as it printed it."""
    found = json.loads((ROOT / "tools" / "benchmarks" / "results" / "transcripts.json").read_text())["transcripts"]
    last = found["python -m t2t_jax.train digits --workdir runs/digits"]["printed"][-1]
    return float(last.partition("top-1 ")[2].split()[0])


T2T_14 = find_pretrained("t2t_vit_14")
MEASURED_14 = T2T_14.measured
assert MEASURED_14 is not None
MODEL_14 = next(figure for figure in SURVEY["figures"] if figure["name"] == "t2t_vit_14")
OFFICIAL = [name for name, config in MODELS.items() if name.startswith("t2t_") and config.in_paper]
GATES, TRAINING = Gates(), TrainingGates()
DRAWN = math.sqrt((1 - 2**-2) / (2 * math.log(2)) / 3)
"""Root mean square of a rounding, uniform within half a unit of the last place, over the numbers of a binade, in u."""
SIZES = model_config("t2t_vit_14").sizes
TOKENS, SMALL = soft_split_grids((224, 224)), soft_split_grids((112, 112))
QUERIES = math.prod(TOKENS[0])
ROWS = math.ceil(QUERIES / math.ceil(QUERIES / softmax.ROWS))
"""Queries whose scores the T2T transformer holds at once, of images of 224 pixels."""
SIDE = open_source("digits", "val")[0][0].width
DIGITS = {split: len(open_source("digits", split)) for split in ("train", "val")}
CODES = f"{cli.OK} every check passes, {cli.FAILED} a check fails, {cli.MISUSED} invalid arguments"
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())


def memory_at_once() -> float:
    """How many times the memory of the T2T transformer's scores in parts they take at once."""
    whole, parts = (
        json.loads((ROOT / "tools" / "benchmarks" / "results" / f"scores_{how}.json").read_text())["sizes"]["224"]
        for how in ("at_once", "in_parts")
    )
    return whole["temporary_bytes"] / parts["temporary_bytes"]


def pythons() -> set[str]:
    """Versions of Python, without the last digit, that the figures of the site were made with."""
    speed = json.loads((ROOT / "tools" / "benchmarks" / "results" / "speed.json").read_text())
    return {version.rpartition(".")[0] for version in (SURVEY["environment"]["python"], speed["machine"]["python"])}


FIGURES: dict[str, list[str]] = {
    "README.md": [
        f"({T2T_14.num_bytes:,} bytes, SHA-384)",
        f"at {MEASURED_14.top1} % top-1 and {MEASURED_14.top5} % top-5",
        f"{WORDS[round(math.log10(MODEL_14['logits32_jax'] / MODEL_14['forced64']))]} orders of magnitude",
        f"Python {PYTHON} or later",
        f"for all {WORDS[len(OFFICIAL)]} models, fine-tuning at {recipe('finetune_t2t_vit_14_384').img_size} px",
        "runs both models in float64 and in float32, and in float64 every layer twice",
        f"a relative error of at most {power(GATES.f64)} (gradients {power(GATES.f64_gradient)})",
        f"the error of JAX may be at most {WORDS[int(GATES.f32_ratio)]} times that of PyTorch",
        f"[{(ROOT / 'docs/gotchas.md').read_text().count('### ')} gotchas between",
        f"exit codes: {CODES}",
        f"The top-1 accuracies are the authors' (ImageNet-1k, {model_config('t2t_vit_14').img_size} px), not ours",
        "MACs, 10^9",
        "(0 for features)",
        f"agrees with the authors' code in float64 to {power(GATE)} (logits, activations, gradients, "
        f"{golden('train20_t2t_vit_7').meta['steps']} steps of AdamW)",
    ],
    "CHANGELOG.md": [
        f"holds the scores of {ROWS} tokens at a time, a {ORDINALS[round(memory_at_once())]} of the module's memory",
        "Dropouts of rate 0 on",
        f"one line with exit code {cli.MISUSED}",
        f"tyro {needs('tyro')} or later",
        f"the newest JAX (Python {WORKFLOW['jobs']['test']['strategy']['matrix']['python'][-1]})",
        f"at most {images.MOST_PIXELS / 1e6:.0f} million pixels, and no narrower than 1:{images.LONGEST_SIDE}.",
        f"tensorboardX {needs('tensorboardX')}, scikit-learn {needs('scikit-learn')} and onnxscript "
        f"{needs('onnxscript')} or later",
        f"Beside rich {needs('rich')},",
        f"With PyTorch {needs('torch')} models are exported",
        f"## [{PROJECT['version']}]",
    ],
    "CONTRIBUTING.md": ["Files of up to 400 lines"],
    "docs/any_program.md": [f"may differ by {TOLERANCE:.0e} of", f"at most {MOST_RUNS} times"],
    "docs/agents.md": [
        *(f"| {code} | `{name}` |" for name, code in verdict.CODES.items()),
        f"less than {verdict.BYTES // 1000} KB, and `version` {verdict.VERSION}",
        "differs by about 1e-8",
        "by Landlock (Linux 5.13 to 6.12, depending",
    ],
    "docs/architecture.md": [f"exit code {cli.MISUSED}"],
    "docs/ci.md": [
        f"the Python to set up, {PYTHON} or later",
        "runs what `.ci/run` runs, on Python {} and {}".format(
            *WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"]
        ),
        f"the results on this site are from Python {' and '.join(pythons())}.",
    ],
    "docs/gotchas.md": [
        "PyTorch 2.13 computes a wrong gradient",
        f"has epsilon {default(nnx.LayerNorm, 'epsilon')}, PyTorch {default(torch.nn.LayerNorm, 'eps')}",
        f"{torch.nn.BatchNorm1d(1).momentum} there is {1 - torch.nn.BatchNorm1d(1).momentum} here",
        "a factor n / (n - 1) on",
        "with stride 2 pads",
        "standard deviation (3 · in)^-0.5",
        "normal with in^-0.5",
        f"cuts at ±{default(torch.nn.init.trunc_normal_, 'b')} absolute: with std 0.02, nothing",
        f"cuts at ±{default(jax.nn.initializers.truncated_normal, 'upper')} standard deviations",
        f"kernel has a = {bicubic(lambda x: interpolate(x, antialias=False))} and no antialiasing",
        f"`antialias=True`, a = {bicubic(lambda x: interpolate(x, antialias=True))} and antialiasing",
        f"PyTorch decays by {default(torch.optim.AdamW, 'weight_decay').replace('0.01', '1e-2')} unless",
        f"optax by {default(optax.adamw, 'weight_decay').replace('0.0001', '1e-4')}.",
        f"divides by norm + {added_to_norm()},",
        "divide by n - 1,",
        "### 64 bits are off",
        "switches 64 bits on",
    ],
    "docs/jax_libraries.md": ["the batch with n - 1 in PyTorch"],
    "docs/index.md": [
        f"Python {PYTHON} or later",
        f"The exit code is {cli.OK} if every check passes, {cli.FAILED} if a check fails and {cli.MISUSED} for",
    ],
    "docs/judgement.md": [
        f"float64 at {tens(MODEL_14['forced64'])} below its gate of {power(GATES.f64)}, float32 of both frameworks at "
        f"{tens(MODEL_14['logits32_jax'])} below",
        f"at most {WORDS[int(GATES.f32_ratio)]} times as large plus `{twos(GATES.f32_floor)}`, "
        f"{WORDS[int(GATES.f32_floor / U)]} roundings of float32 (u = {twos(U)})",
        f"is above {GATES.f32_ratio:g} where a tensor has fewer than {fewest_numbers(GATES.f32_ratio)} numbers",
        f"takes the place of {GATES.f32_ratio:g},",
        f"partial sums of j = 1 ... k terms, each rounded by {DRAWN:.2f} u of itself",
        f"`{DRAWN:.2f} u sqrt(sum j) / sqrt(k) = {DRAWN / math.sqrt(2):.2f} u sqrt(k)`",
        f"may therefore err by `{2 * round(DRAWN / math.sqrt(2), 2):.1f} u sqrt(k)`",
        f"its distance is {DRAWN / math.sqrt(2):.1f} u sqrt(k)",
        f"| layer, forced and free; output; loss | {power(GATES.f64)} | error to the oracle <= {GATES.f32_ratio:g} x "
        f"PyTorch's + {twos(GATES.f32_floor)} (",
        f"two float32 runs, free | | {power(GATES.f32_between)} (output {power(GATES.f32_logits)}, loss "
        f"{power(GATES.f32_loss)}) |",
        f"a module's own derivative | {power(GATES.f64_gradient)} | <= {GATES.f32_ratio:g} x PyTorch's + "
        f"{twos(GATES.f32_gradient_floor)} |",
        f"norm below {power(ZERO_BY_STRUCTURE)} of the global gradient norm",
        f"*`{power(GATES.f64 * LOOSER)}`* is what separates the two",
        f"and the gate is `{power(GATES.f64_gradient * LOOSER)}` (`{LOOSER:.0f}` times relF's)",
        f"*`{power(FLOOR)}`*: functions bring terms of size",
        f"in float64 scaled by {twos(FLOAT64_NOISE)},",
        f"Gates: {power(TRAINING.distance64)} in float64; in float32 {power(TRAINING.distance32)} and "
        f"{WORDS[int(TRAINING.ratio32)]} times PyTorch's own",
        f"({power(TRAINING.floor32)} of the way",
    ],
    "docs/port.md": [
        "show 0 and still fail",
        f"flax's epsilon is {default(nnx.LayerNorm, 'epsilon')}",
        f"at most {WORDS[int(GATES.f32_ratio)]} times as far",
        f"all outputs agree to {power(AGREE)} in float64",
    ],
    "docs/checkpoints.md": [
        "the size and the SHA-384",
        f"{MEASURED_14.top1} % top-1, {MEASURED_14.top5} % top-5",
        "images at 256 pixels and cropped to 224.",
    ],
    "docs/threats.md": [
        f"with exit code {cli.MISUSED} on the command line",
        f"more than {WORDS[MAX_EXPANSION]} times its size",
        f"stopped at the published size, the announced size, or {MOST >> 30} GiB",
    ],
    "docs/train.md": [
        f"fine-tuning at {recipe('finetune_t2t_vit_14_384').img_size} px",
        "a device that takes 250 ms a step",  # of the command above it
        f"exits with code {cli.OK}. The same",
        f"imported ends with exit code {cli.INTERRUPTED}.",
        f"updated every {WORDS[int(writer.SECONDS)]} seconds or more",
        f"more than a {ORDINALS[round(1 / writer.SHARE)]} of the time",
        f"a confusion matrix of up to {confusion.MOST_CLASSES} classes",
        f"`--profile` records {WORDS[profile.TRACED_STEPS]} steps for XProf",
    ],
    "docs/own_data.md": [
        f"model is T2T-ViT-{model_config(OWN.model).sizes['depth']} at {OWN.img_size} pixels",
        f"the largest of {', '.join(map(str, own_images.BATCH_SIZES[:-1]))} and {own_images.BATCH_SIZES[-1]} that "
        f"leaves {WORDS[own_images.STEPS_PER_EPOCH]} steps per epoch",
        "about {:,} steps from random weights, {:,} from given weights; at least {} and {} epochs, at most {} and "
        "{}".format(
            *(own_images.STEPS[given] for given in (False, True)),
            *(own_images.EPOCHS[given][bound] for bound in (0, 1) for given in (False, True)),
        ),
        f"{own_images.LAYER_DECAY} from given weights, {OWN.layer_decay:g} from random weights",
        f"crops of at least {100 * OWN.scale[0]:g} % of the area",
    ],
    "docs/visualize.md": [
        "as in figure 2 of the T2T-ViT paper",
        f"enlarged from {SIDE} to 112 pixels, hence {SMALL[-1][0]}×{SMALL[-1][1]} tokens",
        f"from {SMALL[0][0]}×{SMALL[0][1]} to {SMALL[-1][0]}×{SMALL[-1][1]} tokens",
        f"of {math.prod(TOKENS[-1])} tokens, an even one has {100 / math.prod(TOKENS[-1]):.2f} % everywhere",
        "(A + I) / 2 over",
    ],
    "docs/performance.md": [
        f"{SIZES['embed_dim'] // SIZES['num_heads']} numbers for each token in place of {math.prod(TOKENS[-1]) + 1}",
        f"softmax over {QUERIES} tokens. Its layers hold the scores of {ROWS} at a time",
    ],
    "examples/t2t_vit.ipynb": [
        f"{sum(DIGITS.values()):,} handwritten digits, {DIGITS['val']} of them held out",
        f"at most {WORDS[int(GATES.f32_ratio)]} times as far",
        f"flax's default epsilon, {default(nnx.LayerNorm, 'epsilon')} in place of PyTorch's "
        f"{default(torch.nn.LayerNorm, 'eps')}",
        f"the recipes of all {WORDS[len(OFFICIAL)]} models",
    ],
    "t2t_config/recipes/digits.py": [
        f"Expect {round(accuracy_of_the_digits())} % of the {DIGITS['val']} held-out digits",
        f"({SIDE}x{SIDE}, {sum(DIGITS.values()):,} of them) and are resized to "
        + "{0}x{0}".format(recipe("digits").img_size),
    ],
    "t2t_jax/ops/softmax.py": [f"All scores of {QUERIES} tokens would take {QUERIES**2 * 4 / 1e6:.0f} MB per image"],
}
"""Page: what has to stand there, up to white space. Figures of commands that take long are held by the tests of what
writes them: parity.md, performance.md and reliability.md; what Python prints by test_code_blocks.py."""
