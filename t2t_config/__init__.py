"""Sizes, recipes and the names in checkpoint files, once for both frameworks. Standard library only."""

from t2t_config.models import ALIASES, MODELS, ModelConfig, list_models, model_arguments, model_config
from t2t_config.recipes import RECIPES, Recipe, describe_recipe, epoch_lr, recipe

__all__ = [
    "ALIASES",
    "MODELS",
    "RECIPES",
    "ModelConfig",
    "Recipe",
    "describe_recipe",
    "epoch_lr",
    "list_models",
    "model_arguments",
    "model_config",
    "recipe",
]
