"""The platform that a program is traced for: some forms of the same numbers pay on a CPU and cost on a TPU."""

from __future__ import annotations

import jax

traced_for = jax.make_user_context(None)
"""`with traced_for("tpu"):` traces for TPUs wherever it runs; outside, for the default backend. What JAX has traced for
one platform it does not take for another."""


def on_cpu() -> bool:
    """Whether what is traced now is for a CPU."""
    return (traced_for.value or jax.default_backend()) == "cpu"
