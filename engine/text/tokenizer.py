"""Prompts to token ids, from a diffusers or transformers tokenizer folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kinema.checkpoints.json_object import read_object
from kinema.checkpoints.opening import is_file
from kinema.errors import CheckpointError, RequestError, shown
from kinema.text.codecs import Codec, SentencePieceCodec, TokenizersCodec

SENTENCEPIECE_FILES = ("spiece.model", "sentencepiece.model")
DEFAULT_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>"}
T5_EXTRA_IDS = 100  # how many sentinel tokens T5 has if its config does not say
MAX_EXTRA_IDS = 1000
# Characters of one text: forty times what a model reads of it.
MAX_TEXT = 100_000


class Tokenizer:
    """Texts to padded ids, as transformers' AutoTokenizer gives them; it holds no state between calls."""

    def __init__(self, codec: Codec, pad_token: str, eos_token: str, unk_token: str = "<unk>", *, where: str) -> None:
        ids = {}
        for role, token in (("pad_token", pad_token), ("eos_token", eos_token)):
            found = codec.token_id(token)
            if found is None:
                raise CheckpointError(f"{where}: {role} {shown(token)} is not in the vocabulary")
            ids[role] = found
        self.pad_id = ids["pad_token"]
        self.eos_id = ids["eos_token"]
        self.unk_id = codec.token_id(unk_token)
        self._codec = codec
        self._where = where

    @staticmethod
    def from_folder(folder: str | Path, rows: int | None = None) -> Tokenizer:
        """Read tokenizer.json, or where it is missing a sentencepiece model in T5's conventions.

        rows: of the text encoder's table; a tokenizer of many more tokens belongs to another model and is not read.

        sentencepiece is an optional dependency. Its own result can differ from that of a tokenizer.json made from
        the same model where the model falls back to bytes for unknown characters; tokenizer.json has precedence.
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
        """Words of the text that the vocabulary has no tokens for, each once."""
        if self.unk_id is None or self.unk_id not in self._encode(text, None):
            return []
        return [word for word in dict.fromkeys(re.findall(r"\w+", text)) if self.unk_id in self._encode(word, None)]

    def words(self, most: int = 1000) -> list[str]:
        """The words of a vocabulary of at most `most` tokens, without special tokens; empty for a larger one."""
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
