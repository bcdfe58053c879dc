"""What weights say of themselves: there and back through every form, and enough to make the model again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2t_config import MODELS
from t2t_config.weights.card import from_config, model_card, to_config
from t2t_config.weights.metadata import create_arguments, describe, from_text, to_text
from tests.support.profiles import examples

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
KNOWN = {"recipe": {"lr": 1e-3, "scale": [0.08, 1.0]}, "metrics": {"top1": 99.2}, "parity": {"passed": True}}


@examples(20)
@given(st.dictionaries(st.text(), JSON))
def test_any_metadata_survive_as_text(metadata: dict[str, object]):
    texts = to_text(metadata)
    assert all(isinstance(text, str) for text in texts.values())
    assert from_text(texts) == metadata


def test_plain_words_stay_plain_words_as_text():
    assert to_text({"model": "t2t_vit_14", "img_size": [32, 64]}) == {"model": "t2t_vit_14", "img_size": "[32, 64]"}


@pytest.mark.parametrize("text", ["[" * 900 + "]" * 900, "(" * 900 + ",)" * 900, "((" * 60 + ",)" * 120, "-" * 100_000])
def test_brackets_within_brackets_stay_text(text: str):
    """Parsed, they could be neither compared nor written again."""
    assert from_text({"img_size": text}) == {"img_size": text}
    assert to_text({"img_size": text}) == {"img_size": text}


def test_python_literals_of_earlier_files_are_read():
    assert from_text({"img_size": "(32, 64)", "mean": "[0.5]", "x": "None"}) == {
        "img_size": (32, 64),
        "mean": [0.5],
        "x": None,
    }


@pytest.mark.parametrize("name", MODELS)
def test_config_json_there_and_back(name: str):
    metadata = describe(name, img_size=(64, 96), in_chans=1, num_classes=7) | KNOWN
    config = json.loads(json.dumps(to_config(metadata)))
    assert from_config(config) == metadata
    assert config["architecture"] == name
    assert config["pretrained_cfg"]["input_size"] == [1, 64, 96]
    assert config["pretrained_cfg"]["mean"] == [pytest.approx(sum(MODELS[name].mean) / 3)]


def test_the_description_makes_the_model_again():
    metadata = describe("deit_tiny_patch16_224", num_classes=7, qk_scale=0.3)
    assert create_arguments(metadata) == {
        "name": "vit_deit_tiny_patch16_224",
        "img_size": 224,
        "in_chans": 3,
        "num_classes": 7,
        "qk_scale": 0.3,
    }
    assert metadata["config"]["embed_dim"] == 192
    assert metadata["config"]["qk_scale"] == 0.3
    with pytest.raises(ValueError, match="do not say which model"):
        create_arguments({"img_size": 224})


@pytest.mark.parametrize("config", [{}, {"architecture": "x"}, [], {"architecture": "x", "model_args": 3}])
def test_another_config_json_is_refused(config: object):
    with pytest.raises(ValueError, match="not a configuration of a model of ours"):
        from_config(config)  # type: ignore[arg-type]


# ---- the card ----


def test_the_card_tells_recipe_metrics_and_parity():
    card = model_card(describe("t2t_vit_14") | KNOWN | {"license": "mit"}, "me/t2t")
    for line in ("| lr | 0.001 |", "| top1 | 99.2 |", "| passed | true |", "| embed_dim | 384 |", 'license: "mit"'):
        assert line in card.splitlines()
    assert "t2t_torch.from_pretrained('me/t2t')" in card
    assert "t2t_jax.from_pretrained('me/t2t')" in card


def test_the_card_claims_nothing_that_is_not_known():
    """Above all not the authors' accuracy."""
    card = model_card(describe("t2t_vit_14"), "me/t2t")
    assert "81.5" not in card
    assert card.count("Not recorded.") == 3
    assert "license" not in card


def test_a_stranger_writes_no_html_into_the_card():
    values = {"data": "<script>alert(1)</script>", "a|b": "x | y", "<b>": "[click](javascript:x) \x1b[31m\udce9 `"}
    card = model_card(describe("t2t_vit_14") | {"recipe": values}, "me/t2t")
    assert "| data | &lt;script&gt;alert(1)&lt;/script&gt; |" in card
    assert "| a\\|b | x \\| y |" in card
    assert "| &lt;b&gt; | [click]\\(javascript:x) \\x1b[31m\\udce9 \\` |" in card
    assert card.replace("\n", "").isprintable()
