"""Where token ids come from: the tokenizers library, and sentencepiece."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kinema.checkpoints.opening import read_file
from kinema.errors import CheckpointError, KinemaError, RequestError
from kinema.text.charsmap import longest_text_of_model
from kinema.text.tokenizer_json import MAX_CHARACTERS, read_tokenizer

if TYPE_CHECKING:
    import tokenizers

MAX_MODEL_BYTES = 30_000_000
MAX_REPLACED = 64  # characters that a normalization puts in place of one; Unicode's longest are 18


class Codec(Protocol):
    """Where the ids come from. `closing` is the number of tokens (</s>) it adds to every text."""

    closing: int

    def token_id(self, token: str) -> int | None: ...

    def vocabulary(self, most: int) -> list[str]:
        """The tokens in the order of their ids; empty for a vocabulary of more than `most`."""
        ...

    def encode(self, text: str, limit: int | None) -> list[int]:
        """The ids of a text with its closing tokens; text beyond `limit` ids is cut, closing tokens are kept."""
        ...


class TokenizersCodec:
    """A tokenizer.json, through the tokenizers library."""

    def __init__(self, path: Path, rows: int | None) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise CheckpointError(f"{path} needs the tokenizers package: pip install tokenizers ({error})") from error

        self._path = path
        text, growth = read_tokenizer(path, rows)
        self._at_once = MAX_CHARACTERS // growth  # characters that cannot become too many when normalized
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
        """RequestError for a text that normalization makes too long; it is measured in pieces that cannot be."""
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
            raise CheckpointError(f"{path} has no end-of-sequence piece, which T5's tokenizers have")
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
