"""Ending a run from another thread: the step that runs is given up, the request stays as it was, others take theirs.

A transformer and a VAE that wait, and look at the flags as native calls do, stand in for long native calls.
"""

import threading
import time
from dataclasses import replace

import pytest
import torch

from kinema import GenerationRequest
from kinema.errors import Interrupted, RequestError
from kinema.ops.common.interrupts import StopFlag, check_interrupted, stopped_by

CALL = {
    **{"prompt": "a red circle", "height": 32, "width": 48, "num_frames": 5, "max_sequence_length": 24, "seed": 3},
    **{"num_inference_steps": 3, "guidance_scale": 3.0},
}
PATIENCE = 20.0  # seconds after which a test has failed


class Waiting:
    """A transformer whose forwards go on until they are interrupted or let go."""

    def __init__(self, transformer):
        self.transformer, self.patch_size = transformer, transformer.patch_size
        self.encode_context = transformer.encode_context
        self.begun, self.go = threading.Event(), threading.Event()
        self.rows, self.free = [], ()

    def __call__(self, latents, *given, **named):
        self.rows.append(latents.shape[0])
        self.begun.set()
        if latents.shape[0] not in self.free:
            wait(self.go)
        return self.transformer(latents, *given, **named)


def wait(go):
    deadline = time.monotonic() + PATIENCE
    while not go.is_set():
        check_interrupted()
        assert time.monotonic() < deadline, "nothing interrupted this"
        time.sleep(0.002)


@pytest.fixture
def waiting(models, monkeypatch):
    pipe = models("t2v").ours
    transformer = Waiting(pipe.components.transformer())
    monkeypatch.setattr(pipe.components, "transformer", lambda expert="transformer": transformer)
    return pipe, transformer


def prepared(pipe, **changes):
    return pipe.prepare(GenerationRequest(**{**CALL, **changes}))


def run(pipe, state):
    while not state.done:
        pipe.step([state])
    return state


def soon(action, after):
    """Do something in another thread, once `after` is set."""
    thread = threading.Thread(target=lambda: (after.wait(PATIENCE), action()))
    thread.start()
    return thread


def test_a_step_is_given_up_and_what_there_is_can_be_decoded(waiting, models):
    pipe, transformer = waiting
    state = prepared(pipe)
    before = state.latents.clone()
    thread = soon(lambda: setattr(state, "interrupt", True), transformer.begun)
    pipe.step([state])
    thread.join()
    assert state.done and state.interrupt and state.step_index == 0
    assert torch.equal(state.latents, before) and state.stats.forwards == 0
    output = pipe.finish(state)
    assert output.stats.interrupted and output.stats.steps == 0
    again = prepared(pipe)
    again.interrupt = True
    assert (pipe.finish(again).frames == output.frames).all()
    assert state.interrupt, "decoding does not make it a request that runs"


def test_others_that_shared_the_forward_take_their_step(waiting):
    pipe, transformer = waiting
    stopped, other = prepared(pipe), prepared(pipe, seed=8)
    transformer.free = (2,)
    thread = soon(lambda: setattr(stopped, "interrupt", True), transformer.begun)
    pipe.step([stopped, other])
    thread.join()
    assert (stopped.step_index, other.step_index) == (0, 1)
    assert transformer.rows == [4, 2], "the shared forward, and again what is left of it"
    alone = prepared(pipe, seed=8)
    pipe.step([alone])
    assert torch.equal(alone.latents, other.latents)
    assert other.stats.forwards == 2 and stopped.stats.forwards == 0


def test_an_interrupted_run_goes_on_where_it_was(waiting):
    pipe, transformer = waiting
    transformer.go.set()
    expected = run(pipe, prepared(pipe)).latents
    state = prepared(pipe)
    pipe.step([state])
    transformer.go.clear()
    transformer.begun.clear()
    thread = soon(lambda: setattr(state, "interrupt", True), transformer.begun)
    pipe.step([state])
    thread.join()
    assert state.done and state.step_index == 1
    transformer.go.set()
    state.interrupt = False
    assert not state.done and torch.equal(run(pipe, state).latents, expected)


class Closing:
    """A VAE whose decoding goes on until it is interrupted."""

    def __init__(self, vae):
        self.denormalize, self.begun = vae.denormalize, threading.Event()
        self.closed = False

    def decode_chunks(self, latents, *, tiling=None):
        try:
            yield torch.zeros(1, 3, 1, 32, 48)
            self.begun.set()
            wait(threading.Event())
        finally:
            self.closed = True


@pytest.mark.parametrize("twice", [False, True], ids=["once", "the second time"])
def test_decoding_ends_with_an_error(models, monkeypatch, twice):
    pipe = models("t2v").ours
    state = run(pipe, prepared(pipe))
    state.interrupt = twice
    vae = Closing(pipe.components.vae("decoder"))
    monkeypatch.setattr(pipe.components, "vae", lambda half: vae)
    thread = soon(lambda: setattr(state, "interrupt", True), vae.begun)
    with pytest.raises(Interrupted, match="decoding was interrupted"):
        pipe.finish(state)
    thread.join()
    assert vae.closed


def test_preparing_ends_with_an_error(models, monkeypatch):
    pipe, begun, stop = models("t2v").ours, threading.Event(), StopFlag()

    def encode(*given, **named):
        begun.set()
        wait(threading.Event())

    monkeypatch.setattr("kinema.families.wan.family.encode_prompts", encode)
    thread = soon(stop.set, begun)
    with pytest.raises(Interrupted, match="the request was interrupted"):
        pipe.prepare(GenerationRequest(**CALL), stop=stop)
    thread.join()


def test_a_flag_of_the_caller_ends_a_step_too(waiting):
    """And is no reason to begin the step again for ever."""
    pipe, transformer = waiting
    state, flag = prepared(pipe), StopFlag()
    thread = soon(flag.set, transformer.begun)
    with stopped_by(flag), pytest.raises(Interrupted):
        pipe.step([state])
    thread.join()
    assert not state.done and state.step_index == 0 and transformer.rows == [2]


def test_ctrl_c_in_a_forward_leaves_the_request_as_it_was(models, monkeypatch):
    pipe = models("t2v").ours
    expected = run(pipe, prepared(pipe)).latents
    state = prepared(pipe)
    pipe.step([state])

    def signalled(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("kinema.denoise.step.forward_together", signalled)
        with pytest.raises(KeyboardInterrupt):
            pipe.step([state])
    assert state.step_index == 1 and torch.equal(run(pipe, state).latents, expected)


def test_ctrl_c_between_latents_and_history_spoils_the_request(models, monkeypatch):
    """What is half written is not used afterwards: the oldest entry of the history has made room for the newest."""
    pipe = models("t2v").ours
    state = prepared(pipe)
    pipe.step([state])
    step = pipe.ops.scheduler_step

    def signalled(*given, **named):
        step(*given, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(pipe, "ops", replace(pipe.ops, scheduler_step=signalled))
        with pytest.raises(KeyboardInterrupt):
            pipe.step([state])
    for use in (lambda: pipe.step([state]), lambda: pipe.finish(state), lambda: next(pipe.decode_chunks(state))):
        with pytest.raises(RequestError, match="stopped in the middle of a step: prepare it anew"):
            state.interrupt = True
            use()


def test_an_unfinished_request_has_no_result(models):
    pipe = models("t2v").ours
    state = prepared(pipe)
    pipe.step([state])
    with pytest.raises(RequestError, match=r"has done 1 of 3 steps: call step\(\[state\]\).*or set state.interrupt"):
        pipe.finish(state)
    state.interrupt = True
    cut = pipe.finish(state)
    assert cut.stats.interrupted and cut.stats.steps == 1 and cut.stats.summary()["interrupted"] is True
    state.interrupt = False
    whole = pipe.finish(run(pipe, state))
    assert not whole.stats.interrupted and whole.stats.steps == 3
    assert not (whole.frames == cut.frames).all()


def test_an_interruption_after_the_last_step_changes_nothing(models):
    pipe = models("t2v").ours
    state = run(pipe, prepared(pipe))
    state.interrupt = True
    assert not pipe.finish(state).stats.interrupted


def test_a_call_is_interrupted_between_steps_from_another_thread(waiting):
    """And its callback is not told of a step that was not taken."""
    pipe, transformer = waiting
    transformer.go.set()
    seen, threads = [], []

    def callback(state, step, timestep, tensors):
        seen.append(step)
        transformer.go.clear()
        transformer.begun.clear()
        threads.append(soon(lambda: setattr(state, "interrupt", True), transformer.begun))

    output = pipe(**CALL, callback_on_step_end=callback)
    threads[0].join()
    assert seen == [0] and output.stats.steps == 1 and output.stats.interrupted
