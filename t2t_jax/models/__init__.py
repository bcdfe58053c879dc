"""Models, one per file; the files mirror those of `t2t_torch.models`."""
