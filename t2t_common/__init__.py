"""What both model packages share and neither framework does: images to examples and arrays (`data`), what a run says
and where it lies, counts and predictions in words, command lines.

NumPy, Pillow, rich and tyro; imports neither PyTorch nor JAX. Sizes and recipes are in `t2t_config`.
"""

from t2t_config.extras import prepare_command, starts_command

if starts_command():  # python -m t2t_common...; the other packages have looked for more than this
    prepare_command("t2t_common")
