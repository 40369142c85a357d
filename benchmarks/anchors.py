"""Published speeds of others' kernels on the GPUs of gpus.py, to compare kinema's with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Anchor:
    """rate: tera-operations per second, or terabytes per second for a kernel limited by memory (by: "memory")."""

    op: str
    gpu: str
    precision: str
    implementation: str
    shape: str
    rate: float
    by: str
    source: str


def _attention(gpu: str, implementation: str, shape: str, rate: float, source: str) -> Anchor:
    return Anchor("attention", gpu, "bf16", implementation, shape, rate, "products", source)


ANCHORS = (
    _attention("RTX 4090", "FlashAttention-2", "D = 128, long S, 16 bits", 160.0, "plots of arXiv 2505.21136"),
    _attention("H100", "FlashAttention-3", "4 × 48 heads, D = 128, S = 8192", 639.0, "meta-pytorch/tritonbench#1254"),
    _attention("H100", "Triton's tutorial", "D = 128, S = 16384, fp16", 477.0, "pytorch/benchmark#2391"),
    _attention("B200", "FlashAttention-4", "D = 128, S = 16384", 1330.0, "Dao-AILab/flash-attention#2605"),
    Anchor("linear", "H100", "bf16", "ThunderKittens", "large", 855.0, "products", "HazyResearch/ThunderKittens"),
    Anchor(
        "linear", "B200", "bf16", "ThunderKittens", "large", 1050.0, "products",
        "HazyResearch/ThunderKittens, kernels/gemm/educational_b200",
    ),
    Anchor(
        "norm_modulate", "H100", "fp32", "QuACK, RMSNorm", "C = 65536", 3.03, "memory", "Dao-AILab/quack README",
    ),
    Anchor(
        "norm_modulate", "H100", "fp8", "sglang, RMSNorm to fp8", "16384 × 4096", 2.14, "memory",
        "sgl-project/sglang#32994",
    ),
)  # fmt: skip
