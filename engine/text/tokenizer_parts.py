"""The components of a tokenizer.json that are read: those that T5, UMT5, CLIP, GPT and Llama are published with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from kinema.fields.config import Length, Range

MAX_PIECE = 512  # the characters of one token; published vocabularies have runs of 128 spaces

Text = Annotated[str, Length(0, MAX_PIECE)]
Char = Annotated[str, Length(1, 1)]
Id = Annotated[int, Range(0, 10_000_000)]
Behavior = Literal["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
Fields = Mapping[str, Any]  # {parameter: what it may be, as an annotation}

_BYTE_LEVEL: Fields = {"add_prefix_space": bool, "trim_offsets": bool, "use_regex": bool}
_BERT: Fields = {"sep": tuple[Text, Id], "cls": tuple[Text, Id]}
PATTERN: Fields = {"String": Annotated[str, Length(1, MAX_PIECE)], "Regex": Annotated[str, Length(1, MAX_PIECE)]}

NORMALIZERS: Mapping[str, Fields] = {
    "BertNormalizer": {
        "clean_text": bool,
        "handle_chinese_chars": bool,
        "strip_accents": bool | None,
        "lowercase": bool,
    },
    "ByteLevel": {},
    "Lowercase": {},
    "NFC": {},
    "NFD": {},
    "NFKC": {},
    "NFKD": {},
    "Nmt": {},
    "Precompiled": {"precompiled_charsmap": Annotated[str, Length(0, 7_000_000)] | None},
    "Prepend": {"prepend": Annotated[str, Length(1, MAX_PIECE)]},
    "Replace": {"pattern": dict, "content": Text},
    "Strip": {"strip_left": bool, "strip_right": bool},
    "StripAccents": {},
}
# How much longer a text may become, at most.
GROWTH = {"BertNormalizer": 12, "ByteLevel": 4, "Lowercase": 3, "NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18}

PRE_TOKENIZERS: Mapping[str, Fields] = {
    "BertPreTokenizer": {},
    "ByteLevel": _BYTE_LEVEL,
    "CharDelimiterSplit": {"delimiter": Char},
    "Digits": {"individual_digits": bool},
    "Metaspace": {
        "replacement": Char,
        "str_rep": Char,
        "add_prefix_space": bool,
        "prepend_scheme": Literal["first", "never", "always"],
        "split": bool,
    },
    "Punctuation": {"behavior": Behavior},
    "Split": {"pattern": dict, "behavior": Behavior, "invert": bool},
    "UnicodeScripts": {},
    "Whitespace": {},
    "WhitespaceSplit": {},
}
PRE_GROWTH = {"ByteLevel": 4, "Metaspace": 2}

POST_PROCESSORS: Mapping[str, Fields] = {
    "BertProcessing": _BERT,
    "ByteLevel": _BYTE_LEVEL,
    "RobertaProcessing": {**_BERT, "trim_offsets": bool, "add_prefix_space": bool},
    "TemplateProcessing": {"single": list, "pair": list, "special_tokens": dict},
}

MODELS: Mapping[str, Fields] = {
    "BPE": {
        "dropout": Annotated[float, Range(0, 0)] | None,  # otherwise merges are dropped at random
        "unk_token": Text | None,
        "continuing_subword_prefix": Literal[""] | None,  # cut off every piece, whether it is there or not
        "end_of_word_suffix": Text | None,
        "fuse_unk": bool,
        "byte_fallback": bool,
        "ignore_merges": bool,
        "vocab": dict,
        "merges": list,
    },
    "Unigram": {"unk_id": Id | None, "byte_fallback": bool, "vocab": list},
    "WordLevel": {"unk_token": Text, "vocab": dict},
    "WordPiece": {
        "unk_token": Text,
        "continuing_subword_prefix": Text,
        "max_input_chars_per_word": Annotated[int, Range(1, 1000)],
        "vocab": dict,
    },
}

ADDED_TOKEN: Fields = {
    "id": Id,
    "content": Annotated[str, Length(1, MAX_PIECE)],
    "single_word": bool,
    "lstrip": bool,
    "rstrip": bool,
    "normalized": bool,
    "special": bool,
}

SPECIAL_TOKEN: Fields = {
    "id": Text,
    "ids": Annotated[tuple[Id, ...], Length(1, 8)],
    "tokens": Annotated[tuple[Text, ...], Length(1, 8)],
}
TEMPLATE_PIECE: Fields = {"id": Text, "type_id": Annotated[int, Range(0, 9)]}
