"""A training step as a CUDA graph does what the step does."""

import pytest
import torch

from kinema.ops import build_ops, plan_ops, target_for
from kinema.sample.batches import Batch
from kinema.sample.captured import CapturedLoss
from kinema.sample.recipe import Recipe
from kinema.sample.train_dit import Models, flow_loss, initial_dit
from kinema.sample.training import generator_for

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU on this machine")
CUDA = torch.device("cuda")


def random_batch(recipe: Recipe, frames: int, causal: bool, *key: int) -> Batch:
    generator = generator_for(7, *key)
    shape = (3, recipe.vae.z_dim, frames, 8, 8)
    return Batch(
        latents=torch.randn(shape, generator=generator),
        noise=torch.randn(shape, generator=generator),
        ids=torch.randint(3, recipe.text.vocab_size, (3, 16), generator=generator),
        lengths=torch.randint(1, 17, (3,), generator=generator),
        sigmas=torch.rand(3, frames, generator=generator),
        counts=torch.ones(3, frames),
        causal=causal,
    )


@pytest.mark.parametrize(("frames", "causal"), [(1, False), (5, False), (5, True)])
def test_loss_and_gradients_are_those_of_the_step(frames, causal):
    recipe = Recipe()
    ops = build_ops(plan_ops(target_for("cuda"), "reference"))
    generator = generator_for(5)
    start = {n: t + 0.02 * torch.randn(t.shape, generator=generator) for n, t in initial_dit(recipe).items()}
    parameters = {n: torch.nn.Parameter(t.to(CUDA)) for n, t in start.items()}

    def loss_of(batch):
        return flow_loss(Models(recipe, dict(parameters), ops), batch)

    captured = CapturedLoss(loss_of, list(parameters.values()), CUDA)
    for step in range(3):  # the graph must read what it is given now, parameters and batch
        batch = random_batch(recipe, frames, causal, step)
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.mul_(1.01)
        got = captured(batch)
        gradients = [p.grad.clone() for p in parameters.values()]
        for parameter in parameters.values():
            parameter.grad = None
        wanted = loss_of(batch.map(lambda tensor: tensor.to(CUDA)))
        wanted.backward()
        torch.testing.assert_close(got, wanted.detach())
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            torch.testing.assert_close(
                gradient, parameter.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
