"""Attention in e4m3 by cuDNN, through the wheel nvidia-cudnn-frontend: torch itself does not offer it."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch

E4M3, TOP = torch.float8_e4m3fn, 448.0  # the format's largest number
SCALAR = [1, 1, 1, 1]


class CudnnAttention:
    """softmax(q·kᵀ/√D)·v with one scale for each of q, k, v and the result, quantised beforehand.

    q, k, v: [B, N, S, D]. A call gives [B, S, N·D] in e4m3, the only output dtype that cuDNN has on Hopper; `read`
    converts it to bf16. largest: about the largest value of the result.
    """

    def __init__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, largest: float) -> None:
        cudnn: Any = importlib.import_module("cudnn")
        e4m3, fp32 = cudnn.data_type.FP8_E4M3, cudnn.data_type.FLOAT
        scales = {name: TOP / float(x.abs().amax()) for name, x in (("q", q), ("k", k), ("v", v))}
        self._scale = TOP / 2 / largest  # half of the range, in case other values are larger than the checked ones
        data = {name: (x.float() * scales[name]).to(E4M3) for name, x in (("q", q), ("k", k), ("v", v))}
        factors = {f"descale_{name}": 1 / scale for name, scale in scales.items()}
        factors |= {"descale_s": 1 / TOP, "scale_s": TOP, "scale_o": self._scale}  # weights are at most 1

        graph: Any = cudnn.pygraph(io_data_type=e4m3, intermediate_data_type=fp32, compute_data_type=fp32)
        named = {
            name: graph.tensor(name=name, dim=list(x.shape), stride=list(x.stride()), data_type=e4m3)
            for name, x in data.items()
        }
        scalars = {name: graph.tensor(name=name, dim=SCALAR, stride=SCALAR, data_type=fp32) for name in factors}
        o, _, largest_weight, largest_value = graph.sdpa_fp8(
            **named, **scalars, generate_stats=False, attn_scale=1 / math.sqrt(q.shape[-1]), name="attention"
        )
        batch, heads, tokens, head_dim = q.shape
        self._result = torch.empty(batch, tokens, heads, head_dim, dtype=E4M3, device=q.device)
        y = self._result.transpose(1, 2)
        o.set_output(True).set_dim(list(y.shape)).set_stride(list(y.stride())).set_data_type(e4m3)
        largest_weight.set_output(False).set_dim(SCALAR).set_stride(SCALAR)
        largest_value.set_output(True).set_dim(SCALAR).set_stride(SCALAR).set_data_type(fp32)
        graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        self._graph = graph
        self._workspace = torch.empty(max(1, graph.get_workspace_size()), dtype=torch.uint8, device=q.device)
        self._operands = {
            **{named[name]: x for name, x in data.items()},
            **{
                scalars[name]: torch.full(SCALAR, value, dtype=torch.float32, device=q.device)
                for name, value in factors.items()
            },
            o: y,
            largest_value: torch.empty(SCALAR, dtype=torch.float32, device=q.device),
        }

    def __call__(self) -> torch.Tensor:
        self._graph.execute(self._operands, self._workspace)
        return self._result.flatten(2)

    def read(self, y: torch.Tensor) -> torch.Tensor:
        return (y.float() / self._scale).bfloat16()
