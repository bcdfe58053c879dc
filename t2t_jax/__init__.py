"""T2T-ViT in Flax NNX: the same files, classes and attribute names as `t2t_torch`, plus training code."""

from t2t_config.extras import explained

with explained("t2t_jax"):
    from t2t_jax.create import create_model
    from t2t_jax.hub import from_pretrained, push_to_hub, save_pretrained
    from t2t_jax.models.registry import list_models

__all__ = ["create_model", "from_pretrained", "list_models", "push_to_hub", "save_pretrained"]
