"""States that are handed to what they do not belong to, or twice, are refused and stay as they were."""

import pytest
import torch

from kinema.errors import RequestError
from kinema.request import GenerationRequest

CALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "seed": 1}


def test_a_state_is_stepped_once(models):
    pipe = models("t2v").ours
    state = pipe.prepare(GenerationRequest("a red circle", **CALL))
    before = state.latents.clone()
    with pytest.raises(RequestError, match="given twice"):
        pipe.step([state, state])
    assert state.step_index == 0 and torch.equal(state.latents, before)


def test_a_state_belongs_to_its_pipeline(models):
    pipe, other = models("t2v").ours, models.fresh("t2v")
    state = other.prepare(GenerationRequest("a red circle", **CALL))
    with pytest.raises(RequestError, match="another pipeline"):
        pipe.step([state])
    assert state.step_index == 0
    other.run(state)
    with pytest.raises(RequestError, match="another pipeline"):
        pipe.finish(state)
    other.finish(state)


def test_every_video_has_a_file_of_its_own(models, tmp_path):
    pipe = models("t2v").ours
    state = pipe.prepare(GenerationRequest("a red circle", **CALL, num_videos_per_prompt=2))
    pipe.run(state)
    with pytest.raises(RequestError, match="given twice"):
        pipe.write(state, [tmp_path / "a.npy", tmp_path / "b" / ".." / "a.npy"])
    assert list(tmp_path.iterdir()) == []
