"""The host's process is not ours: threads of a pipeline are its calls' alone, and two threads may share its parts."""

import os
import threading
import time

import numpy as np
import pytest
import torch

import kinema
from kinema import GenerationRequest
from kinema.ops.common.threads import thread_count

CALL = {
    **{"prompt": "a red circle", "height": 32, "width": 48, "num_frames": 5, "max_sequence_length": 24, "seed": 3},
    **{"num_inference_steps": 2, "guidance_scale": 3.0},
}
needs_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two numbers of threads need two cores")


@pytest.fixture
def seen(monkeypatch):
    """(what, native threads, torch's threads) wherever the pipeline computes."""
    found = []

    def spied(name):
        module, _, function = name.rpartition(".")
        original = getattr(__import__(module, fromlist=[function]), function)

        def spy(*given, **named):
            found.append((function, thread_count(), torch.get_num_threads()))
            return original(*given, **named)

        monkeypatch.setattr(name, spy)

    for name in ("families.wan.family.encode_prompts", "denoise.step.forward_together", "pipeline.postprocess"):
        spied(f"kinema.{name}")
    return found


@needs_cores
def test_the_number_holds_within_calls_and_nowhere_else(models, seen):
    torch.set_num_threads(1)
    pipe = models.fresh("t2v", threads=2)
    decode, counts = pipe._decode, []

    def watched(state):
        for chunk in decode(state):
            counts.append(torch.get_num_threads())
            yield chunk

    pipe._decode = watched
    assert torch.get_num_threads() == 1, "loading options change nothing yet"
    state = pipe.prepare(GenerationRequest(**CALL))
    assert torch.get_num_threads() == thread_count() == 1
    while not state.done:
        pipe.step([state])
        assert torch.get_num_threads() == thread_count() == 1
    for _ in pipe.decode_chunks(state):
        assert torch.get_num_threads() == thread_count() == 1, "between chunks the caller's number holds"
    pipe.finish(state)
    # of so small a clip torch computes little
    assert set(seen) == {("encode_prompts", 2, 1), ("forward_together", 2, 1), ("postprocess", 2, 1)}
    assert set(counts) == {1} and torch.get_num_threads() == 1


@needs_cores
def test_pipelines_with_other_numbers_keep_theirs(models, seen):
    torch.set_num_threads(1)
    one, two, default = (models.fresh("t2v", **given) for given in ({"threads": 1}, {"threads": 2}, {}))
    frames = []
    for pipe, expected in ((two, 2), (one, 1), (default, 1), (two, 2)):
        seen.clear()
        frames.append(pipe(**CALL).frames)
        assert {n for _, n, _ in seen} == {expected}
    assert all(np.array_equal(frames[0], other) for other in frames[1:])


@needs_cores
def test_two_numbers_at_the_same_time(models):
    """Each call has its own, in a thread of its own."""
    torch.set_num_threads(1)
    pipes = {number: models.fresh("t2v", threads=number) for number in (1, 2)}
    together, found = threading.Barrier(2, timeout=30), {}

    def generate(number):
        rows = pipes[number].components.transformer

        def transformer(expert="transformer"):
            together.wait()
            found.setdefault(number, set()).add((thread_count(), torch.get_num_threads()))
            return rows(expert)

        pipes[number].components.transformer = transformer
        pipes[number](**CALL)

    threads = [threading.Thread(target=generate, args=(number,)) for number in pipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {1: {(1, 1)}, 2: {(2, 1)}}  # native and torch's, which of so small a clip has little to do
    assert torch.get_num_threads() == 1


def test_an_error_gives_the_number_back(models, monkeypatch):
    torch.set_num_threads(1)
    pipe = models.fresh("t2v", threads=os.cpu_count())

    def fails(*given):
        raise MemoryError

    monkeypatch.setattr("kinema.denoise.step.forward_together", fails)
    with pytest.raises(MemoryError):
        pipe(**CALL)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("keep_loaded", [True, False])
def test_a_part_is_loaded_once_for_all_threads(models, monkeypatch, keep_loaded):
    from kinema.loading import components

    pipe, loads, expected = models.fresh("t2v", keep_loaded=keep_loaded), [], models("t2v").ours(**CALL).frames
    together, results = threading.Barrier(4, timeout=30), []

    build = components._built

    def slowly(record, files, ops):
        loads.append(files.component.name)
        time.sleep(0.05)
        return build(record, files, ops)

    monkeypatch.setattr(components, "_built", slowly)

    def use():
        together.wait()
        results.append(pipe(**CALL).frames)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(np.array_equal(frames, expected) for frames in results)
    if keep_loaded:
        assert sorted(loads) == ["text_encoder", "tokenizer", "transformer", "vae"]


def test_halves_of_a_vae_are_packed_once(models, monkeypatch):
    pipe, packed, together = models.fresh("t2v"), [], threading.Barrier(4, timeout=30)
    from kinema.families.wan.vae import autoencoder as wan

    pipe.components.part("vae")
    decoder = wan.Decoder

    def slowly(*given):
        packed.append(1)
        time.sleep(0.05)
        return decoder(*given)

    monkeypatch.setattr(wan, "Decoder", slowly)

    def use():
        together.wait()
        pipe.components.vae("decoder")

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(packed) == 1


def test_waiting_for_another_thread_to_load_is_loading(models, monkeypatch):
    """Not denoising: stages do not count it, and a thread that loads nothing has no such time."""
    pipe = models.fresh("t2v")
    assert pipe.components.loading() == 0.0
    holding, release = threading.Event(), threading.Event()

    def hold():
        with pipe.components._exclusively():
            holding.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(30)
    threading.Timer(0.1, release.set).start()
    pipe.components.part("tokenizer")
    thread.join()
    assert pipe.components.loading() >= 0.09
    idle = []
    watcher = threading.Thread(target=lambda: idle.append(pipe.components.loading()))
    watcher.start()
    watcher.join()
    assert idle == [0.0]


def test_what_a_part_alone_is_loaded_with_stays_with_the_caller(models):
    before = torch.get_num_threads()
    kinema.VideoPipeline.from_pretrained(models("t2v").folder, device="cpu", threads=os.cpu_count()).vae  # noqa: B018
    assert torch.get_num_threads() == before
