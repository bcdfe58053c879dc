"""The models, one file each; the same files as `t2t_torch.models`."""
