"""What published tokenizers are made of is read, their patterns and tables of normalizations among it."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers

from kinema.checkpoints.model_folder import SAMPLE_FOLDER
from kinema.errors import CheckpointError
from kinema.text.charsmap import longest_text, longest_text_of_model
from kinema.text.patterns import PUBLISHED, least_match
from kinema.text.tokenizer import Tokenizer
from kinema.text.tokenizer_json import read_tokenizer

SAMPLE: dict[str, Any] = json.loads((SAMPLE_FOLDER / "tokenizer/tokenizer.json").read_text())
TEXTS = [
    "a red circle",
    "",
    "  a   b ",
    "é ½ ﬁ Ａ ﷺ 猫 👨\u200d👩",
    "</s> <pad> a</s>b\n\n12345 don't",
    " " * 500 + "a",
    "\x00a\t",
]


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


@pytest.mark.parametrize(
    ("pattern", "least"),
    [
        *((" {2,}", 2), (r"\s+", 1), (r"[^\p{L}\p{N}]+", 1), ("``|''", 2), (r"\d{1,3}", 1), (" ?a", 1), ("a|bb", 1)),
        *(
            (r"'s|'t|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", 1),
            (r"<\|x\|>", 5),
            *((pattern, 1) for pattern in sorted(PUBLISHED)),
        ),
    ],
)
def test_patterns_that_end_soon_are_let_run(pattern: str, least: int) -> None:
    assert least_match(pattern) == least
    tokenizers.Regex(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "a*", "a|", "|a", "(a)", "(a+)+", "a+b", "a*a*b", "a?a?a?a?b", "a{2,}b", "[a", "[a[b]]", r"\1", r"\ka"),
        *("a++", "a+?", "a{,5}", "(?i)a", "(?!a)b", "^a", "a$", r"\bA", r"\Xa", r"\Ra", r"\Ka", "a" * 2000, "a{999}"),
    ],
)
def test_patterns_that_may_not_are_not(pattern: str) -> None:
    assert least_match(pattern) is None


@pytest.mark.parametrize("pattern", [" {2,}", r"\s+|[a-z]+", r"[^\p{L}\p{N}]+", " ?a{2,3}|b", *sorted(PUBLISHED)])
def test_searches_are_linear(pattern: str) -> None:
    """On what makes backtracking slow: long runs that nearly match."""
    normalizer = tokenizers.normalizers.Replace(tokenizers.Regex(pattern), "x")
    for run in (" ", "a", "a ", "\n ", "' ", "1"):
        start = time.process_time()
        normalizer.normalize_str(run * 50_000)
        assert time.process_time() - start < 3


def test_charsmaps_of_sentencepiece_are_sound(charsmap: bytes, spiece: bytes) -> None:
    assert longest_text(charsmap) == longest_text_of_model(spiece) == 18, "of U+FDFA"


def test_charsmaps_that_lead_out_are_not(charsmap: bytes) -> None:
    units = bytearray(charsmap)
    for place, value in ((4, b"\xff\xff\xff\x7f"), (4 + 4 * 300, b"\x00\xfc\xff\x7f")):
        broken = units.copy()
        broken[place : place + 4] = value
        assert longest_text(bytes(broken)) is None
    assert longest_text(charsmap[:1000]) is None
    assert longest_text(charsmap[:-1] + b"\xff") is None
    size = int.from_bytes(charsmap[:4], "little")
    assert longest_text(charsmap[: 4 + size]) is None, "values lead to texts"
    assert longest_text(b"") is None
    assert longest_text(bytes(4)) is None


def encoded(folder: Path, **changes: Any) -> list[list[int]]:
    """Ids of the texts by a tokenizer.json with these components, which are those of the library alone."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**SAMPLE, **changes}))
    ours, theirs = Tokenizer.from_folder(folder), tokenizers.Tokenizer.from_file(str(path))
    ids = [theirs.encode(text).ids for text in TEXTS]
    for text, wanted in zip(TEXTS, ids, strict=True):
        assert ours([text], 1000)[0][0, : len(wanted)].tolist() == wanted
    return ids


def test_a_charsmap_that_multiplies_is_counted(charsmap: bytes, tmp_path: Path) -> None:
    size = int.from_bytes(charsmap[:4], "little")
    grown = charsmap[: 4 + size] + charsmap[4 + size :].replace(b"\0", b"x", 2000)
    part = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(grown).decode()}
    with pytest.raises(CheckpointError, match="times as long"):
        encoded(tmp_path, normalizer=part)
    encoded(tmp_path, normalizer={**part, "precompiled_charsmap": base64.b64encode(charsmap).decode()})


PUBLISHED_CLASSES = [
    *("T5Tokenizer", "CLIPTokenizer", "LlamaTokenizer", "Qwen2Tokenizer", "BertTokenizer", "RobertaTokenizer"),
    *("GemmaTokenizer", "XLMRobertaTokenizer"),
]


@pytest.mark.parametrize("name", PUBLISHED_CLASSES)
def test_what_transformers_writes_is_read(name: str, tmp_path: Path) -> None:
    """Each class writes the components that its published tokenizers have."""
    getattr(transformers, name)().save_pretrained(tmp_path)
    text, _ = read_tokenizer(tmp_path / "tokenizer.json", None)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    ours = tokenizers.Tokenizer.from_str(text)
    for sample in TEXTS:
        assert ours.encode(sample).ids == theirs.encode(sample).ids


OLD_CLIP = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ],
    },
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"},
                "behavior": "Removed",
                "invert": True,
            },
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        ],
    },
    "post_processor": {
        "type": "RobertaProcessing",
        "sep": ["</s>", 1],
        "cls": ["<pad>", 0],
        "trim_offsets": False,
        "add_prefix_space": False,
    },
    "model": {
        "dropout": None,
        "unk_token": "</s>",
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "</w>",
        "fuse_unk": False,
        "vocab": {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "a</w>": 4, "r": 5, "ed</w>": 6, "e": 7, "d</w>": 8},
        "merges": ["e d</w>"],
    },
}
OLD_T5 = {
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "▁", "str_rep": "▁", "add_prefix_space": True},
        ],
    },
    "model": {"vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁a", -1.0], ["▁", -2.0]], "unk_id": 2},
}
OLD_LLAMA = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "pre_tokenizer": None,
    "post_processor": SAMPLE["post_processor"],
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": {"<pad>": 0, "</s>": 1, "<unk>": 2, "▁": 3, "a": 4, "▁a": 5},
        "merges": ["▁ a"],
    },
}


@pytest.mark.parametrize("published", [OLD_CLIP, OLD_T5, OLD_LLAMA], ids=["CLIP", "T5", "Llama"])
def test_files_of_earlier_years_are_read(published: dict[str, Any], tmp_path: Path) -> None:
    assert len({tuple(ids) for ids in encoded(tmp_path, **published)}) > 3
