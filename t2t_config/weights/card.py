"""Files beside the weights in a hub folder: config.json for programs, README.md for people.

config.json has timm's format (architecture, model_args, pretrained_cfg), so that timm can read the folder too; other
entries are under "metadata". Both files are generated from the metadata of metadata.py.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from typing import Any

from t2t_config.models import model_config
from t2t_config.shapes import to_pair
from t2t_config.text import escaped
from t2t_config.weights.metadata import Metadata

PREPROCESSING = ("mean", "std", "crop_pct", "interpolation")


def to_config(metadata: Metadata) -> dict[str, Any]:
    """Return config.json for metadata from `describe`, as a dictionary of JSON values."""
    known = dict(metadata)
    name, img_size, in_chans = known.pop("model"), known.pop("img_size"), known.pop("in_chans")
    num_classes, overrides = known.pop("num_classes"), known.pop("overrides")
    distilled = model_config(name).sizes.get("distilled", False)
    preprocessing = {key: known.pop(key) for key in PREPROCESSING if key in known}
    return {
        "architecture": name,
        "num_classes": num_classes,
        "model_args": {"img_size": img_size, "in_chans": in_chans, **overrides},
        "pretrained_cfg": {
            "input_size": [in_chans, *to_pair(img_size)],
            "fixed_input_size": True,
            **preprocessing,
            "num_classes": num_classes,
            "pool_size": None,
            "first_conv": None,
            "classifier": ["head", "head_dist"] if distilled else "head",
        },
        "metadata": known,
    }


def from_config(config: Mapping[str, Any]) -> Metadata:
    """Return the metadata that `to_config` was given.

    Raises:
        ValueError: If `config` does not have this form.
    """
    try:
        overrides = dict(config["model_args"])
        sizes = {key: overrides.pop(key) for key in ("img_size", "in_chans")}
        preprocessing = {key: config["pretrained_cfg"][key] for key in PREPROCESSING if key in config["pretrained_cfg"]}
        facts = {"model": config["architecture"], **sizes, "num_classes": config["num_classes"]}
        return {**facts, "overrides": overrides, **preprocessing, **config.get("metadata", {})}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"it is not a configuration of a model of ours ({error!r})") from error


def model_card(metadata: Metadata, where: str) -> str:
    """Return README.md: a description of the model, its usage, and its training, accuracy and parity if recorded.

    Args:
        metadata: Metadata from `describe`, with `recipe`, `metrics` and `parity` if known. Only recorded values are
            included; the published accuracy of a model is its authors' and is never presented as that of these weights.
        where: Hub id or folder, for the examples.
    """
    front = {
        "library_name": "t2t-vit",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "vision", "t2t-vit", "pytorch", "jax"],
        **({"license": metadata["license"]} if "license" in metadata else {}),
    }
    name = metadata["model"]
    sections = [
        "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in front.items()) + "---",
        f"# {name}",
        f"`{name}` with {metadata['num_classes']} classes. One file of weights, `model.safetensors`, serves the "
        "PyTorch and the JAX/Flax NNX model alike. Tokens-to-Token ViT: "
        "[arXiv 2101.11986](https://arxiv.org/abs/2101.11986).",
        "## Use",
        f"```python\nimport t2t_torch\n\nmodel = t2t_torch.from_pretrained({where!r})  # images (B, C, H, W)\n```",
        f"```python\nimport t2t_jax\n\nmodel = t2t_jax.from_pretrained({where!r})  # images (B, H, W, C)\n```",
        "## Model and images",
        _table(_facts(metadata)),
    ]
    for key, title in (("metrics", "Metrics"), ("recipe", "Recipe"), ("parity", "Parity of PyTorch and JAX")):
        values = metadata.get(key)
        sections += [f"## {title}", _table(values.items()) if values else "Not recorded."]
    return "\n\n".join(sections) + "\n"


def _facts(metadata: Metadata) -> Iterable[tuple[str, Any]]:
    height, width = to_pair(metadata["img_size"])
    yield "image", f"{height} x {width} pixels, {metadata['in_chans']} channels"
    yield from ((key, metadata[key]) for key in PREPROCESSING if key in metadata)
    yield from metadata.get("config", {}).items()


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    """Escape a table cell so that it contains no HTML or links: the content is untrusted, and the hub renders it."""
    text = value if isinstance(value, str) else json.dumps(value)
    text = escaped(html.escape(text.replace("\n", " "), quote=False))
    return text.replace("|", "\\|").replace("](", "]\\(").replace("`", "\\`")
