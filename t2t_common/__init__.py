"""What both model packages share and neither framework does: images to arrays, predictions in words, command lines.

NumPy, Pillow and tyro; imports neither PyTorch nor JAX. Sizes and recipes are in `t2t_config`.
"""
