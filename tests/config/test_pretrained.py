"""The register of published weights: what the authors published, and nothing of our own."""

from __future__ import annotations

import re

import pytest

from t2t_config import MODELS, PRETRAINED, find_pretrained, list_pretrained, pretrained

RELEASES = "https://github.com/yitu-opensource/T2T-ViT/releases/download/main/"


def test_every_release_file_of_the_authors_is_listed_with_its_accuracy():
    """The tables of their README; the accuracy begins or ends the file's name."""
    found = {f"{name}.{tag}": file for name, tags in PRETRAINED.items() for tag, file in tags.items()}
    ours = {key: file for key, file in found.items() if file.url.startswith(RELEASES)}
    assert len(ours) == 15
    for key, file in ours.items():
        name = file.url.removeprefix(RELEASES)
        assert f"{file.top1:.1f}" in name
        assert key.partition(".")[0].removeprefix("t2t_vit_").removeprefix("t_") in re.findall(r"_(\d+)[._]", name) + (
            re.findall(r"-(\d+)_", name)
        )
        assert ("ViTt" in name) == key.startswith("t2t_vit_t_")


@pytest.mark.parametrize("name", [name for name in PRETRAINED if name.startswith("t2t_")])
def test_the_default_is_the_accuracy_of_the_model(name: str):
    assert find_pretrained(name).top1 == MODELS[name].top1


def test_sizes_of_the_files_are_never_guessed():
    """One is published, by others than the authors, with a digest."""
    files = {f"{name}.{tag}": file for name, tags in PRETRAINED.items() for tag, file in tags.items()}
    known = {name: file for name, file in files.items() if file.num_bytes or file.sha384 or file.measured}
    assert list(known) == ["t2t_vit_14.in1k"]
    file = known["t2t_vit_14.in1k"]
    assert file.num_bytes == 86_212_823
    assert re.fullmatch("98c8ae06[0-9a-f]{80}caeaf7a1", file.sha384 or "")
    assert file.measured is not None
    assert (file.measured.top1, file.measured.top5) == (81.44, 95.66)
    assert "Open Model Zoo" in file.measured.by


def test_what_is_known_of_a_file_is_asked_of_the_download(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(pretrained, "cached_download", lambda url, **known: asked.append((url, known)))
    for name in ("t2t_vit_14", "deit_tiny_patch16_224", "t2t_vit_7"):
        find_pretrained(name).download()
    ours = find_pretrained("t2t_vit_14")
    assert [known for _, known in asked] == [
        {"num_bytes": ours.num_bytes, "sha256": None, "sha384": ours.sha384},
        {"num_bytes": None, "sha256": "a1311bcf", "sha384": None},
        {"num_bytes": None, "sha256": None, "sha384": None},
    ]
    assert asked[0][0] == RELEASES + "81.5_T2T_ViT_14.pth.tar"


def test_every_file_comes_by_https():
    assert all(file.url.startswith("https://") for tags in PRETRAINED.values() for file in tags.values())


def test_names_that_carry_a_hash_are_checked_by_it():
    assert find_pretrained("deit_tiny_patch16_224").sha256 == "a1311bcf"
    assert find_pretrained("t2t_vit_14").sha256 is None


def test_tags_are_chosen_and_listed():
    assert find_pretrained("t2t_vit_14", "in1k_384").img_size == 384
    assert find_pretrained("t2t_vit_19", "cifar100").num_classes == 100
    assert {"t2t_vit_14.in1k", "t2t_vit_24.token_labeling", "vit_deit_tiny_patch16_224.in1k"} <= set(list_pretrained())
    with pytest.raises(
        ValueError, match="no weights 'in22k' of t2t_vit_14: pretrained is True or one of in1k, in1k_384"
    ):
        find_pretrained("t2t_vit_14", "in22k")


def test_models_without_published_weights_say_so():
    with pytest.raises(ValueError, match="no published weights of t2t_vit_14_se: use pretrained=False"):
        find_pretrained("t2t_vit_14_se")
    with pytest.raises(ValueError, match="unknown model 't2t_vit_13'"):
        find_pretrained("t2t_vit_13")
