"""Imported by tests that run pytest inside a test with `pytester`.

`pytester` forgets afterwards whatever the inner run imported first. PyTorch and JAX cannot be imported twice: a second
`torch._dynamo` registers its operators again, which raises, and with it fails every later test of the process. So all
that an inner run could be the first to import is imported here.
"""

import flax.linen
import torch._dynamo

import parity

__all__ = ["flax", "parity", "torch"]
