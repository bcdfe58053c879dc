"""Formats that images are stored in: folders, tar and ArrayRecord shards, IDX and CIFAR files."""
