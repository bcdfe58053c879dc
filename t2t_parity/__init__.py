"""T2T-ViT in `parity`: its models by name, conversion of weight files, training side by side, and known mistakes that
the check has to detect.
"""
