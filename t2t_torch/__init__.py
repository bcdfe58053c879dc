"""Reference PyTorch implementation of T2T-ViT. `state_dict` keys are identical to those of the official checkpoints."""

from t2t_config.extras import explained

with explained("t2t_torch"):
    from t2t_torch.checkpoint import LoadReport, load_checkpoint, read_state_dict, save_checkpoint
    from t2t_torch.create import create_model
    from t2t_torch.hub import from_pretrained, push_to_hub, save_pretrained
    from t2t_torch.models.registry import list_models

__all__ = [
    "LoadReport",
    "create_model",
    "from_pretrained",
    "list_models",
    "load_checkpoint",
    "push_to_hub",
    "read_state_dict",
    "save_checkpoint",
    "save_pretrained",
]
