r"""Which regular expressions of a tokenizer.json are allowed to run.

The tokenizers library searches by backtracking, which can take practically for ever, and where it gives up it
panics. So a pattern must be one of those that language models are published with, or so simple that its search is
linear: alternatives of single characters and classes, none repeated without limit but the last (` {2,}`, `\s+`).
"""

from __future__ import annotations

import re

_ESCAPE = r"\\[sSdDwWnrtfv]|\\[pP]\{\^?\w{1,40}\}|\\[^\w\s]"
_CLASS = rf"\[\^?(?:{_ESCAPE}|[^\\\[\]])+\]"
_PIECE = re.compile(
    rf"(?P<bar>\|)|(?:{_ESCAPE}|{_CLASS}|[^\\\[\](){{}}*+?|^$])"
    r"(?P<repeat>\?|\*|\+|\{(?P<least>\d{1,2})(?P<range>,(?P<most>\d{1,2})?)?\})?(?![?*+{])"
)
MAX_LENGTH = 1000
MAX_OPTIONAL = 3

_WORDS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
# None of their repeats can give back more than one character, or is tried again from within.
PUBLISHED = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    rf"{_ENGLISH}|\p{{N}}{{1,3}}|{_WORDS}",  # Llama 3
    rf"{_ENGLISH}|\p{{N}}|{_WORDS}",  # Qwen 2
}


def least_match(pattern: str) -> int | None:
    """The fewest characters that a pattern matches, 1 or more; None for a pattern that is not allowed to run."""
    if pattern in PUBLISHED:
        return 1
    if len(pattern) > MAX_LENGTH:
        return None
    shortest, least, optional, endless, position = None, 0, 0, False, 0
    while position < len(pattern):
        piece = _PIECE.match(pattern, position)
        if piece is None or (endless and not piece["bar"]):
            return None
        position = piece.end()
        if piece["bar"]:
            if least < 1:
                return None
            shortest = least if shortest is None else min(shortest, least)
            least, optional, endless = 0, 0, False
            continue
        fewest, most = _times(piece)
        least += fewest
        endless = most is None
        optional += most is not None and most > fewest
        if optional > MAX_OPTIONAL:
            return None
    if least < 1:
        return None
    return least if shortest is None else min(shortest, least)


def _times(piece: re.Match[str]) -> tuple[int, int | None]:
    """How often a piece of a pattern is repeated: at least, and at most (None: without limit)."""
    repeat = piece["repeat"]
    if repeat is None:
        return 1, 1
    if repeat in ("?", "*", "+"):
        return int(repeat == "+"), 1 if repeat == "?" else None
    least = int(piece["least"])
    if piece["range"] is None:
        return least, least
    return least, int(piece["most"]) if piece["most"] else None
