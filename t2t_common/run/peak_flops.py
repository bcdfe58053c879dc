"""Peak TFLOP/s of devices for dense bfloat16 matrix multiplication, used to compute MFU.

Sources: cloud.google.com/tpu/docs (system architecture, "peak compute per chip") and NVIDIA's data sheet for each GPU,
without sparsity. As in the literature, MFU is relative to the bfloat16 peak whatever the dtype of the run.
"""

from __future__ import annotations

PEAK_TFLOPS = {
    # TPUs; on v2 and v3, JAX exposes each of the two cores of a chip (46 and 123 TFLOP/s) as a device.
    "TPU v2": 23.0,
    "TPU v3": 61.5,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    # GPUs; actual names may end in form factor and memory size ("NVIDIA A100-SXM4-80GB").
    "Tesla T4": 65.0,  # float16
    "Tesla V100": 125.0,  # float16, SXM2
    "NVIDIA A10": 125.0,
    "NVIDIA A10G": 70.0,
    "NVIDIA A100": 312.0,
    "NVIDIA H100": 989.4,  # SXM
    "NVIDIA H100 PCIe": 756.5,
    "NVIDIA H200": 989.4,
    "NVIDIA L4": 121.0,
    "NVIDIA L40S": 362.05,
    "NVIDIA GeForce RTX 3090": 71.0,
    "NVIDIA GeForce RTX 4090": 165.2,
}
"""Device kind as reported by JAX or PyTorch, or a prefix of it -> TFLOP/s of one device."""


def peak_tflops(device_kind: str) -> float | None:
    """Return the peak of one device, from the longest matching prefix in PEAK_TFLOPS; None if unknown.

    TPU names must match exactly, since the name of one generation can be a prefix of another's.
    """
    if device_kind.startswith("TPU"):
        return PEAK_TFLOPS.get(device_kind)
    known = [
        name
        for name in PEAK_TFLOPS
        if device_kind.startswith(name) and not device_kind[len(name) : len(name) + 1].isalnum()
    ]
    return PEAK_TFLOPS[max(known, key=len)] if known else None


def run_peak(device_kind: str, devices: int, given: float | None = None) -> float | None:
    """Return the total peak of a run's `devices` in FLOP/s; `given` (TFLOP/s of one device) overrides the table."""
    each = peak_tflops(device_kind) if given is None else given
    return None if each is None else each * 1e12 * devices
