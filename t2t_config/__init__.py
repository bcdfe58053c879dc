"""Model sizes, recipes, published weights and checkpoint names, shared by both frameworks. Standard library only."""

from t2t_config.extras import end_at_ctrl_c, starts_command

if starts_command():
    end_at_ctrl_c()

from t2t_config.models import ALIASES, MODELS, ModelConfig, list_models, model_arguments, model_config
from t2t_config.pretrained import PRETRAINED, Pretrained, find_pretrained, list_pretrained
from t2t_config.recipes import (
    RECIPES,
    ExpectedClasses,
    FromData,
    Recipe,
    describe_recipe,
    epoch_lr,
    fit_to_data,
    recipe,
    recipe_changes,
)
from t2t_config.weights.download import cached_download
from t2t_config.weights.metadata import ModelSpec

__all__ = [
    "ALIASES",
    "MODELS",
    "PRETRAINED",
    "RECIPES",
    "ExpectedClasses",
    "FromData",
    "ModelConfig",
    "ModelSpec",
    "Pretrained",
    "Recipe",
    "cached_download",
    "describe_recipe",
    "epoch_lr",
    "find_pretrained",
    "fit_to_data",
    "list_models",
    "list_pretrained",
    "model_arguments",
    "model_config",
    "recipe",
    "recipe_changes",
]
