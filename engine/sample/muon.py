"""Muon: momentum whose every step is an orthogonal matrix. For matrices it learns in half of AdamW's steps or less.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". A gradient of few large directions
would leave the others nearly untouched; with its singular values set to about 1, all of them move.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

# The quintic whose iteration takes singular values in (0, 1] near 1 fastest (Jordan et al.); five times are enough.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """[n, rows, columns] → the same with singular values of about 1 (0.7 to 1.2), by Newton-Schulz iterations."""
    a, b, c = _QUINTIC
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + torch.baddbmm(square, square, square, beta=b, alpha=c) @ x
    orthogonal: torch.Tensor = x if wide else x.mT
    return orthogonal


class Muon(torch.optim.Optimizer):
    """Parameters of two or more axes, taken as [first axis, all others]: the kernels of convolutions too.

    A step is lr · √max(1, rows/columns) · the orthogonalized Nesterov momentum, after a decay of lr · weight_decay.
    """

    def __init__(
        self, params: Iterable[torch.Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shape = (parameter.shape[0], parameter[0].numel())
                    by_shape.setdefault(shape, []).append((parameter, parameter.grad))
            for (rows, columns), pairs in by_shape.items():
                parameters, gradients = [p for p, _ in pairs], [g for _, g in pairs]
                momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
                step = orthogonalized(torch.stack([n.reshape(rows, columns) for n in nesterov]))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                size = -group["lr"] * max(1.0, rows / columns) ** 0.5
                steps = [s.view_as(p) for s, p in zip(step.unbind(), parameters, strict=True)]
                torch._foreach_add_(parameters, steps, alpha=size)
