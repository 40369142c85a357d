"""Recorded forwards: the same bits as forwards that make their calls, whatever comes between two replays.

What a recording reads is at fixed addresses. So freed memory is overwritten here before a replay, and a stale address
shows. Where there is a GPU its graphs are compared too.
"""

import gc
import threading
from contextlib import suppress
from functools import partial

import pytest
import torch

from kinema.denoise import replay
from kinema.denoise.batching import Rows, forward_together
from kinema.denoise.replay import Recording, Recordings, State
from kinema.errors import Interrupted
from kinema.families.wan.transformer import wan_rope
from kinema.ops.common import native
from kinema.ops.common.interrupts import Interrupted as NativeInterrupted
from kinema.ops.common.interrupts import StopFlag, stopped_by
from kinema.ops.common.program import NotRecordable, record
from kinema.ops.common.threads import using_threads
from kinema.request import GenerationRequest

randn = partial(torch.randn, dtype=torch.float32)
CALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 4, "seed": 1}

pytestmark = pytest.mark.skipif(not native.instruction_sets(), reason="the native kernels are not built")


@pytest.fixture
def parts(models):
    """A transformer, and what makes rows and contexts for it."""
    transformer = models("t2v").ours.components.transformer("transformer")
    assert transformer.ops.plan.backend("linear") == "cpu"
    generator = torch.Generator().manual_seed(3)

    def rows(context, step, size=6):
        latents = randn(context.rows, 4, 3, 4, size, generator=generator)
        return Rows(latents, torch.full((context.rows,), 900.0 - 100 * step, dtype=torch.float32), context)

    def context(count=1):
        return transformer.encode_context(randn(count, 16, 24, generator=generator))

    return transformer, rows, context


def made(recordings):
    """Recordings that there are."""
    return [r for known in recordings._known.values() for r in known.values() if isinstance(r, Recording)]


def plain(transformer, parts):
    return torch.cat(forward_together(transformer, parts))


def spoil_freed_memory():
    """Overwrite what was freed, in blocks of the sizes that ops allocate."""
    gc.collect()
    sizes = (16, 64, 256, 1024, 4096, 16384, 65536)
    blocks = [torch.full((size,), float("nan"), dtype=torch.float32) for size in sizes for _ in range(40)]
    del blocks


def check(transformer, recordings, given):
    """A replay gives what the calls give."""
    wanted = plain(transformer, given)
    spoil_freed_memory()
    got = recordings(transformer, given)
    assert got is not None and torch.equal(got, wanted)


@torch.no_grad()
def test_replays_give_what_forwards_give(parts):
    transformer, rows, context = parts
    recordings, prompt = Recordings(), context()
    assert recordings(transformer, [rows(prompt, 0)]) is None, "the first of a shape makes its calls"
    for step in range(1, 5):
        check(transformer, recordings, [rows(prompt, step)])
    assert len(made(recordings)) == 1


@torch.no_grad()
def test_prompts_share_a_recording(parts):
    transformer, rows, context = parts
    recordings = Recordings()
    recordings(transformer, [rows(context(), 0)])
    first, second = context(), context()
    for step, prompt in enumerate((first, second, first, first, context())):
        check(transformer, recordings, [rows(prompt, step)])
    assert len(made(recordings)) == 1


@torch.no_grad()
def test_requests_join_and_leave_a_batch(parts):
    transformer, rows, context = parts
    recordings, prompts = Recordings(), [context(), context(2), context()]
    for members in ((0,), (0, 1), (0, 1, 2), (2, 1), (1,), (0, 1, 2), (2,), (0, 2)):
        for step in range(2):
            given = [rows(prompts[i], step) for i in members]
            wanted = plain(transformer, given)
            got = recordings(transformer, given)
            assert got is None or torch.equal(got, wanted)
    assert len(made(recordings)) == 4, "for 1, 2, 3 and 4 rows"


@torch.no_grad()
def test_shapes_come_and_go_beyond_the_bound(parts, monkeypatch):
    transformer, rows, context = parts
    monkeypatch.setattr(replay, "MAX_RECORDINGS", 3)
    monkeypatch.setattr(replay, "MAX_SHAPES", 5)
    recordings, prompt = Recordings(), context()
    for turn in range(3):
        for size in range(4, 18, 2):
            for step in range(2):
                got = recordings(transformer, [given := rows(prompt, step, size)])
                assert got is None or torch.equal(got, plain(transformer, [given])), (turn, size)
            assert len(made(recordings)) <= 3
    (known,) = recordings._known.values()
    assert len(known) <= 5


@torch.no_grad()
def test_a_larger_call_between_two_replays(parts):
    """Its scratch and activations are not the recording's."""
    transformer, rows, context = parts
    recordings, prompt = Recordings(), context()
    for step in range(2):
        recordings(transformer, [rows(prompt, step)])
    plain(transformer, [rows(context(4), 0, 40)])
    transformer.release()
    wan_rope.cache_clear()
    check(transformer, recordings, [rows(prompt, 2)])


@torch.no_grad()
def test_another_number_of_threads_or_instruction_set_is_another_recording(parts):
    transformer, rows, context = parts
    recordings, prompt = Recordings(), context()
    for count in (1, 2, 1, 2):
        with using_threads(count):
            for step in range(2):
                got = recordings(transformer, [given := rows(prompt, step)])
                assert got is None or torch.equal(got, plain(transformer, [given]))
    assert len(made(recordings)) == 2


@torch.no_grad()
def test_two_threads_share_a_recording(parts):
    transformer, rows, context = parts
    recordings = Recordings()
    work = [[rows(prompt, step) for step in range(20)] for prompt in (context(), context(), context())]
    wanted = [[plain(transformer, [given]) for given in each] for each in work]
    wrong = []

    def run(given, results):
        with torch.no_grad():
            for one, result in zip(given, results, strict=True):
                got = recordings(transformer, [one])
                if got is not None and not torch.equal(got, result):
                    wrong.append(one)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(work, wanted, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and made(recordings)


@torch.no_grad()
def test_a_flag_ends_a_replay_and_the_next_one_is_whole(parts):
    transformer, rows, context = parts
    recordings, prompt, flag = Recordings(), context(), StopFlag()
    for step in range(2):
        recordings(transformer, [rows(prompt, step)])
    flag.set()
    with stopped_by(flag), pytest.raises(NativeInterrupted):
        recordings(transformer, [rows(prompt, 2)])
    check(transformer, recordings, [rows(prompt, 3)])


@torch.no_grad()
def test_calls_can_be_made_without_their_arithmetic(parts):
    """To measure what they cost besides."""
    transformer, rows, context = parts
    recordings, prompt = Recordings(), context()
    for step in range(2):
        recordings(transformer, [rows(prompt, step)])
    (recording,) = made(recordings)
    recording._output.fill_(float("nan"))
    recording._replay(skip_tasks=True)
    assert recording._output.isnan().all()
    check(transformer, recordings, [rows(prompt, 2)])


@torch.no_grad()
def test_threads_that_want_the_same_recording_make_it_once(parts, monkeypatch):
    transformer, rows, context = parts
    recordings, prompt, count = Recordings(), context(), []
    given = [rows(prompt, step) for step in range(4)]
    recordings(transformer, given[:1])
    together, new = threading.Barrier(3, timeout=60), Recordings._new
    monkeypatch.setattr(Recordings, "_new", lambda *given: count.append(1) or new(*given))

    def run(one):
        with torch.no_grad():
            together.wait()
            recordings(transformer, [one])

    threads = [threading.Thread(target=run, args=(one,)) for one in given[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == [1] and len(made(recordings)) == 1


@torch.no_grad()
def test_recordings_go_with_their_model(models):
    pipe = models.fresh("t2v")
    pipe("a red ball", **CALL)
    assert len(made(pipe.recordings)) == 1
    pipe.components._loaded.clear()
    gc.collect()
    assert made(pipe.recordings) == []


@torch.no_grad()
def test_what_torch_computes_is_not_recorded(parts, monkeypatch):
    transformer, rows, context = parts
    recordings, prompt = Recordings(), context()
    forward = type(transformer).forward
    monkeypatch.setattr(type(transformer), "forward", lambda *given, **more: forward(*given, **more) * 1.0)
    for step in range(3):
        assert recordings(transformer, [rows(prompt, step)]) is None
    (known,) = recordings._known.values()
    assert list(known.values()) == [State.REFUSED]
    x = torch.zeros(2, dtype=torch.float32)
    with pytest.raises(NotRecordable, match="torch computes aten::add"):
        record(lambda: x + 1)
    with pytest.raises(NotRecordable, match="no native call"):
        record(lambda: torch.empty(3, dtype=torch.float32))


@torch.no_grad()
def test_large_forwards_make_their_calls(parts, monkeypatch):
    transformer, rows, context = parts
    recordings, prompt = Recordings(), context()
    monkeypatch.setattr(replay, "MAX_TOKENS_RECORDED", 10)
    assert [recordings(transformer, [rows(prompt, step)]) for step in range(3)] == [None] * 3
    assert made(recordings) == []
    monkeypatch.undo()
    monkeypatch.setattr(replay, "MAX_BYTES_RECORDED", 100)
    assert [recordings(transformer, [rows(prompt, step)]) for step in range(3)] == [None] * 3
    assert made(recordings) == []


@pytest.mark.parametrize("given", [{}, {"guidance_scale": 1.0}, {"num_videos_per_prompt": 2}, {"num_frames": 1}])
def test_a_pipeline_gives_the_same_frames(models, given):
    pipe = models.fresh("t2v")
    recorded = [pipe("a red circle", **{**CALL, **given, "seed": s}).frames for s in (1, 2)]
    assert made(pipe.recordings)
    eager = models.fresh("t2v", replay=False)
    assert eager.recordings is None
    for seed, frames in zip((1, 2), recorded, strict=True):
        assert (frames == eager("a red circle", **{**CALL, **given, "seed": seed}).frames).all()


def test_a_pipeline_that_was_interrupted_goes_on(models):
    pipe = models.fresh("t2v")
    wanted = pipe("a red circle", **CALL).frames
    state = pipe.prepare(GenerationRequest("a red circle", **CALL))
    pipe.step([state])
    state.stop.set()
    before = state.latents.clone()
    with suppress(Interrupted):
        pipe.step([state])
    assert torch.equal(state.latents, before)
    state.interrupt = False
    pipe.run(state)
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
    tensors = {name: randn(shape, generator=generator) * 0.1 for name, shape in wan.tensor_shapes(config).items()}
    transformer = WanTransformer(config, Weights(tensors), build_ops(plan_ops(target_for("cuda", "fp32"))))
    prompt = transformer.encode_context(randn(1, 16, 24, generator=generator))
    recordings = Recordings()
    for step in range(4):
        latents = randn(1, 4, 3, 4, 6, generator=generator).cuda()
        given = Rows(latents, torch.tensor([900.0 - 100 * step], dtype=torch.float32), prompt)
        got = recordings(transformer, [given])
        assert (got is None) == (step == 0)
        if got is not None:
            torch.testing.assert_close(got, plain(transformer, [given]), rtol=1e-5, atol=1e-5)
