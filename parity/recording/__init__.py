"""Calls of modules, recorded: inputs and outputs as trees of tensors, the layouts of their axes."""
