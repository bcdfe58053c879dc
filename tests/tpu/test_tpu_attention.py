"""The attention kernel as a program for TPUs, compiled by libtpu. Without libtpu these fail: make test-tpu."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from t2t_jax.aot.hlo import collectives
from t2t_jax.parallel.mesh import AXES, BATCH
from t2t_jax.ops.platform import traced_for, traced_on
from t2t_jax.ops.softmax import one_head_attention
from t2t_jax.aot.topology import tpu_topology

topology, dtype, tokens = sys.argv[1:]
mesh = topologies.make_mesh(tpu_topology(topology), (2, 2), AXES)
x = jax.ShapeDtypeStruct((8, int(tokens), 64), dtype, sharding=NamedSharding(mesh, BATCH))

def gradients(q, k, v, grad):
    found, backward = jax.vjp(one_head_attention, q, k, v)
    return found, *backward(grad)

with traced_for("tpu"):
    compiled = jax.jit(traced_on(mesh, gradients)).lower(x, x, x, x).compile()
text = compiled.as_text()
print(json.dumps({"kernels": text.count('custom_call_target="tpu_custom_call"'), "messages": len(collectives(text)),
                  "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes}))
"""


@pytest.mark.parametrize("topology", ["v5p:2x2x1", "v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float32", 4)])
@pytest.mark.parametrize("tokens", [3136, 9216])
def test_two_kernels_no_messages_and_no_scores(topology: str, dtype: str, size: int, tokens: int):
    """Forward and backward, each device its two images of 224 and 384 pixels."""
    from t2t_jax.compile import ENVIRONMENT

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, topology, dtype, str(tokens)],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert (found["kernels"], found["messages"]) == (2, 0)
    assert found["temporary_bytes"] < 2 * tokens * tokens * size  # that the scores would take
