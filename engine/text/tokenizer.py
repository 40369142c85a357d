"""Prompts to token ids, from a diffusers or transformers tokenizer folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from kinema.checkpoints.json_object import read_object
from kinema.checkpoints.opening import is_file, read_file
from kinema.errors import CheckpointError, KinemaError, RequestError, shown
from kinema.text.charsmap import longest_text_of_model
from kinema.text.tokenizer_json import MAX_CHARACTERS, read_tokenizer

if TYPE_CHECKING:
    import tokenizers

SENTENCEPIECE_FILES = ("spiece.model", "sentencepiece.model")
T5_EXTRA_IDS = 100  # how many sentinel tokens T5 has if its config does not say
MAX_EXTRA_IDS = 10_000
MAX_MODEL_BYTES = 30_000_000
MAX_REPLACED = 64  # characters that a normalization puts for one; Unicode's longest are 18
# Characters of one text: twenty times what a model reads of it.
MAX_TEXT = 50_000


class Codec(Protocol):
    """Where the ids come from. `closing` is the number of tokens (</s>) it adds to every text."""

    closing: int

    def token_id(self, token: str) -> int | None: ...

    def vocabulary(self, most: int) -> list[str]:
        """The tokens in the order of their ids; none of a vocabulary of more than `most`."""
        ...

    def encode(self, text: str, limit: int | None) -> list[int]:
        """The ids of a text with its closing tokens; text beyond `limit` ids is dropped, the closing kept."""
        ...


class Tokenizer:
    """Texts to padded ids, as transformers' AutoTokenizer gives them; it holds no state between calls."""

    def __init__(self, codec: Codec, pad_token: str, eos_token: str, unk_token: str = "<unk>", *, where: str) -> None:
        ids = {}
        for role, token in (("pad_token", pad_token), ("eos_token", eos_token)):
            found = codec.token_id(token)
            if found is None:
                raise CheckpointError(f"{where}: {role} {token!r} is not in the vocabulary")
            ids[role] = found
        self.pad_id = ids["pad_token"]
        self.eos_id = ids["eos_token"]
        self.unk_id = codec.token_id(unk_token)
        self._codec = codec
        self._where = where

    @staticmethod
    def from_folder(folder: str | Path, rows: int | None = None) -> Tokenizer:
        """Read tokenizer.json, or where it is missing a sentencepiece model in T5's conventions.

        rows: of the text encoder's table; a tokenizer of many more tokens is not read, it belongs to another model.

        sentencepiece is an optional dependency. Its own result can differ from that of a tokenizer.json made from
        the same model where the model falls back to bytes for unknown characters: the file then counts.
        """
        folder = Path(folder)
        files = (folder / "special_tokens_map.json", folder / "tokenizer_config.json")
        config = {key: value for path in files if is_file(path) for key, value in read_object(path).items()}
        for side in ("padding_side", "truncation_side"):
            if config.get(side, "right") != "right":
                raise CheckpointError(f"{folder}: {side}={shown(config[side])} is not supported, only 'right' is")
        codec = _codec(folder, config, rows)
        pad, eos = (_content(folder, config.get(key), default) for key, default in DEFAULT_TOKENS.items())
        return Tokenizer(codec, pad, eos, _content(folder, config.get("unk_token"), "<unk>"), where=str(folder))

    @staticmethod
    def check_folder(folder: Path) -> None:
        """CheckpointError if there is no tokenizer in it, without reading it."""
        _tokenizer_file(folder)

    def __call__(self, texts: Sequence[str], max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask of each text, padded and cut to `max_length`; the final </s> survives the cut.

        Returns input_ids and attention_mask (1 for real tokens), both [B, max_length] int64.
        """
        if isinstance(texts, str):
            raise RequestError("the tokenizer takes a list of texts, got a single string")
        if max_length < self._codec.closing or max_length < 1:
            raise RequestError(f"max_length is {max_length}: wanted at least {max(self._codec.closing, 1)}")
        input_ids = torch.full((len(texts), max_length), self.pad_id, dtype=torch.int64, device="cpu")
        attention_mask = torch.zeros_like(input_ids)
        for row, text in enumerate(texts):
            ids = self._encode(text, max_length)
            input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64, device="cpu")
            attention_mask[row, : len(ids)] = 1
        return input_ids, attention_mask

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many ids each text has, </s> included, before any cut."""
        return [len(self._encode(text, None)) for text in texts]

    def unknown_words(self, text: str) -> list[str]:
        """Words of the text that are no token and are made of none, each once."""
        if self.unk_id is None or self.unk_id not in self._encode(text, None):
            return []
        return [word for word in dict.fromkeys(re.findall(r"\w+", text)) if self.unk_id in self._encode(word, None)]

    def words(self, most: int = 1000) -> list[str]:
        """What a vocabulary of at most `most` tokens holds, special tokens apart; of a larger one nothing."""
        return [token for token in self._codec.vocabulary(most) if token.isalnum()]

    def _encode(self, text: str, limit: int | None) -> list[int]:
        if len(text) > MAX_TEXT:
            raise RequestError(f"the text has {len(text)} characters: wanted {MAX_TEXT} at most")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise RequestError(f"text {shown(text)} is not Unicode: it holds half of a surrogate pair")
        ids = self._codec.encode(text, limit)
        if limit is not None and len(ids) > limit:
            raise CheckpointError(f"{self._where}: the tokenizer makes {len(ids)} ids where {limit} were asked for")
        return ids


DEFAULT_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>"}


class TokenizersCodec:
    """A tokenizer.json, through the tokenizers library."""

    def __init__(self, path: Path, rows: int | None) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise CheckpointError(f"{path} needs the tokenizers package: pip install tokenizers ({error})") from error

        self._path = path
        text, growth = read_tokenizer(path, rows)
        self._at_once = MAX_CHARACTERS // growth  # characters that cannot become too many
        with _library_errors(f"{path} cannot be read as a tokenizer"):
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
            _check_added_tokens(self._tokenizer)
        self.closing: int = self._tokenizer.num_special_tokens_to_add(is_pair=False)

    def token_id(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def vocabulary(self, most: int) -> list[str]:
        ids: dict[str, int] = self._tokenizer.get_vocab() if self._tokenizer.get_vocab_size() <= most else {}
        return sorted(ids, key=ids.__getitem__)

    def encode(self, text: str, limit: int | None) -> list[int]:
        with _library_errors(f"{self._path} cannot encode the text"):
            self._check_length(text)
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            if limit is not None:
                encoding.truncate(limit - self.closing)
            ids: list[int] = self._tokenizer.post_process(encoding, add_special_tokens=True).ids
        return ids

    def _check_length(self, text: str) -> None:
        """RequestError for a text of which the normalizer makes too much; it is only shown parts that it cannot."""
        if len(text) <= self._at_once:
            return
        made = 0
        for start in range(0, len(text), self._at_once):
            made += len(self._tokenizer.normalizer.normalize_str(text[start : start + self._at_once]))
            if made > MAX_CHARACTERS:
                raise RequestError(f"the tokenizer makes more than {MAX_CHARACTERS} characters of the text: shorten it")


class SentencePieceCodec:
    """A sentencepiece model, with what T5 adds: </s> at the end, and special tokens recognised in the text."""

    closing = 1

    def __init__(self, path: Path, special_tokens: Sequence[str], extra_ids: int) -> None:
        try:
            import sentencepiece
        except ImportError as error:
            raise CheckpointError(
                f"{path.parent} has no tokenizer.json, only {path.name}, which needs the sentencepiece package: "
                "pip install sentencepiece"
            ) from error
        self._path = path
        self._model = sentencepiece.SentencePieceProcessor()
        model = read_file(path, MAX_MODEL_BYTES)
        growth = longest_text_of_model(model)
        if growth is None or growth > MAX_REPLACED:
            raise CheckpointError(f"{path} cannot be read as a sentencepiece model: it is damaged; download it again")
        with _library_errors(f"{path} cannot be read as a sentencepiece model"):
            self._model.LoadFromSerializedProto(model)
        size = self._model.GetPieceSize()
        # sentinels count backwards from the end of the vocabulary, unless the model has pieces for them
        sentinels = {f"<extra_id_{i}>": size + extra_ids - 1 - i for i in range(extra_ids)}
        in_model = {token: self._piece_id(token) for token in (*special_tokens, *sentinels)}
        self._special = {**sentinels, **{token: i for token, i in in_model.items() if i is not None}}
        self._split = re.compile("(" + "|".join(map(re.escape, self._special)) + ")") if self._special else None
        eos = self._model.eos_id()
        if eos < 0:
            raise CheckpointError(f"{path} has no end-of-sequence piece, T5's tokenizers do")
        self._eos: int = eos

    def _piece_id(self, token: str) -> int | None:
        found: int = self._model.PieceToId(token)
        return found if self._model.IdToPiece(found) == token else None

    def token_id(self, token: str) -> int | None:
        return self._special.get(token, self._piece_id(token))

    def vocabulary(self, most: int) -> list[str]:
        size: int = self._model.GetPieceSize()
        return [self._model.IdToPiece(i) for i in range(size)] if size <= most else []

    def encode(self, text: str, limit: int | None) -> list[int]:
        ids: list[int] = []
        with _library_errors(f"{self._path} cannot encode the text"):
            for part in self._split.split(text) if self._split is not None else [text]:
                ids += [self._special[part]] if part in self._special else self._model.EncodeAsIds(part)
        return [*(ids if limit is None else ids[: limit - 1]), self._eos]


def _check_added_tokens(tokenizer: tokenizers.Tokenizer) -> None:
    """ValueError for tokens at which the library panics when it finds them in a text."""
    added, normalizer = list(tokenizer.get_added_tokens_decoder().values()), tokenizer.normalizer
    found = [normalizer.normalize_str(t.content) if normalizer and t.normalized else t.content for t in added]
    if not all(found):
        raise ValueError("an added token of which the normalizer leaves nothing")
    if any(token.lstrip or token.rstrip for token in added) and any(text != text.strip() for text in found):
        raise ValueError("added tokens that take in the spaces around them, and others that begin or end with one")


@contextmanager
def _library_errors(what: str) -> Iterator[None]:
    """Whatever a tokenizer library raises over a file, a panic of Rust's included, as CheckpointError."""
    try:
        yield
    except KinemaError:
        raise
    except Exception as error:
        # the cause is not chained: a traceback would show what the file holds
        raise CheckpointError(f"{what}: {error}; download it again") from None
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise CheckpointError(f"{what}: {error}; download it again") from None


def _tokenizer_file(folder: Path) -> Path:
    names = ("tokenizer.json", *SENTENCEPIECE_FILES)
    found = next((folder / name for name in names if is_file(folder / name)), None)
    if found is None:
        raise CheckpointError(f"{folder} has no tokenizer: wanted {' or '.join(names)}")
    return found


def _codec(folder: Path, config: Mapping[str, Any], rows: int | None) -> Codec:
    file = _tokenizer_file(folder)
    if file.suffix == ".json":
        return TokenizersCodec(file, rows)
    special = [_content(folder, config.get(key), default) for key, default in DEFAULT_TOKENS.items()]
    special.append(_content(folder, config.get("unk_token"), "<unk>"))
    extra_ids = config.get("extra_ids", T5_EXTRA_IDS)
    if type(extra_ids) is not int or not 0 <= extra_ids <= MAX_EXTRA_IDS:
        raise CheckpointError(f"{folder}: extra_ids={shown(extra_ids)}, wanted a whole number of 0 to {MAX_EXTRA_IDS}")
    return SentencePieceCodec(file, special, extra_ids)


def _content(folder: Path, token: Any, default: str) -> str:
    """A special token of a config: its text, or a record that holds the text."""
    if token is None:
        return default
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str) or not content:
        raise CheckpointError(
            f"{folder}: a special token is given as {shown(token)}: wanted its text, or a record with `content`"
        )
    return content
