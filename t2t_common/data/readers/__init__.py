"""Readers of storage formats: folders, tar and ArrayRecord shards, IDX and CIFAR files."""
