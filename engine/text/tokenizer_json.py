"""Checks an untrusted tokenizer.json before the tokenizers library reads it.

The library trusts the file: some of what it may hold panics (which Python can hardly catch), multiplies a text until
the process is killed, or searches for ever. So each component is one of `tokenizer_parts`, with parameters of the right
kind and size, and no more than that is handed on.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinema.checkpoints.json_object import read_object
from kinema.errors import CheckpointError, listed, shown
from kinema.fields.config import JsonObject, described, read_value
from kinema.text.charsmap import longest_text
from kinema.text.patterns import least_match
from kinema.text.tokenizer_parts import (
    ADDED_TOKEN,
    GROWTH,
    MAX_PIECE,
    MODELS,
    NORMALIZERS,
    PATTERN,
    POST_PROCESSORS,
    PRE_GROWTH,
    PRE_TOKENIZERS,
    SPECIAL_TOKEN,
    TEMPLATE_PIECE,
    Fields,
)

MAX_BYTES = 40_000_000
MAX_VALUES = 2_000_000
MAX_GROWTH = {"normalizer": 256, "pre_tokenizer": 16, "post_processor": 1}
MAX_SEQUENCE = 16
MAX_CHARACTERS = 2**18  # of a text, when it is normalized
MAX_SCORED = 64  # characters of a token of Unigram, which looks for every prefix of it at every place
MAX_ADDED = 100_000


def read_tokenizer(path: Path, rows: int | None) -> tuple[str, int]:
    """The checked file for the library, and how many times longer its normalizer may make a text.

    rows: of the table that the ids are looked up in; a file of many more tokens than that is refused before it is read,
    since each takes 2 kB in the library. Truncation and padding are left out, since a call decides them, and the
    decoder, since nothing is decoded. CheckpointError names what the library would not survive, or nobody publishes.
    """
    bytes_, values = MAX_BYTES, MAX_VALUES
    if rows is not None:
        bytes_, values = min(bytes_, 2_000_000 + 400 * rows), min(values, 100_000 + 16 * rows)
    return _Reader(read_object(path, max_bytes=bytes_, max_values=values)).read()


class _Reader:
    def __init__(self, whole: JsonObject) -> None:
        self._whole = whole
        self._growth = dict.fromkeys(MAX_GROWTH, 1)

    def read(self) -> tuple[str, int]:
        handed_on: dict[str, Any] = {
            "version": "1.0",
            "added_tokens": self._added_tokens(),
            "normalizer": self._chain("normalizer", "normalizers", NORMALIZERS),
            "pre_tokenizer": self._chain("pre_tokenizer", "pretokenizers", PRE_TOKENIZERS),
            "post_processor": self._post_processor(),
            "model": self._model(),
        }
        for slot, most in MAX_GROWTH.items():
            if self._growth[slot] > most:
                raise self._error(slot, f"may make a text {self._growth[slot]} times as long, wanted {most} at most")
        growth = self._growth["normalizer"]
        characters = sum(len(token["content"]) for token in handed_on["added_tokens"] if token["normalized"])
        if characters * growth > MAX_CHARACTERS:  # they are normalized as the file is read
            raise self._error("added_tokens", f"have {characters} characters that are to be normalized: wanted fewer")
        return json.dumps(handed_on, ensure_ascii=False), growth

    def _error(self, where: str, wrong: str) -> CheckpointError:
        return CheckpointError(f"{self._whole.where}: {where} {wrong}")

    def _chain(self, slot: str, members: str, known: Mapping[str, Fields]) -> dict[str, Any] | None:
        """A component, or a sequence of them."""
        value = self._whole.get(slot)
        if value is None:
            return None
        flat = self._flattened(slot, members, value, depth=4)
        if len(flat) > MAX_SEQUENCE:
            raise self._error(slot, f"is a sequence of {len(flat)}, wanted {MAX_SEQUENCE} at most")
        parts = [self._component(slot, part, known) for part in flat]
        return parts[0] if len(parts) == 1 else {"type": "Sequence", members: parts}

    def _post_processor(self) -> dict[str, Any] | None:
        """Only one member may add tokens: the library does not implement adding to what another added."""
        chain = self._chain("post_processor", "processors", POST_PROCESSORS)
        kinds = [part["type"] for part in chain.get("processors", [])] if chain is not None else []
        if len([kind for kind in kinds if kind != "ByteLevel"]) > 1:
            raise self._error("post_processor", f"is a sequence of {', '.join(kinds)}: wanted one that adds tokens")
        return chain

    def _flattened(self, slot: str, members: str, value: Any, depth: int) -> list[Any]:
        """A sequence's members, and those of the sequences among them; what is nested too deep stays a sequence."""
        if not isinstance(value, dict) or value.get("type") != "Sequence" or depth == 0:
            return [value]
        if not isinstance(value.get(members), list) or len(value[members]) > MAX_SEQUENCE:
            raise self._error(slot, f"has {members} {shown(value.get(members))}, wanted {MAX_SEQUENCE} at most")
        return [part for member in value[members] for part in self._flattened(slot, members, member, depth - 1)]

    def _component(self, slot: str, value: Any, known: Mapping[str, Fields]) -> dict[str, Any]:
        kind = value.get("type") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in known:
            raise self._error(slot, f"is {shown(kind or value)}, wanted one of {', '.join(known)}, or a Sequence")
        read = self._fields(f"{slot} {kind}", value, known[kind])
        if "pattern" in read:
            read["pattern"] = self._pattern(slot, kind, read)
        elif kind == "Precompiled":
            self._growth[slot] *= self._charsmap(slot, read.get("precompiled_charsmap") or "")
        elif kind == "Prepend":
            self._growth[slot] *= 1 + len(read.get("prepend", ""))
        elif kind == "TemplateProcessing":
            read = self._template(slot, read)
        self._growth[slot] *= {"normalizer": GROWTH, "pre_tokenizer": PRE_GROWTH}.get(slot, {}).get(kind, 1)
        return {"type": kind, **read}

    def _fields(self, where: str, value: Any, fields: Fields) -> dict[str, Any]:
        """The parameters that a component gives, each of its kind; the library has defaults for the others."""
        if not isinstance(value, dict):
            raise self._error(where, f"is {shown(value)}, wanted an object with {', '.join(fields)}")
        unknown = [key for key in value if key != "type" and key not in fields]
        if unknown:
            raise self._error(where, f"has {listed(map(shown, unknown), most=5)}, which are not known")
        read = {}
        for key, hint in fields.items():
            if key in value:
                try:
                    read[key] = read_value(value[key], hint)
                except ValueError:
                    wanted = {dict: "an object", list: "a list"}.get(hint) or described(hint)
                    raise self._error(where, f"has {key} {shown(value[key])}, wanted {wanted}") from None
        return read

    def _pattern(self, slot: str, kind: str, read: dict[str, Any]) -> dict[str, Any]:
        pattern = self._fields(f"the pattern of {slot} {kind}", read["pattern"], PATTERN)
        if len(pattern) != 1:
            raise self._error(slot, f"has a pattern {shown(pattern)}, wanted a String or a Regex")
        least = len(pattern["String"]) if "String" in pattern else least_match(pattern["Regex"])
        if least is None:
            raise self._error(
                slot, f"searches for {shown(pattern['Regex'])}: a pattern that no published tokenizer has may never end"
            )
        self._growth[slot] *= max(1, -(-len(read.get("content", "")) // least))
        return pattern

    def _charsmap(self, slot: str, encoded: str) -> int:
        try:
            longest = longest_text(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError):
            longest = None
        if longest is None:
            raise self._error(slot, "has a precompiled_charsmap that is damaged; download it again")
        return max(1, longest)

    def _template(self, slot: str, read: dict[str, Any]) -> dict[str, Any]:
        """One text among special tokens that are defined; the library looks neither up before it uses them."""
        single, special = read.get("single", []), {}
        for name, token in read.get("special_tokens", {}).items():
            tokens = self._fields(f"{slot} special token {shown(name)}", token, SPECIAL_TOKEN)
            if len(tokens) != 3 or len(tokens["ids"]) != len(tokens["tokens"]):
                raise self._error(slot, f"has a special token {shown(token)}, wanted an id, ids and as many tokens")
            special[name] = tokens
        texts = 0
        for piece in single if len(single) <= MAX_SEQUENCE else []:
            (kind, of), *more = piece.items() if isinstance(piece, dict) and piece else [("", None)]
            found = self._fields(f"{slot} {shown(kind)}", of, TEMPLATE_PIECE)
            known = {"Sequence": ["A"], "SpecialToken": list(special)}.get(kind, [])
            if more or len(found) != 2 or found["id"] not in known:
                raise self._error(slot, f"has {shown(piece)}, wanted the sequence A or a special token of its own")
            texts += kind == "Sequence"
        if texts != 1:
            raise self._error(slot, f"has the template {shown(single)}, wanted the sequence A once")
        second = {"Sequence": {"id": "B", "type_id": 1}}  # of pairs of texts, which are never asked for
        return {"single": single, "pair": [*single, second], "special_tokens": special}

    def _added_tokens(self) -> list[dict[str, Any]]:
        tokens = self._whole.get("added_tokens") or []
        if not isinstance(tokens, list) or len(tokens) > MAX_ADDED:
            raise self._error("added_tokens", f"is {shown(tokens)}, wanted a list of at most {MAX_ADDED} objects")
        read = [self._fields("an added token", token, ADDED_TOKEN) for token in tokens]
        for token in read:
            if len(token) != len(ADDED_TOKEN):
                raise self._error("an added token", f"is {shown(token)}, wanted {', '.join(ADDED_TOKEN)}")
        return read

    def _model(self) -> dict[str, Any]:
        value = self._whole.get("model")
        kind = value.get("type", _untyped(value)) if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in MODELS:
            raise self._error("model", f"is {shown(kind or value)}, wanted one of {', '.join(MODELS)}")
        read = self._fields(f"model {kind}", value, MODELS[kind])
        vocab = read.get("vocab")
        if kind == "Unigram":
            if not vocab or not all(map(_is_scored, vocab)):
                raise self._error(
                    "model Unigram", "has a vocab that is not a list of [token, score]; download it again"
                )
            if not (read.get("unk_id") or 0) < len(vocab):
                raise self._error("model Unigram", f"has unk_id {read['unk_id']} of {len(vocab)} tokens")
        elif not vocab or not all(map(_is_numbered, vocab.items())):
            raise self._error(f"model {kind}", "has a vocab that is not an object of tokens and ids; download it again")
        if not all(map(_is_merge, read.get("merges", []))):
            raise self._error("model BPE", "has merges that are not pairs of tokens; download it again")
        return {"type": kind, **read}


def _untyped(model: Mapping[str, Any]) -> str:
    """The type of a model that does not say it, as in files of 2020."""
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "BPE" if "merges" in model else "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def _is_token(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_PIECE


def _is_scored(value: Any) -> bool:
    """[token, score]; NaN is in no range."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and len(value[0]) <= MAX_SCORED
        and type(value[1]) in (int, float)
        and -1e9 <= value[1] <= 1e9
    )


def _is_numbered(item: tuple[str, Any]) -> bool:
    token, number = item
    return _is_token(token) and type(number) is int and 0 <= number <= 10_000_000


def _is_merge(value: Any) -> bool:
    """ "a b" or ["a", "b"]."""
    if isinstance(value, str):
        return len(value) <= 2 * MAX_PIECE + 1
    return isinstance(value, list) and len(value) == 2 and all(map(_is_token, value))
