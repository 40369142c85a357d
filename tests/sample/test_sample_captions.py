"""Captions and their inverse, and the tokenizer that is built from their vocabulary."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from kinema.errors import RequestError
from kinema.sample.captions import VOCABULARY, caption, parse_caption, words
from kinema.sample.tokenizer import MAX_TOKENS, VOCABULARY_SIZE, build_tokenizer, make_tokenizer
from kinema.sample.world import Description, Scene, Subject, sample_scene

D = Description


@pytest.fixture(scope="module")
def texts() -> list[tuple[Scene, str]]:
    drawn = torch.Generator().manual_seed(11)
    found = []
    for _ in range(6000):
        scene = sample_scene(drawn, "all")
        found.append((scene, caption(scene, drawn)))
    return found


def test_captions_are_read_back(texts: list[tuple[Scene, str]]) -> None:
    for scene, text in texts:
        assert parse_caption(text) == scene.describe(), text


def test_captions_use_the_whole_small_vocabulary(texts: list[tuple[Scene, str]]) -> None:
    used = Counter(word for _, text in texts for word in words(text))
    assert set(used) == set(VOCABULARY)
    assert len(VOCABULARY) <= 96 and len(set(VOCABULARY)) == len(VOCABULARY)
    assert min(used.values()) >= 30
    assert 18 <= max(len(words(text)) for _, text in texts) < MAX_TOKENS


def test_captions_vary(texts: list[tuple[Scene, str]]) -> None:
    scene = Scene((Subject("3", "orange", "left", "fast", 0.5, 0.5, digit_image=3),), "grey")
    drawn = torch.Generator().manual_seed(0)
    found = {caption(scene, drawn) for _ in range(400)}
    assert len(found) > 200
    assert any(t.startswith("An orange") for t in found) and any(t.endswith(".") for t in found)
    assert not any(" a orange" in f" {t.lower()}" or " an handwritten" in f" {t.lower()}" for t in found)
    starts = Counter(text[0].isupper() for _, text in texts)
    assert 0.4 < starts[True] / len(texts) < 0.6


def test_captions_are_determined_by_the_seed() -> None:
    scene = sample_scene(torch.Generator().manual_seed(0))
    first, second = (
        [caption(scene, drawn) for _ in range(20)] for drawn in (torch.Generator().manual_seed(s) for s in (5, 5))
    )
    assert first == second


def test_images_are_captioned_without_motion() -> None:
    drawn = torch.Generator().manual_seed(1)
    for _ in range(300):
        scene = sample_scene(drawn)
        read = parse_caption(caption(scene, drawn, mention_motion=False))
        said = scene.describe()
        assert read == D(said.subject, said.colour, None, None, said.background)


def test_two_subjects_have_no_caption() -> None:
    it = Subject("star", "red", "still", None, 0.5, 0.5)
    with pytest.raises(RequestError, match="scene of 2"):
        caption(Scene((it, it)), torch.Generator())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a red circle moving left", D("circle", "red", "left", "slow", "black")),
        ("A RED circle, moving to the left!", D("circle", "red", "left", "slow", "black")),
        ("the digit 3 in blue slides up slowly", D("3", "blue", "up", "slow", "black")),
        ("a handwritten three in blue stands still", D("3", "blue", "still", None, "black")),
        ("a green 7 quickly drifts downwards", D("7", "green", "down", "fast", "black")),
        ("a white star on a gray background", D("star", "white", None, None, "grey")),
        ("on a blue background, a blue heart is gliding right", D("heart", "blue", "right", "slow", "blue")),
        ("a circle moving right fast", D("circle", None, "right", "fast", "black")),
    ],
)
def test_prompts_are_read(text: str, wanted: Description) -> None:
    assert parse_caption(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat on a skateboard",
        "a red circle and a blue square",
        "a red blue circle moving left",
        "a red circle moving left right",
        "a red circle moving",
        "a red circle left",
        "a red circle standing left",
        "a red circle moving still",
        "a red circle standing still slowly",
        "moving left",
        "a red number circle",
        "a red circle on a background",
        "a red circle on a pink background",
        "a grey circle moving left",
        "a red circle on moving left",
        "a red circle on a blue background on a green background",
    ],
)
def test_what_is_not_understood_is_not_guessed(text: str) -> None:
    assert parse_caption(text) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer") / "deep" / "tokenizer")


STRANGE = [
    "",
    "   ",
    "A red circle.",
    "a RED circle",
    "red,circle;left",
    "left-moving red\tcircle\n",
    "it's a café ÀÉ ß 33 x3",
    "</s> <pad> a <unk> red",
    "❤ 日本 red_circle “star”",
    "a “red” star… moving left—fast",
]


def test_tokenizer_is_the_same_through_transformers(folder: Path, texts: list[tuple[Scene, str]]) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(folder))
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 1, 2)
    assert len(theirs) == ours.get_vocab_size() == VOCABULARY_SIZE == 3 + len(VOCABULARY)
    for text in [*STRANGE, *(text for _, text in texts[:1500])]:
        ids = ours.encode(text).ids
        assert theirs(text).input_ids == ids
        assert ids[-1] == 1 and len(ids) <= MAX_TOKENS
    batch = theirs(  # as diffusers' WanPipeline calls it
        ["a red circle", "an unheard-of thing"],
        padding="max_length",
        max_length=12,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    assert batch.input_ids.shape == (2, 12)
    assert batch.attention_mask[:, :6].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]  # padded on the right
    assert batch.attention_mask.sum() == 9
    assert (batch.input_ids[batch.attention_mask == 0] == 0).all()
    cut = theirs("a red circle moving left", max_length=4, truncation=True)
    assert len(cut.input_ids) == 4 and cut.input_ids[-1] == 1


def test_tokenizer_agrees_with_the_words(folder: Path, texts: list[tuple[Scene, str]]) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for _, text in texts[:1500]:
        assert tokenizer.encode(text).tokens == [*words(text), "</s>"]
    for text in STRANGE:
        if "<" not in text:  # the special tokens themselves
            ids = tokenizer.encode(text).ids[:-1]
            assert [i == 2 for i in ids] == [word not in VOCABULARY for word in words(text)]
    assert tokenizer.encode("A Red Circle!").ids == tokenizer.encode("a red circle").ids
    assert tokenizer.encode("3").ids != tokenizer.encode("three").ids


def test_tokenizer_files_are_reproducible(folder: Path, tmp_path: Path) -> None:
    again = build_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
        json.loads((again / name).read_text())
    assert make_tokenizer().to_str() == Tokenizer.from_file(str(folder / "tokenizer.json")).to_str()
