"""Captured forwards: what is recorded reads its own buffers only, and starts anew when anything else changes.

A recorder that runs the body again stands in for a CUDA graph; where there is a GPU, the real one is compared too.
"""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from kinema.denoise.batching import Rows
from kinema.denoise.cuda_graph import CapturedForward, record_on_gpu
from kinema.families.wan.transformer import WanBlock, wan_rope
from kinema.request.generation import GenerationRequest


class Replayer:
    """Records a body by keeping it; counts.

    A graph reads the tables of the rotation at the addresses that they had: a replay is refused once one is freed.
    """

    def __init__(self):
        self.recorded = 0
        self.replayed = 0
        self.tables = []

    def __call__(self, body):
        self.recorded += 1
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(WanBlock, "__call__", self._noting(WanBlock.__call__))
            body()
        assert self.tables

        def replay():
            self.replayed += 1
            assert all(table() is not None for table in self.tables), "the graph reads a table that is freed"
            body()

        return replay

    def _noting(self, run):
        def noting(block, x, modulation, rope, *rest):
            self.tables += [weakref.ref(table) for table in (rope.cos, rope.sin)]
            return run(block, x, modulation, rope, *rest)

        return noting


@pytest.fixture
def parts(models):
    pipe = models("t2v").ours
    transformer = pipe.components.transformer("transformer")
    generator = torch.Generator().manual_seed(3)

    def rows(context, step):
        latents = torch.randn(1, 4, 3, 4, 6, generator=generator)
        return Rows(latents, torch.tensor([900.0 - 100 * step]), context)

    def context():
        return transformer.encode_context(torch.randn(1, 16, 24, generator=generator))

    return transformer, rows, context


def plain(transformer, rows):
    return transformer(rows.latents, rows.timesteps, rows.context)


@torch.no_grad()
def test_replays_give_what_forwards_give(parts):
    transformer, rows, context = parts
    recorder, prompt = Replayer(), context()
    captured = CapturedForward(recorder)
    for step in range(5):
        given = rows(prompt, step)
        wanted = plain(transformer, given)
        got = captured(transformer, given).clone()
        given.latents.fill_(float("nan"))  # a graph that read the caller's tensors would show it
        assert torch.equal(got, wanted)
    assert (recorder.recorded, recorder.replayed) == (1, 4)


@torch.no_grad()
@pytest.mark.parametrize("change", ["context", "shape", "forget"])
def test_a_change_starts_anew(parts, change):
    transformer, rows, context = parts
    recorder, prompt = Replayer(), context()
    captured = CapturedForward(recorder)
    for step in range(3):
        captured(transformer, rows(prompt, step))
    if change == "forget":
        captured.forget()
    given = rows(context() if change == "context" else prompt, 3)
    if change == "shape":
        given = replace(given, latents=given.latents[..., :4].contiguous())
    before = recorder.replayed
    assert torch.equal(captured(transformer, given), plain(transformer, given))
    assert recorder.replayed == before


@torch.no_grad()
def test_the_rotation_lives_as_long_as_what_was_recorded(parts):
    """Requests of eight other sizes push it out of the cache that the transformer has it from."""
    transformer, rows, context = parts
    recorder, prompt = Replayer(), context()
    captured = CapturedForward(recorder)
    for step in range(2):
        captured(transformer, rows(prompt, step))
    for width in range(8, 24, 2):
        transformer.rope(torch.empty(1, 4, 3, 4, width))
    given = rows(prompt, 3)
    assert torch.equal(captured(transformer, given), plain(transformer, given))
    assert recorder.recorded == 1
    captured.forget()
    wan_rope.cache_clear()
    gc.collect()
    assert all(table() is None for table in recorder.tables), "and no longer"


def test_a_pipeline_replays_on_request(models, monkeypatch):
    """The same frames, with every forward but the first replayed."""
    pipe = models("t2v").ours
    call = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 4, "seed": 1}
    wanted = pipe("a red circle", **call).frames
    recorder = Replayer()
    monkeypatch.setattr(pipe, "cuda_graphs", True)
    state = pipe.prepare(GenerationRequest("a red circle", **call))
    state.captured = CapturedForward(recorder)
    while not state.done:
        pipe.step([state])
    assert (recorder.recorded, recorder.replayed) == (1, 3)
    assert (pipe.finish(state).frames == wanted).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_a_real_graph_gives_the_same(parts):
    pytest.importorskip("triton")
    from kinema.checkpoints import Weights
    from kinema.families.wan import config as wan
    from kinema.families.wan.transformer import WanTransformer
    from kinema.ops import build_ops, plan_ops, target_for

    config = parts[0].config
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in wan.tensor_shapes(config).items()}
    transformer = WanTransformer(config, Weights(tensors), build_ops(plan_ops(target_for("cuda", "fp32"))))
    prompt = transformer.encode_context(torch.randn(1, 16, 24, generator=generator))
    captured = CapturedForward(record_on_gpu)
    for step in range(4):
        latents = torch.randn(1, 4, 3, 4, 6, generator=generator).cuda()
        given = Rows(latents, torch.tensor([900.0 - 100 * step]), prompt)
        wanted = plain(transformer, given)
        torch.testing.assert_close(captured(transformer, given), wanted, rtol=1e-5, atol=1e-5)
