"""Weight files: safe unpickling, digests, plain tensors, adaptation to other sizes."""
