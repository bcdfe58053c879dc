"""Published weights: addresses, checksums and accuracy.

Sources: README.md of yitu-opensource/T2T-ViT (release files, top-1) and its models/vit.py (ViT and DeiT files);
README.md of facebookresearch/deit (DeiT's top-1). The top-1 values are the authors'. Size, SHA-384 and an independent
top-1 and top-5 of T2T-ViT-14: models/public/t2t-vit-14 (model.yml, README.md) of openvinotoolkit/open_model_zoo. No
weights of the ResNeXt, wide, SE, dense and ghost variants were published. timm's file of vit_small_patch16_224 is not
listed: it was trained with another attention scale, 768^-0.5, with which the model would have to be created
(`qk_scale`); upstream changes the scale silently.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from t2t_config.models import ALIASES, model_config
from t2t_config.weights.download import cached_download

_T2T = "https://github.com/yitu-opensource/T2T-ViT/releases/download/main/"
_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/"
_DEIT = "https://dl.fbaipublicfiles.com/deit/"
_MIIL = "https://miil-public-eu.oss-eu-central-1.aliyuncs.com/model-zoo/ImageNet_21K_P/models/timm/"


@dataclasses.dataclass(frozen=True)
class Measured:
    """Accuracy of published weights as measured by a third party, in percent; not measured here.

    Attributes:
        by: Who measured it, and where it is published.
        how: Evaluation procedure.
        top1, top5: Accuracy on ImageNet-1k.
    """

    by: str
    how: str
    top1: float
    top5: float


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """One file of published weights.

    Attributes:
        url: Address of the file.
        img_size, num_classes: Values of the weights; None for the model's own.
        top1: Accuracy published by the authors in percent, not measured here; on ImageNet-1k unless the tag says
            otherwise.
        num_bytes: Size of the file; None if no source gives it, then the size announced by the server is checked.
        sha384: SHA-384 of the file, if a source gives it.
        measured: Accuracy as published by a third party, if any.
    """

    url: str
    img_size: int | None = None
    num_classes: int | None = None
    top1: float | None = None
    num_bytes: int | None = None
    sha384: str | None = None
    measured: Measured | None = None

    @property
    def sha256(self) -> str | None:
        """First digits of the file's SHA-256 if its name ends with them (PyTorch's convention), else None."""
        found = re.search(r"-([0-9a-f]{8,})\.pth$", self.url)
        return found[1] if found else None

    def download(self) -> Path:
        """Return the file in the cache, downloading it first if needed; raises as `cached_download`."""
        return cached_download(self.url, num_bytes=self.num_bytes, sha256=self.sha256, sha384=self.sha384)


_T2T_14 = Pretrained(
    _T2T + "81.5_T2T_ViT_14.pth.tar",
    top1=81.5,
    num_bytes=86_212_823,
    sha384="98c8ae06a1e9997f3e83ad2dfbac49985bf7bd7723eb64e4b8462338163be02657998f0bd9f8997367417003caeaf7a1",
    measured=Measured(
        by="Open Model Zoo of OpenVINO, models/public/t2t-vit-14",
        how="converted to OpenVINO; shorter side to 256 pixels (bicubic), center crop of 224",
        top1=81.44,
        top5=95.66,
    ),
)
_CIFAR10: dict[str, Any] = {"num_classes": 10}
_CIFAR100: dict[str, Any] = {"num_classes": 100}

PRETRAINED: Mapping[str, Mapping[str, Pretrained]] = MappingProxyType(
    {
        "t2t_vit_7": {"in1k": Pretrained(_T2T + "71.7_T2T_ViT_7.pth.tar", top1=71.7)},
        "t2t_vit_10": {"in1k": Pretrained(_T2T + "75.2_T2T_ViT_10.pth.tar", top1=75.2)},
        "t2t_vit_12": {"in1k": Pretrained(_T2T + "76.5_T2T_ViT_12.pth.tar", top1=76.5)},
        "t2t_vit_14": {
            "in1k": _T2T_14,
            "in1k_384": Pretrained(_T2T + "83.3_T2T_ViT_14.pth.tar", img_size=384, top1=83.3),
            "cifar10": Pretrained(_T2T + "cifar10_t2t-vit_14_98.3.pth", top1=98.3, **_CIFAR10),
            # "cirfar" is how the authors named the file.
            "cifar100": Pretrained(_T2T + "cirfar100_t2t-vit-14_88.4.pth", top1=88.4, **_CIFAR100),
        },
        "t2t_vit_19": {
            "in1k": Pretrained(_T2T + "81.9_T2T_ViT_19.pth.tar", top1=81.9),
            "cifar10": Pretrained(_T2T + "cifar10_t2t-vit_19_98.4.pth", top1=98.4, **_CIFAR10),
            "cifar100": Pretrained(_T2T + "cifar100_t2t-vit-19_89.0.pth", top1=89.0, **_CIFAR100),
        },
        "t2t_vit_24": {
            "in1k": Pretrained(_T2T + "82.3_T2T_ViT_24.pth.tar", top1=82.3),
            "token_labeling": Pretrained(_T2T + "84.2_T2T_ViT_24.pth.tar", top1=84.2),
        },
        "t2t_vit_t_14": {"in1k": Pretrained(_T2T + "81.7_T2T_ViTt_14.pth.tar", top1=81.7)},
        "t2t_vit_t_19": {"in1k": Pretrained(_T2T + "82.4_T2T_ViTt_19.pth.tar", top1=82.4)},
        "t2t_vit_t_24": {"in1k": Pretrained(_T2T + "82.6_T2T_ViTt_24.pth.tar", top1=82.6)},
        "vit_base_patch16_224": {"in1k": Pretrained(_TIMM + "v0.1-vitjx/jx_vit_base_p16_224-80ecf9dd.pth")},
        "vit_base_patch16_384": {"in1k": Pretrained(_TIMM + "v0.1-vitjx/jx_vit_base_p16_384-83fb41ba.pth")},
        "vit_base_patch32_384": {"in1k": Pretrained(_TIMM + "v0.1-vitjx/jx_vit_base_p32_384-830016f5.pth")},
        "vit_large_patch16_224": {"in1k": Pretrained(_TIMM + "v0.1-vitjx/jx_vit_large_p16_224-4ee7a4dc.pth")},
        "vit_large_patch16_384": {"in1k": Pretrained(_TIMM + "v0.1-vitjx/jx_vit_large_p16_384-b3be5167.pth")},
        "vit_large_patch32_384": {"in1k": Pretrained(_TIMM + "v0.1-vitjx/jx_vit_large_p32_384-9b920ba8.pth")},
        "vit_base_patch16_224_in21k": {
            "in21k": Pretrained(_TIMM + "v0.1-vitjx/jx_vit_base_patch16_224_in21k-e5005f0a.pth")
        },
        "vit_base_patch32_224_in21k": {
            "in21k": Pretrained(_TIMM + "v0.1-vitjx/jx_vit_base_patch32_224_in21k-8db57226.pth")
        },
        "vit_large_patch16_224_in21k": {
            "in21k": Pretrained(_TIMM + "v0.1-vitjx/jx_vit_large_patch16_224_in21k-606da67d.pth")
        },
        "vit_large_patch32_224_in21k": {
            "in21k": Pretrained(_TIMM + "v0.1-vitjx/jx_vit_large_patch32_224_in21k-9046d2e7.pth")
        },
        "vit_base_patch16_224_miil_in21k": {"in21k": Pretrained(_MIIL + "vit_base_patch16_224_in21k_miil.pth")},
        "vit_base_patch16_224_miil": {"in1k": Pretrained(_MIIL + "vit_base_patch16_224_1k_miil_84_4.pth")},
        "vit_deit_tiny_patch16_224": {"in1k": Pretrained(_DEIT + "deit_tiny_patch16_224-a1311bcf.pth", top1=72.2)},
        "vit_deit_small_patch16_224": {"in1k": Pretrained(_DEIT + "deit_small_patch16_224-cd65a155.pth", top1=79.9)},
        "vit_deit_base_patch16_224": {"in1k": Pretrained(_DEIT + "deit_base_patch16_224-b5f2ef4d.pth", top1=81.8)},
        "vit_deit_base_patch16_384": {"in1k": Pretrained(_DEIT + "deit_base_patch16_384-8de9b5d1.pth", top1=82.9)},
        "vit_deit_tiny_distilled_patch16_224": {
            "in1k": Pretrained(_DEIT + "deit_tiny_distilled_patch16_224-b40b3cf7.pth", top1=74.5)
        },
        "vit_deit_small_distilled_patch16_224": {
            "in1k": Pretrained(_DEIT + "deit_small_distilled_patch16_224-649709d9.pth", top1=81.2)
        },
        "vit_deit_base_distilled_patch16_224": {
            "in1k": Pretrained(_DEIT + "deit_base_distilled_patch16_224-df68dfff.pth", top1=83.4)
        },
        "vit_deit_base_distilled_patch16_384": {
            "in1k": Pretrained(_DEIT + "deit_base_distilled_patch16_384-d0272ac0.pth", top1=85.2)
        },
    }
)
"""Official model name -> tag -> file. The first tag is used by `pretrained=True`."""


def list_pretrained() -> list[str]:
    """Return all published files as `model.tag`, the default of each model first."""
    return [f"{name}.{tag}" for name, tags in PRETRAINED.items() for tag in tags]


def find_pretrained(name: str, tag: str | bool = True) -> Pretrained:
    """Return the published file of a model: by its tag, or (True) the model's default.

    Raises:
        ValueError: If the model is unknown, or nothing is published for it; the message lists the available ones.
    """
    model_config(name)
    tags = PRETRAINED.get(ALIASES.get(name, name), {})
    if not tags:
        raise ValueError(f"there are no published weights of {name}: use pretrained=False, or one of list_pretrained()")
    if tag is True:
        return next(iter(tags.values()))
    if tag not in tags:
        raise ValueError(f"no weights {tag!r} of {name}: pretrained is True or one of {', '.join(tags)}")
    return tags[str(tag)]
