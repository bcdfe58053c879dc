import pytest

from t2t_common.weights.layer_decay import layer_scale


@pytest.mark.parametrize(
    ("name", "layers_above"),
    {
        "head.weight": 0,
        "aux_head.bias": 0,
        "blocks.3.mlp.fc1.weight": 1,
        "norm.weight": 1,
        "blocks.0.norm1.weight": 4,
        "tokens_to_token.project.weight": 5,
        "cls_token": 5,
        "pos_embed": 5,
    }.items(),
)
def test_each_layer_below_the_classifier_multiplies_the_rate(name: str, layers_above: int) -> None:
    assert layer_scale(name, depth=4, decay=0.5) == 0.5**layers_above
