"""Small tensors on their way to a GPU, without waiting for it."""

from __future__ import annotations

import torch


def to_device(t: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """t on `device`: t itself if it is there. A GPU fetches it in its own time, so the host can run ahead of it."""
    if not t.is_cpu or torch.device(device).type != "cuda":
        return t.to(device)
    return t.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned copy until it has been read
