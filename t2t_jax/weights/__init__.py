"""Weight files of this package: Orbax paths, digests, PyTorch files read as arrays, adaptation to other sizes."""
