"""What is handed to a pipeline, a state or a part in place of what it wants: one clear error, and nothing changes."""

import copy
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from kinema.errors import KinemaError, KinemaWarning, RequestError
from kinema.media.video import Video
from kinema.media.writer import open_video
from kinema.request import GenerationRequest
from kinema.stream.continuation import extend

CALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "seed": 1, "max_sequence_length": 16}


@pytest.fixture
def pipe(models):
    return models("t2v").ours


@pytest.fixture
def state(pipe):
    return pipe.prepare(GenerationRequest("a red circle", **CALL, guidance_scale=3.0))


@pytest.fixture
def done(pipe, state):
    pipe.run(state)
    return state


WRONG = {
    "an array": (lambda like: like.numpy(), "wanted a tensor"),
    "a number": (lambda like: 3, "a int: wanted a tensor"),
    "None": (lambda like: None, "wanted a tensor"),
    "whole numbers": (lambda like: like.long(), "floating"),
    "complex": (lambda like: like + 0j, "floating"),
    "a mask": (lambda like: like > 0, "floating"),
    "sparse": (lambda like: like.to_sparse(), "layout"),
    "meta": (lambda like: like.to("meta"), "meta device"),
    "NaN": (lambda like: like / 0 * 0, "NaN"),
    "beyond fp32": (lambda like: like.double().abs() + 1e39, "infinity"),
    "too few axes": (lambda like: like[0], "wanted a tensor"),
    "empty": (lambda like: like[:0], "at least 1"),
    "two rows": (lambda like: torch.cat((like, like)), "wanted .*1, "),
    "other channels": (lambda like: torch.cat((like, like), dim=1 if like.ndim == 5 else 2), "wanted"),
}


@pytest.mark.parametrize("name", ["latents", "text", "negative"])
@pytest.mark.parametrize("case", WRONG)
def test_tensors_that_are_assigned_are_checked(state, name, case):
    make, said = WRONG[case]
    before = getattr(state, name)
    value = make(before)
    if value is None and name == "negative":
        pytest.skip("turns guidance off")
    kept = before.clone()
    with pytest.raises(RequestError, match=rf"^{name} (is|holds) .*{said}"):
        setattr(state, name, value)
    assert getattr(state, name) is before and torch.equal(before, kept)


def test_a_longer_clip_is_for_a_finished_run(pipe, state):
    longer = torch.cat((state.latents, state.latents), dim=2)
    with pytest.raises(RequestError, match=r"latents is a tensor of shape .*: wanted \(1, 4, 2, 4, 4\)"):
        state.latents = longer
    pipe.run(state)
    state.latents = longer
    assert pipe.finish(state).frames.shape[1] == 13


def test_other_floats_and_layouts_become_the_states_own(pipe, state):
    latents, text = state.latents.clone(), state.text.clone()
    pipe.run(state)
    wanted = state.latents
    again = pipe.prepare(state.request)
    again.latents = latents.double().transpose(3, 4).contiguous().transpose(3, 4).requires_grad_()
    again.text = text.double()
    assert again.latents.dtype == torch.float32 and not again.latents.requires_grad
    pipe.run(again)
    assert torch.equal(again.latents, wanted)


def test_without_negative_embeddings_guidance_is_off(pipe, state):
    state.negative = None
    assert not state.guided
    pipe.run(state)
    assert state.stats.forwards == 2


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda pipe, state: pipe.run(None), "state is a NoneType: wanted a RequestState"),
        (lambda pipe, state: pipe.run([state]), "state is a list"),
        (lambda pipe, state: pipe.run(state, 3), "on_step is 3: wanted a function"),
        (lambda pipe, state: pipe.prepare(None), "request is a NoneType: wanted a GenerationRequest"),
        (lambda pipe, state: pipe.prepare("a red circle"), "request is a str"),
        (lambda pipe, state: pipe.prepare(state.request, streamed=3), "streamed is 3: wanted True or False"),
        (lambda pipe, state: pipe.complete(None), "request is a NoneType"),
        (lambda pipe, state: pipe.complete(state.request, streamed="x"), "streamed is 'x'"),
        (lambda pipe, state: pipe.step(None), "states is a NoneType"),
        (lambda pipe, state: pipe.finish(None), "state is a NoneType"),
        (lambda pipe, state: pipe.decode_chunks(3), "state is a int"),
        (lambda pipe, state: pipe.write(None, "a.mp4"), "state is a NoneType"),
        (lambda pipe, state: extend(None, state, 3), "pipe is a NoneType"),
        (lambda pipe, state: extend(pipe, None, 3), "state is a NoneType"),
        (lambda pipe, state: extend(pipe, state, "x"), "latent_frames is 'x': wanted a whole number"),
        (lambda pipe, state: extend(pipe, state, 2.5), "latent_frames is 2.5"),
        (lambda pipe, state: extend(pipe, state, 3, window="x"), "window is 'x'"),
        (lambda pipe, state: extend(pipe, state, 3, window=None), "window is None"),
        (lambda pipe, state: pipe.to("nowhere"), "moved to 'nowhere': wanted a device"),
        (lambda pipe, state: pipe.to(torch.zeros(1)), "wanted a device"),
        (lambda pipe, state: pipe.to(dtype="fp16"), "dtype is a str: wanted a dtype"),
        (lambda pipe, state: pipe.to("cuda:1"), "on cpu, not on 'cuda:1': choose it while loading"),
    ],
)
def test_a_call_is_refused(pipe, state, call, said):
    with pytest.raises(RequestError, match=said):
        call(pipe, state)
    assert state.step_index == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"paths": None}, "path is None: wanted a string or a pathlib.Path"),
        ({"paths": b"a.npy"}, "path is b'a.npy': wanted a string"),
        ({"paths": [b"a.npy"]}, "path is b'a.npy'"),
        ({"paths": 3}, "path is 3"),
        ({"paths": [None]}, "path is None"),
        ({"paths": {"a.npy"}}, "path is {'a.npy'}"),
        ({"paths": []}, "0 paths for 1 videos"),
        ({"fps": "x"}, "fps is 'x': wanted a number of 0.01 to 1000"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": True}, "fps is True"),
        ({"fps": [8]}, "fps is"),
        ({"on_frames": 3}, "on_frames is 3: wanted a function"),
    ],
)
def test_what_cannot_be_written_is_refused_before_it_is_decoded(pipe, done, tmp_path, given, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(type(pipe), "decode_chunks", lambda *given: pytest.fail("decodes"))
    with pytest.raises(RequestError, match=said):
        pipe.write(done, **{"paths": "a.npy", **given})
    assert list(tmp_path.iterdir()) == []


def test_a_video_is_not_saved_to_bytes():
    video = Video(np.zeros((1, 8, 8, 3), np.uint8), Fraction(16))
    for path in (b"a.npy", None, 3):
        for write in (video.save, lambda path: open_video(path, 16)):
            with pytest.raises(RequestError, match="output path is"):
                write(path)


def test_each_way_of_finishing_has_figures_of_its_own(pipe, done, tmp_path):
    first = pipe.finish(done).stats
    kept = copy.deepcopy(first.seconds)
    second = pipe.finish(done).stats
    written = pipe.write(done, tmp_path / "a.npy")
    again = pipe.write(done, Path(tmp_path / "b.npy"))
    assert first.seconds == kept and len({id(stats) for stats in (first, second, written, again)}) == 4
    assert {"denoise", "decode"} <= set(second.seconds) and "decode and write" not in second.seconds
    assert "decode" not in written.seconds and written.steps == again.steps == 2
    for stats in (second, written, again):
        assert stats.seconds["denoise"] == first.seconds["denoise"] and stats.forwards == first.forwards
    assert set(written.seconds) == set(again.seconds) and written.seconds != again.seconds


@pytest.mark.parametrize("case", ["an array", "a number", "None", "meta", "sparse", "complex"])
def test_parts_refuse_what_is_no_tensor(pipe, state, case):
    make, _ = WRONG[case]
    video = torch.zeros(1, 3, 1, 32, 32)
    ids = torch.ones(1, 4, dtype=torch.int64)
    for part, given in (
        (pipe.vae.decode, (make(state.latents),)),
        (pipe.vae.encode, (make(video),)),
        (pipe.transformer, (make(state.latents), torch.ones(1), state.text)),
        (pipe.transformer, (state.latents, torch.ones(1), make(state.text))),
        (pipe.text_encoder, (make(ids.float()),)),
        (pipe.text_encoder, (ids, make(ids.float()) if case != "None" else 3)),
    ):
        with pytest.raises(RequestError, match="wanted"):
            part(*given)


def test_parts_refuse_other_numbers(pipe, state):
    with pytest.raises(RequestError, match="tiling is a int: wanted a Tiling"):
        pipe.vae.decode(state.latents, tiling=3)
    with pytest.raises(RequestError, match=r"input_ids are a tensor of torch\.float32"):
        pipe.text_encoder(torch.ones(1, 4))
    with pytest.raises(RequestError, match=r"input_ids have shape \(0, 4\)"):
        pipe.text_encoder(torch.ones(0, 4, dtype=torch.int64))


@pytest.mark.parametrize("dtype", ["float16", torch.float64, {"default": torch.float16}, 16])
def test_a_torch_dtype_is_one_of_three(models, dtype):
    with pytest.raises(RequestError, match=r"torch_dtype is .*: wanted torch.float32.* or give precision="):
        type(models("t2v").ours).from_pretrained(models("t2v").folder, torch_dtype=dtype)


@pytest.mark.parametrize(("precision", "advised"), [("fp32", False), ("bf16", True)])
def test_fp32_is_advised_where_it_is_not_in_use(models, precision, advised):
    pipe = models.fresh("t2v", precision=precision)
    state = pipe.prepare(GenerationRequest("a red circle", **CALL))
    pipe.run(state)
    state.latents[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(KinemaError, match="hold NaN or infinity") as refused:
        pipe.finish(state)
    assert ("precision='fp32'" in str(refused.value)) is advised


def test_a_state_is_shown_in_a_line(state):
    assert repr(state) == "RequestState(latents 1x4x2x4x4, 0 of 2 steps done)"


def test_a_mistyped_attribute_is_refused(models):
    pipe = models.fresh("t2v")
    with pytest.raises(AttributeError, match=r"VideoPipeline has no 'transfomer': did you mean transformer\?"):
        pipe.transfomer = 3
    with pytest.raises(AttributeError, match=r"VideoPipeline has no 'speed'$"):
        pipe.speed = 3


def test_a_text_that_is_cut_is_said(pipe):
    words = "a red circle moving left " * 10
    with pytest.warns(KinemaWarning, match=r"a text has 5\d tokens, and 16 are read"):
        pipe.prepare(GenerationRequest(words, **CALL))


def test_a_seed_of_minus_one_is_a_new_one():
    assert GenerationRequest("a", seed=-1).seed is None
    with pytest.raises(RequestError, match="seed is -2"):
        GenerationRequest("a", seed=-2)
