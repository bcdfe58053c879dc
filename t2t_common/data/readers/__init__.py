"""Readers of storage formats: folders, shards (tar, ArrayRecord, TFRecord, Parquet), ILSVRC2012, IDX and CIFAR."""
