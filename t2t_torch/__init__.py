"""The canonical PyTorch T2T-ViT. `state_dict` keys are exactly the official checkpoints'."""

from t2t_torch.registry import create_model, list_models

__all__ = ["create_model", "list_models"]
