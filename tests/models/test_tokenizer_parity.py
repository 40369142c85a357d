"""The tokenizer against transformers and sentencepiece, on small models trained here."""

import json
import random
import sys

import pytest
import sentencepiece
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kinema.errors import CheckpointError, RequestError
from kinema.text.tokenizer import Tokenizer

CORPUS = [
    "a red circle moving left",
    "a blue square moving right, slowly",
    "The cat isn't here; it's over there.",
    "Ein Mädchen läuft über die Straße",
    "una niña corre por el campo",
    "猫が走る 犬も走る",
    "видео о маленькой собаке",
    "12345 items, 50% off!",
    "A man in a café; naïve, café",
    "🙂 smiles and 🎬 films",
]
TEXTS = [
    *CORPUS,
    "",
    " ",
    "  leading",
    "trailing  ",
    "a  b   c",
    "tab\tnew\nline\r\nend",
    "ＡＢＣ ｆｕｌｌ ½ ﬁn",
    "e\u0301 combining \u00e9 composed",
    "a\u200bzero\u00a0width\u3000ideographic",
    "▁already ▁marked",
    "👨\u200d👩\u200d👧 family 🦄🦄 unknown 漢字",
    "İstanbul ǅ ß ẞ",
    "ends with </s> and <pad> or <unk> inside",
    "<extra_id_0> moves <extra_id_2>.",
    "x" * 300,
    "a red circle moving left, " * 60,
]
LENGTHS = [1, 2, 3, 16, 77, 512]
TOKENS = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
EXTRA_IDS = 4


def random_texts(count: int) -> list[str]:
    """Words, punctuation and single characters of many scripts in any order."""
    rng = random.Random(0)
    words = [word for line in CORPUS for word in line.split()]
    blocks = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x4E00, 0x4E40), (0x2000, 0x2070), (0x1F600, 0x1F640)]
    parts = [
        lambda: rng.choice(words),
        lambda: " " * rng.randint(1, 3),
        lambda: chr(rng.randrange(*rng.choice(blocks))),
    ]
    return ["".join(rng.choice(parts)() for _ in range(rng.randint(1, 40))) for _ in range(count)]


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A folder with a sentencepiece model in T5's layout: pad 0, </s> 1, unk 2."""
    folder = tmp_path_factory.mktemp("spiece")
    (folder / "corpus.txt").write_text("\n".join(CORPUS * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=180,
        hard_vocab_limit=False,
        character_coverage=0.98,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        minloglevel=2,
    )
    (folder / "corpus.txt").unlink()
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": EXTRA_IDS, **TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def converted(spiece, tmp_path_factory):
    """The same model as a tokenizer.json, as transformers 4 and the published folders have it."""
    folder = tmp_path_factory.mktemp("converted")
    AutoTokenizer.from_pretrained(spiece).save_pretrained(folder)
    path = folder / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    spaces = normalizers.Replace(tokenizers.Regex(" {2,}"), "▁")
    tokenizer.normalizer = normalizers.Sequence([tokenizer.normalizer, normalizers.Strip(left=False), spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    # settings that a file may carry and that must not leak into calls
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=9, pad_token="<pad>")
    tokenizer.save(str(path))
    (folder / "tokenizer_config.json").write_text((spiece / "tokenizer_config.json").read_text())
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A Unigram tokenizer made by the tokenizers library alone, its pad and </s> at unusual ids."""
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "[END]", "[FILL]"]
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 5, trainer)
    end = tokenizer.token_to_id("[END]")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", end)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[FILL]", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "[END]", "lstrip": False}}))
    return folder


def assert_equal(ours: Tokenizer, theirs, texts: list[str], max_length: int) -> None:
    ids, mask = ours(texts, max_length)
    wanted = theirs(
        texts,
        padding="max_length",
        truncation=True,
        max_length=max_length,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    assert ids.dtype == mask.dtype == torch.int64
    different = [t for t, a, b in zip(texts, ids, wanted.input_ids, strict=True) if not torch.equal(a, b)]
    assert not different
    assert torch.equal(mask, wanted.attention_mask)


@pytest.mark.parametrize("max_length", LENGTHS)
@pytest.mark.parametrize("kind", ["spiece", "converted", "trained"])
def test_ids_equal_transformers(kind, max_length, request):
    folder = request.getfixturevalue(kind)
    assert_equal(Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder), TEXTS, max_length)


@pytest.mark.parametrize("kind", ["spiece", "converted", "trained"])
def test_ids_of_random_texts_equal_transformers(kind, request):
    folder = request.getfixturevalue(kind)
    assert_equal(Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder), random_texts(300), 48)


@pytest.mark.parametrize("mistake", ["no_end", "end_is_cut", "one_token_less", "pad_is_end", "lower_case"])
@pytest.mark.parametrize("kind", ["spiece", "converted"])
def test_planted_mistakes_are_noticed(kind, mistake, request):
    folder = request.getfixturevalue(kind)
    ours = Tokenizer.from_folder(folder)
    encode = ours._codec.encode
    if mistake == "pad_is_end":
        ours.pad_id = ours.eos_id
    else:
        ours._codec.encode = {
            "no_end": lambda text, limit: encode(text, limit)[:-1],
            "end_is_cut": lambda text, limit: encode(text, None)[:limit],
            "one_token_less": lambda text, limit: encode(text, limit - 1),
            "lower_case": lambda text, limit: encode(text.lower(), limit),
        }[mistake]
    with pytest.raises(AssertionError):
        assert_equal(ours, AutoTokenizer.from_pretrained(folder), TEXTS, 16)


def test_a_tokenizer_json_is_read_as_it_is(converted):
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(converted / "tokenizer.json"), **TOKENS)
    assert_equal(Tokenizer.from_folder(converted), theirs, TEXTS + random_texts(100), 64)


def test_special_ids(spiece, converted, trained):
    for folder in (spiece, converted):
        ours = Tokenizer.from_folder(folder)
        assert (ours.pad_id, ours.eos_id) == (0, 1)
    ours = Tokenizer.from_folder(trained)
    assert (ours.pad_id, ours.eos_id) == (2, 1)


@pytest.mark.parametrize("kind", ["spiece", "converted", "trained"])
def test_a_cut_text_keeps_its_end(kind, request):
    ours = Tokenizer.from_folder(request.getfixturevalue(kind))
    ids, mask = ours(["a red circle moving left, " * 60], 20)
    assert ids[0, -1] == ours.eos_id
    assert bool((ids[0, :-1] != ours.eos_id).all())
    assert mask.sum() == 20
    whole, _ = ours(["a red circle moving left, " * 60], 2000)
    assert torch.equal(ids[0, :-1], whole[0, :19])


@pytest.mark.parametrize("kind", ["spiece", "converted"])
def test_lengths_count_what_a_cut_would_drop(kind, request):
    ours = Tokenizer.from_folder(request.getfixturevalue(kind))
    assert ours.lengths(TEXTS) == ours(TEXTS, 3000)[1].sum(dim=1).tolist()
    assert ours.lengths([""]) == [1]


def test_calls_leave_no_trace(converted):
    ours = Tokenizer.from_folder(converted)
    before, _ = ours(TEXTS, 40)
    ours(TEXTS, 5)
    ours.lengths(TEXTS)
    assert torch.equal(ours(TEXTS, 40)[0], before)


def test_sentencepiece_is_asked_for_only_where_it_is_needed(spiece, converted, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    Tokenizer.from_folder(converted)
    with pytest.raises(CheckpointError, match="pip install sentencepiece"):
        Tokenizer.from_folder(spiece)


def test_sentinels_that_the_model_has_pieces_for(tmp_path, spiece):
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=180,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        user_defined_symbols=["<extra_id_0>", "<extra_id_1>"],
        minloglevel=2,
    )
    ids, _ = Tokenizer.from_folder(tmp_path)(["<extra_id_1> <extra_id_0>"], 3)
    assert ids.tolist() == [[4, 3, 1]]


def broken(folder, **files: str):
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def test_folders_that_cannot_serve_are_refused(tmp_path, converted):
    with pytest.raises(CheckpointError, match=r"has no tokenizer: wanted tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        Tokenizer.from_folder(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="cannot be read as a sentencepiece model"):
        Tokenizer.from_folder(broken(tmp_path, spiece__model="no model"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: model is None, wanted one of BPE, Unigram"):
        Tokenizer.from_folder(broken(tmp_path, tokenizer__json="{}"))
    good = (converted / "tokenizer.json").read_text()
    for config, message in [
        ({"pad_token": "[PAD]"}, r"pad_token '\[PAD\]' is not in the vocabulary"),
        ({"padding_side": "left"}, "padding_side='left' is not supported"),
        ({"pad_token": 5}, "given as 5"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            Tokenizer.from_folder(broken(tmp_path, tokenizer__json=good, tokenizer_config__json=json.dumps(config)))
    with pytest.raises(CheckpointError, match="not valid JSON"):
        Tokenizer.from_folder(broken(tmp_path, tokenizer_config__json="{"))


def test_bad_calls_are_refused(converted):
    ours = Tokenizer.from_folder(converted)
    with pytest.raises(RequestError, match="max_length is 0"):
        ours(["a"], 0)
    with pytest.raises(RequestError, match="got a single string"):
        ours("a red circle", 8)
    with pytest.raises(RequestError, match="surrogate"):
        ours(["\ud800"], 8)
