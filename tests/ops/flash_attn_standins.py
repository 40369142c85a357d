"""Packages in the place of FlashAttention 2, 3 and 4: their functions' signatures, their demands, in fp32 on the CPU.

Signatures as in Dao-AILab/flash-attention at 0251105a: flash_attn/flash_attn_interface.py,
hopper/flash_attn_interface.py and flash_attn/cute/interface.py. Like the kernels of 3 and 4, which copy whole tiles,
they multiply what lies behind a length.
"""

from pathlib import Path

CORE = """
import torch

calls = []


def _demand(x, like):
    assert x.dtype == like.dtype and x.dtype in (torch.float16, torch.bfloat16), x.dtype
    assert x.ndim == 4 and x.stride(3) == 1 and x.shape[3] % 8 == 0 and x.shape[3] <= 256, (x.shape, x.stride())
    assert x.data_ptr() % 16 == 0 and all(s % 8 == 0 for s in x.stride()[:3]), x.stride()
    assert x.numel() > 0


def _attend(name, q, k, v, scale, lengths=None):
    for x in (q, k, v):
        _demand(x, q)
    assert k.shape == v.shape == (q.shape[0], k.shape[1], *q.shape[2:]), (q.shape, k.shape)
    assert scale is None or scale > 0
    calls.append((name, tuple(q.shape), k.shape[1], lengths is not None))
    scale = q.shape[3] ** -0.5 if scale is None else scale
    logits = torch.einsum("bsnd,brnd->bnsr", q.float(), k.float()) * scale
    if lengths is not None:
        assert lengths.dtype == torch.int32 and lengths.shape == (q.shape[0],) and lengths.is_contiguous()
        hidden = torch.arange(k.shape[1])[None] >= lengths[:, None]
        logits = torch.where(hidden[:, None, None], float("-inf"), logits)
    weights = torch.softmax(logits, -1)
    return torch.einsum("bnsr,brnd->bsnd", weights, v.float()).to(q.dtype).contiguous()
"""

TWO = """
def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False,
):
    assert not causal and dropout_p == 0.0 and tuple(window_size) == (-1, -1)
    return _attend("2", q, k, v, softmax_scale)


def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, cache_batch_idx=None,
    cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False,
):
    assert not causal and k is None and v is None and cache_seqlens is not None
    return _attend("2", q, k_cache, v_cache, softmax_scale, cache_seqlens)
"""

THREE = """
def flash_attn_func(
    q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
    window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
    sm_margin=0, return_attn_probs=False,
):
    assert not causal and qv is None
    return _attend("3", q, k, v, softmax_scale)


def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
    cache_batch_idx=None, cache_leftpad=None, page_table=None, cu_seqlens_q=None, cu_seqlens_k_new=None,
    max_seqlen_q=None, rotary_seqlens=None, q_descale=None, k_descale=None, v_descale=None, softmax_scale=None,
    causal=False, window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True,
    scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, return_softmax_lse=False,
):
    assert not causal and k is None and v is None and qv is None and cache_seqlens is not None
    return _attend("3", q, k_cache, v_cache, softmax_scale, cache_seqlens)
"""

FOUR = """
def flash_attn_func(
    q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None),
    learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, score_mod=None,
    score_mod_bwd=None, mask_mod=None, aux_tensors=None, aux_scalars=None, block_sparse_tensors=None,
    block_sparse_tensors_bwd=None, return_lse=False,
):
    assert not causal and qv is None
    return _attend("4", q, k, v, softmax_scale), None


def flash_attn_varlen_func(
    q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, min_seqlen_k=None,
    seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None, softmax_scale=None, causal=False,
    window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
    score_mod=None, mask_mod=None, block_sparse_tensors=None, aux_tensors=None, aux_scalars=None, return_lse=False,
    scheduler_metadata=None, seqlen_k_per_split=None, disable_scheduler_metadata=False,
):
    assert not causal and qv is None and cu_seqlens_q is None and cu_seqlens_k is None and seqused_k is not None
    return _attend("4", q, k, v, softmax_scale, seqused_k), None
"""

FILES = {
    2: ("flash_attn/__init__.py", TWO),
    3: ("flash_attn_interface.py", THREE),
    4: ("flash_attn/cute/__init__.py", FOUR),
}
MODULES = {2: "flash_attn", 3: "flash_attn_interface", 4: "flash_attn.cute"}


def write(folder: Path, versions: tuple[int, ...]) -> None:
    """The packages of these versions, below a folder of sys.path."""
    for version in versions:
        name, functions = FILES[version]
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(CORE + functions)
