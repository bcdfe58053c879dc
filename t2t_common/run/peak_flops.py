"""What a device can do at best, for MFU: peak TFLOP/s of matrix products with bfloat16 factors, dense.

Sources: cloud.google.com/tpu/docs (system architecture, "peak compute per chip") and NVIDIA's data sheets of each
GPU, without sparsity. MFU refers to bfloat16 whatever the run computes in, as in the literature.
"""

from __future__ import annotations

PEAK_TFLOPS = {
    # TPUs; JAX shows each of the two cores of a v2 or v3 chip (46 and 123 TFLOP/s) as a device.
    "TPU v2": 23.0,
    "TPU v3": 61.5,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    # GPUs; the names go on with form and memory ("NVIDIA A100-SXM4-80GB").
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
"""Device kind, as JAX and PyTorch name it, or its beginning -> TFLOP/s of one device."""


def peak_tflops(device_kind: str) -> float | None:
    """Peak of one device of this kind, by the longest name in PEAK_TFLOPS that it begins with; None if unknown.

    TPUs have to match in full: another generation's name begins alike.
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
    """Peak of all `devices` of a run together, in FLOP/s; `given` replaces the table's TFLOP/s of one."""
    each = peak_tflops(device_kind) if given is None else given
    return None if each is None else each * 1e12 * devices
