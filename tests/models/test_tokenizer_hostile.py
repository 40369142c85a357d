"""Tokenizers from elsewhere: an error of ours, soon and in little memory, for what the libraries do not survive."""

from __future__ import annotations

import copy
import json
import random
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from kinema.checkpoints.model_folder import SAMPLE_FOLDER
from kinema.errors import CheckpointError, KinemaError, RequestError
from kinema.text.tokenizer import MAX_TEXT, Tokenizer
from kinema.text.tokenizer_json import MAX_CHARACTERS

Capture = pytest.CaptureFixture[str]
SAMPLE: dict[str, Any] = json.loads((SAMPLE_FOLDER / "tokenizer/tokenizer.json").read_text())
TEXTS = [
    *("a red circle", "", "  a   b ", "é ½ ﬁ Ａ ﷺ 猫 \u0301 👨\u200d👩", "x" * 3000),
    *("</s> <pad> a</s>b\n\n12345 don't", " " * 500 + "a", "\x00a\t", "a" * 40 + "! a red circle"),
]


def replaced(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(parts)}


@pytest.fixture(scope="module")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small sentencepiece model with the normalizations that T5's have."""
    folder = tmp_path_factory.mktemp("spiece")
    (folder / "corpus.txt").write_text("a red circle moving left\nblue square zzz qwerty\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "m"), vocab_size=45, minloglevel=2,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>",
    )  # fmt: skip
    return (folder / "m.model").read_bytes()


@pytest.fixture(scope="module")
def charsmap(spiece: bytes) -> bytes:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(spiece)
    return bytes(model.normalizer_spec.precompiled_charsmap)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Write the sample model's tokenizer.json with changes; returns its folder."""

    def write(**changes: Any) -> Path:
        (tmp_path / "tokenizer.json").write_text(json.dumps({**SAMPLE, **changes}))
        return tmp_path

    return write


def outcome(folder: Path, capfd: Capture, rows: int | None = None) -> str:
    """ "ran", or the kind of error; it fails for any other exception, a panic's text, much time or much memory."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    said = "ran"
    try:
        tokenizer = Tokenizer.from_folder(folder, rows)
        for text in TEXTS:
            tokenizer([text], 512)
    except KinemaError as error:
        said = str(error)
        assert said.isprintable() and len(said) < 4100
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    assert "panicked" not in capfd.readouterr().err
    return said


NORMALIZERS: dict[str, tuple[dict[str, Any], str]] = {
    "charsmap that does not parse": ({"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "charsmap that is dam"),
    "charsmap that is no base64": ({"type": "Precompiled", "precompiled_charsmap": "é!"}, "charsmap that is damaged"),
    "charsmap that is a number": ({"type": "Precompiled", "precompiled_charsmap": 5}, "precompiled_charsmap 5"),
    "no charsmap": ({"type": "Precompiled"}, "charsmap that is damaged"),
    "nested repeats": (replaced("(([a-z])+.)+[A-Z]([a-z])+$", "x", "Regex"), "searches for"),
    "repeat before an end": (replaced("a+b", "x", "Regex"), "searches for"),
    "matches nothing": (replaced("a*", "x", "Regex"), "searches for"),
    "look behind": (replaced("(?<=a)b", "x", "Regex"), "searches for"),
    "reference": (replaced(r"(a)\1", "x", "Regex"), "searches for"),
    "does not compile": (replaced(r"\p{Nonsense}+", "x", "Regex"), "cannot be read as a tokenizer"),
    "multiplies": (sequence(*[replaced("a", "a" * 200)] * 3), "times as long"),
    "multiplies in nests": (
        sequence(sequence(sequence(replaced("a", "a" * 20)), replaced("a", "a" * 20))),
        "times as long",
    ),
    "multiplies nothing": (replaced("", "x" * 50), "has String ''"),
    "long content": (replaced("a", "a" * 1000), "has content"),
    "many": (sequence(*[{"type": "NFC"}] * 17), "wanted 16 at most"),
    "bytes of bytes": (sequence(*[{"type": "ByteLevel"}] * 5), "times as long"),
    "prepends nothing": (
        sequence({"type": "Prepend", "prepend": "x"}, {"type": "Prepend", "prepend": ""}),
        "has prepend",
    ),
    "prepends again and again": (sequence(*[{"type": "Prepend", "prepend": "x" * 100}] * 3), "times as long"),
    "both patterns": ({"type": "Replace", "pattern": {"String": "a", "Regex": "b"}, "content": ""}, "has a pattern"),
    "no pattern": ({"type": "Replace", "pattern": {}, "content": ""}, "has a pattern"),
    "pattern is a text": ({"type": "Replace", "pattern": "a", "content": ""}, "has pattern 'a', wanted an object"),
    "unknown type": ({"type": "Shell\x1b[2J"}, r"normalizer is 'Shell\\x1b\[2J', wanted one of"),
    "type is a list": ({"type": ["NFC"]}, "normalizer is"),
    "a text": ("NFC", "normalizer is 'NFC'"),  # type: ignore[dict-item]
    "a list": ([{"type": "NFC"}], "normalizer is"),  # type: ignore[dict-item]
    "unknown parameter": ({"type": "Strip", "strip_left": True, "strip_middle": True}, "has 'strip_middle'"),
    "flag is a number": ({"type": "Strip", "strip_left": 1}, "has strip_left 1, wanted true or false"),
    "members are no list": ({"type": "Sequence", "normalizers": {"a": 1}}, "has normalizers"),
    "no members": ({"type": "Sequence"}, "has normalizers None"),
}


@pytest.mark.parametrize("case", NORMALIZERS)
def test_normalizers(folder: Any, capfd: Capture, case: str) -> None:
    normalizer, said = NORMALIZERS[case]
    assert re.search(said, outcome(folder(normalizer=normalizer), capfd))


def nested(depth: int) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "NFC"}
    for _ in range(depth):
        part = sequence(part)
    return part


def test_sequences_in_sequences(folder: Any, capfd: Capture) -> None:
    assert outcome(folder(normalizer=nested(4)), capfd) == "ran"
    assert "wanted one of" in outcome(folder(normalizer=nested(5)), capfd)
    assert "wanted one of" in outcome(folder(normalizer=nested(300)), capfd)


def token(content: str, **changes: Any) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": 3, "content": content, **flags, **changes}


def template(*pieces: Any, special: Any = None) -> dict[str, Any]:
    special = {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}} if special is None else special
    return {"type": "TemplateProcessing", "single": list(pieces), "pair": [], "special_tokens": special}


A, END = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "model is None"),
    "model without a vocabulary": ({"model": {"type": "WordLevel", "unk_token": "a"}}, "vocab that is not an object"),
    "ids are texts": ({"model": {**SAMPLE["model"], "vocab": {"a": "1"}}}, "vocab that is not an object"),
    "ids are negative": ({"model": {**SAMPLE["model"], "vocab": {"a": -1}}}, "vocab that is not an object"),
    "ids are huge": ({"model": {**SAMPLE["model"], "vocab": {"a": 2**32}}}, "vocab that is not an object"),
    "ids are true": ({"model": {**SAMPLE["model"], "vocab": {"a": True}}}, "vocab that is not an object"),
    "long token": ({"model": {**SAMPLE["model"], "vocab": {"a" * 1000: 0}}}, "vocab that is not an object"),
    "scores are infinite": ({"model": {"type": "Unigram", "vocab": [["a", 1e400]], "unk_id": 0}}, "not a list of"),
    "scores are missing": ({"model": {"type": "Unigram", "vocab": [["a"]], "unk_id": 0}}, "not a list of"),
    "unknown beyond the end": ({"model": {"type": "Unigram", "vocab": [["a", 0]], "unk_id": 5}}, "unk_id 5 of 1"),
    "drops at random": ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5}}, "dropout 0.5"),
    "cuts a prefix": (
        {"model": {"type": "BPE", "vocab": {"é": 0}, "merges": [["é", "é"]], "continuing_subword_prefix": "#"}},
        "continuing_subword_prefix '#'",
    ),
    "merges are numbers": ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [1]}}, "merges that are not pairs"),
    "merges of nothing": ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}, "cannot be read"),
    "words without end": (
        {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "max_input_chars_per_word": 10**9}},
        "max_input_chars_per_word 1000000000",
    ),
    "unknown word is not known": ({"model": {**SAMPLE["model"], "unk_token": "nope"}}, "cannot encode the text"),
    "delimiter of two": ({"pre_tokenizer": {"type": "CharDelimiterSplit", "delimiter": "ab"}}, "delimiter 'ab'"),
    "no replacement": ({"pre_tokenizer": {"type": "Metaspace", "replacement": ""}}, "replacement ''"),
    "splits for ever": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|a)*b"}, "behavior": "Isolated", "invert": False}},
        "searches for",
    ),
    "lengths of nothing": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "pre_tokenizer is 'FixedLength'"),
    "bytes of bytes of bytes": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 3}},
        "64 times as long, wanted 16",
    ),
    "empty token": ({"added_tokens": [token("")]}, "has content ''"),
    "token that vanishes": (
        {"added_tokens": [token(" ", normalized=True)], "normalizer": replaced(" ", "")},
        "of which the normalizer leaves nothing",
    ),
    "tokens that overlap": (
        {"added_tokens": [token(" ", lstrip=True), token("a", id=4, rstrip=True)]},
        "that take in the spaces around them",
    ),
    "token without an id": ({"added_tokens": [{"content": "a"}]}, "an added token is"),
    "token with a huge id": ({"added_tokens": [token("a", id=2**31)]}, "has id 2147483648"),
    "tokens are an object": ({"added_tokens": {"a": 1}}, "added_tokens is"),
    "long tokens to normalize": (
        {
            "added_tokens": [token("b" * 500, id=i, normalized=True) for i in range(90)],
            "normalizer": replaced("b", "b" * 50),
        },
        "45000 characters that are to be normalized",
    ),
    "no text": ({"post_processor": template(END)}, "wanted the sequence A once"),
    "text twice": ({"post_processor": template(A, END, A)}, "wanted the sequence A once"),
    "second text": ({"post_processor": template(A, {"Sequence": {"id": "B", "type_id": 0}})}, "wanted the sequence A"),
    "undefined token": ({"post_processor": template(A, {"SpecialToken": {"id": "<x>", "type_id": 0}})}, "of its own"),
    "ids that are no list": (
        {"post_processor": template(A, END, special={"</s>": {"id": "</s>", "ids": 1, "tokens": ["</s>"]}})},
        "has ids 1, wanted a list of 1 to 8",
    ),
    "more ids than tokens": (
        {"post_processor": template(A, special={"x": {"id": "x", "ids": [1, 1], "tokens": ["x"]}})},
        "wanted an id, ids and as many tokens",
    ),
    "pieces are texts": ({"post_processor": template("$A")}, "has '\\$A'|wanted an object"),
    "two that add tokens": (
        {"post_processor": {"type": "Sequence", "processors": [template(A, END), template(A, END)]}},
        "wanted one that adds tokens",
    ),
    "separator is a text": ({"post_processor": {"type": "BertProcessing", "sep": "a", "cls": ["b", 1]}}, "has sep 'a'"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_models_tokens_and_processors(folder: Any, capfd: Capture, case: str) -> None:
    changes, said = OTHERS[case]
    assert re.search(said, outcome(folder(**changes), capfd))


def test_what_is_not_used_is_not_handed_on(folder: Any, capfd: Capture) -> None:
    """Settings of truncation and padding, and whatever a decoder may be: nothing is decoded."""
    hostile = {"type": "Replace", "pattern": {"Regex": "(a{99}){99}"}, "content": "x"}
    assert outcome(folder(decoder=hostile, truncation={"max_length": 0}, padding=[], extra=1), capfd) == "ran"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"model": 1, "model": 2}', b"[" * 10_000, bytes(50_000_000)]
)
def test_what_is_no_json_object(tmp_path: Path, capfd: Capture, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert "tokenizer.json" in outcome(tmp_path, capfd)


def test_vocabularies_far_larger_than_the_table_are_not_read(folder: Any, capfd: Capture) -> None:
    vocab = {**SAMPLE["model"]["vocab"], **{f"word{i}": i for i in range(200_000)}}
    large = folder(model={**SAMPLE["model"], "vocab": vocab})
    assert "more than 2032800 bytes" in outcome(large, capfd, rows=82)
    vocab = {**SAMPLE["model"]["vocab"], **{f"{i:x}": i for i in range(102_000)}}
    assert "more than 101312 values" in outcome(folder(model={**SAMPLE["model"], "vocab": vocab}), capfd, rows=82)


def test_long_texts(folder: Any) -> None:
    plain = Tokenizer.from_folder(folder())
    assert plain(["a red " * 16_000], 16)[1].sum() == 16
    with pytest.raises(RequestError, match=f"the text has {MAX_TEXT + 1} characters: wanted {MAX_TEXT} at most"):
        plain(["a" * (MAX_TEXT + 1)], 16)
    grows = Tokenizer.from_folder(folder(normalizer=replaced("x", "x" * 200)))
    assert grows(["a red " * 16_000], 16)[1].sum() == 16, "what does not grow may be long"
    with pytest.raises(RequestError, match=f"makes more than {MAX_CHARACTERS} characters"):
        grows(["x" * 2000], 16)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_sentencepiece_models(spiece: bytes, tmp_path: Path, capfd: Capture, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(25):
        damaged = bytearray(spiece)
        for _ in range(rng.choice((1, 3, 20))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "spiece.model").write_bytes(bytes(damaged)[: rng.choice((None, rng.randrange(len(damaged))))])
        outcome(tmp_path, capfd)


@pytest.mark.parametrize("extra_ids", [-1, True, 1.0, "3", 10**9, None, [1]])
def test_sentinels_are_counted(spiece: bytes, tmp_path: Path, capfd: Capture, extra_ids: Any) -> None:
    (tmp_path / "spiece.model").write_bytes(spiece)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": extra_ids}))
    assert "extra_ids" in outcome(tmp_path, capfd)


@pytest.mark.parametrize("value", [5, "", [], {}, {"content": None}, {"content": 3}, "\x1b[2J", "absent", True])
@pytest.mark.parametrize("key", ["pad_token", "eos_token"])
def test_special_tokens_of_other_kinds(folder: Any, capfd: Capture, key: str, value: Any) -> None:
    place = folder()
    (place / "tokenizer_config.json").write_text(json.dumps({key: value}))
    assert "special token is given as" in outcome(place, capfd) or f"{key} " in outcome(place, capfd)


def mutated(rng: random.Random, whole: dict[str, Any]) -> dict[str, Any]:
    """One to three values of a tokenizer.json, at any depth, replaced, left out or repeated."""
    odd = [None, True, 0, -1, 2**32, 1.5, "", "a", "▁", "a" * 600, [], {}, [[]], {"type": "Sequence"}, "</s>", "\ud800"]
    whole = copy.deepcopy(whole)
    for _ in range(rng.randint(1, 3)):
        node: Any = whole
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = rng.choice(keys)
            if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.75:
                node = node[key]
                continue
            break
        chance = rng.random()
        if chance < 0.7:
            node[key] = rng.choice(odd)
        elif chance < 0.85:
            del node[key]
        elif isinstance(node, list):
            node.append(node[key])
        else:
            node["extra"] = node[key]
        if not node:
            break
    return whole


@pytest.mark.parametrize("seed", range(6))
def test_mutations(folder: Any, capfd: Capture, seed: int) -> None:
    rng = random.Random(seed)
    small = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "a", "r", "e", "re", "d", "red", "▁", "▁a"])}
    models = [
        SAMPLE["model"],
        {"type": "BPE", "vocab": small, "merges": [["r", "e"], ["re", "d"], ["▁", "a"]], "unk_token": "<unk>"},
        {"type": "Unigram", "vocab": [[word, -1.0] for word in small], "unk_id": 2, "byte_fallback": False},
        {"type": "WordPiece", "vocab": small, "unk_token": "<unk>", "continuing_subword_prefix": "##"},
    ]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    ran = 0
    for i in range(40):
        changes = {"model": models[i % 4]} | ({"pre_tokenizer": metaspace} if i % 3 else {})
        ran += outcome(folder(**mutated(rng, {**SAMPLE, **changes})), capfd) == "ran"
    assert ran < 40


def test_a_panic_that_is_left_is_an_error(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})

    class Broken:
        def encode(self, *args: Any, **options: Any) -> None:
            raise self.error

    ours = Tokenizer.from_folder(folder())
    ours._codec._tokenizer = broken = Broken()  # type: ignore[attr-defined]
    for error, wanted in ((panic("index out of bounds"), CheckpointError), (KeyboardInterrupt(), KeyboardInterrupt)):
        broken.error = error  # type: ignore[attr-defined]
        with pytest.raises(wanted):
            ours(["a"], 4)
