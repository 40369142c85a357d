"""What a newcomer is told: words that the sample model does not know, and clips that it was not trained for."""

import warnings

import pytest

from kinema import GenerationRequest, VideoPipeline
from kinema.cli.main import main
from kinema.errors import KinemaWarning

TRAINED = {"height": 64, "width": 64, "num_frames": 17, "num_inference_steps": 1, "seed": 0}


@pytest.fixture(scope="module")
def pipe():
    return VideoPipeline.from_pretrained("sample", device="cpu")


def test_unknown_words_are_named_beside_words_that_are_known(pipe):
    with pytest.warns(KinemaWarning, match="does not know dragon, fliying; it knows 79 words: .*red.* and .* more"):
        pipe.prepare(GenerationRequest("a red dragon, fliying left, a dragon", **TRAINED))
    with pytest.warns(KinemaWarning, match="it knows 79 words: circle,"):
        pipe.prepare(GenerationRequest("a red cirkle", **TRAINED))


def test_a_prompt_of_known_words_warns_of_nothing(pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.prepare(GenerationRequest("A handwritten 7 in green, moving to the left.", **TRAINED))
        pipe.prepare(GenerationRequest("", **{**TRAINED, "num_frames": 1}))


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        ({"height": 32}, "trained on clips of 64x64 pixels, asked for 64x32"),
        ({"num_frames": 33}, "trained on clips of at most 17 frames, asked for 33"),
    ],
)
def test_a_clip_that_it_was_not_trained_for_says_so(pipe, clip, said):
    with pytest.warns(KinemaWarning, match=said):
        pipe.prepare(GenerationRequest("a red circle", **{**TRAINED, **clip}))


def test_the_command_line_says_it_in_a_line(tmp_path, capsys):
    command = ["generate", "a red dragon", "-o", str(tmp_path / "a.npy"), "--steps", "1", "--num-frames", "5"]
    assert main(command) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kinema: warning: this model does not know dragon; it knows 79 words: ")


def test_large_vocabularies_are_not_listed(pipe):
    tokenizer = pipe.components.part("tokenizer")
    assert len(tokenizer.words()) == 79 and tokenizer.words(most=20) == []
