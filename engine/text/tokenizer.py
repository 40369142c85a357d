"""Prompts to token ids, from a diffusers or transformers tokenizer folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from kinema.checkpoints.json_object import read_object
from kinema.errors import CheckpointError, RequestError

SENTENCEPIECE_FILES = ("spiece.model", "sentencepiece.model")
T5_EXTRA_IDS = 100  # how many sentinel tokens T5 has if its config does not say


class Codec(Protocol):
    """Where the ids come from. `closing` is the number of tokens (</s>) it adds to every text."""

    closing: int

    def token_id(self, token: str) -> int | None: ...

    def encode(self, text: str, limit: int | None) -> list[int]:
        """The ids of a text with its closing tokens; text beyond `limit` ids is dropped, the closing kept."""
        ...


class Tokenizer:
    """Texts to padded ids, as transformers' AutoTokenizer gives them; it holds no state between calls."""

    def __init__(self, codec: Codec, pad_token: str, eos_token: str, *, where: str) -> None:
        ids = {}
        for role, token in (("pad_token", pad_token), ("eos_token", eos_token)):
            found = codec.token_id(token)
            if found is None:
                raise CheckpointError(f"{where}: {role} {token!r} is not in the vocabulary")
            ids[role] = found
        self.pad_id = ids["pad_token"]
        self.eos_id = ids["eos_token"]
        self._codec = codec

    @staticmethod
    def from_folder(folder: str | Path) -> Tokenizer:
        """Read tokenizer.json, or where it is missing a sentencepiece model in T5's conventions.

        sentencepiece is an optional dependency. Its own result can differ from that of a tokenizer.json made from
        the same model where the model falls back to bytes for unknown characters: the file then counts.
        """
        folder = Path(folder)
        files = (folder / "special_tokens_map.json", folder / "tokenizer_config.json")
        config = {key: value for path in files if path.is_file() for key, value in read_object(path).items()}
        for side in ("padding_side", "truncation_side"):
            if config.get(side, "right") != "right":
                raise CheckpointError(f"{folder}: {side}={config[side]!r} is not supported, only 'right' is")
        codec = _codec(folder, config)
        pad, eos = (_content(config.get(key), default) for key, default in DEFAULT_TOKENS.items())
        return Tokenizer(codec, pad, eos, where=str(folder))

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

    def _encode(self, text: str, limit: int | None) -> list[int]:
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise RequestError(f"text {text!r} is not Unicode: it holds half of a surrogate pair")
        return self._codec.encode(text, limit)


DEFAULT_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>"}


class TokenizersCodec:
    """A tokenizer.json, through the tokenizers library."""

    def __init__(self, path: Path) -> None:
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises nothing more specific
            raise CheckpointError(f"{path} cannot be read as a tokenizer: {error}") from error
        # both are settings of the file's author; this call's caller decides
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.closing: int = self._tokenizer.num_special_tokens_to_add(is_pair=False)

    def token_id(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def encode(self, text: str, limit: int | None) -> list[int]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if limit is not None:
            encoding.truncate(limit - self.closing)
        ids: list[int] = self._tokenizer.post_process(encoding, add_special_tokens=True).ids
        return ids


class SentencePieceCodec:
    """A sentencepiece model, with what T5 adds: </s> at the end, and special tokens recognised in the text."""

    closing = 1

    def __init__(self, path: Path, special_tokens: Sequence[str], extra_ids: int) -> None:
        try:
            import sentencepiece
        except ImportError as error:
            raise CheckpointError(
                f"{path.parent} has no tokenizer.json, only {path.name}, which needs the sentencepiece package: "
                "pip install 'kinema[sentencepiece]'"
            ) from error
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(path.read_bytes())
        except RuntimeError as error:
            raise CheckpointError(f"{path} cannot be read as a sentencepiece model: {error}") from error
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

    def encode(self, text: str, limit: int | None) -> list[int]:
        ids: list[int] = []
        for part in self._split.split(text) if self._split is not None else [text]:
            ids += [self._special[part]] if part in self._special else self._model.EncodeAsIds(part)
        return [*(ids if limit is None else ids[: limit - 1]), self._eos]


def _codec(folder: Path, config: Mapping[str, Any]) -> Codec:
    if (folder / "tokenizer.json").is_file():
        return TokenizersCodec(folder / "tokenizer.json")
    for name in SENTENCEPIECE_FILES:
        if (folder / name).is_file():
            special = [_content(config.get(key), default) for key, default in DEFAULT_TOKENS.items()]
            special.append(_content(config.get("unk_token"), "<unk>"))
            extra_ids = config.get("extra_ids", T5_EXTRA_IDS)
            if not isinstance(extra_ids, int) or extra_ids < 0:
                raise CheckpointError(f"{folder}: extra_ids={extra_ids!r}, wanted a whole number, 0 or more")
            return SentencePieceCodec(folder / name, special, extra_ids)
    raise CheckpointError(f"{folder} has no tokenizer: wanted tokenizer.json or {' or '.join(SENTENCEPIECE_FILES)}")


def _content(token: Any, default: str) -> str:
    """A special token of a config: its text, or a record that holds the text."""
    if token is None:
        return default
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise CheckpointError(f"a special token is given as {token!r}: wanted its text, or a record with `content`")
    return content
