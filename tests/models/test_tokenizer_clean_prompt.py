"""Prompt cleaning against diffusers, with and without ftfy."""

import random
import sys

import pytest
from diffusers.pipelines.wan import pipeline_wan

from kinema.text.clean import clean_prompt

TEXTS = [
    "a red circle",
    "It's 50% \"plain\" <b>text</b> (of #1-9), with {all} [kinds] ~ of \\ signs; ^_^ ``quoted'' $ @ + = | ?!",
    "  many   spaces\t\n\r and\x0b lines \u2003 wide \u00a0 fixed ",
    "",
    " ",
    "&lt;b&gt; &amp;lt;twice&amp;gt; &amp;amp;amp;lt;thrice",
    "caf\u00c3\u00a9 na\u00c3\u00afve \u00e2\u20ac\u0153mojibake\u00e2\u20ac\u009d",
    "\u201ccurly\u201d \u2018quotes\u2019 \ufb01 ligature \uff21\uff22 full width",
    "&nbsp;&nbsp;entities&#x20;&#10;here&hellip;",
    "\u732b\u304c\u8d70\u308b \U0001f984",
    "\ud83d\ude00 pair, control \x00\x1b[31m codes\x1b[0m",
    "<tag attr='1'>&notanentity; &copy",
]


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    pieces = [
        "&amp;",
        "&lt;",
        ";",
        "amp",
        " ",
        "\n",
        "\u00c3\u00a9",
        "\u00e2\u20ac\u2122",
        "word",
        "\u200b",
        "\ufeff",
        "\x85",
    ]
    return ["".join(rng.choices(pieces, k=rng.randint(1, 20))) for _ in range(count)]


@pytest.mark.parametrize("with_ftfy", [True, False])
def test_equals_diffusers(with_ftfy, monkeypatch):
    if not with_ftfy:
        monkeypatch.setitem(sys.modules, "ftfy", None)
        monkeypatch.setattr(pipeline_wan, "is_ftfy_available", lambda: False)
    texts = TEXTS + random_texts(300)
    assert [clean_prompt(t) for t in texts] == [pipeline_wan.prompt_clean(t) for t in texts]


def test_ftfy_makes_a_difference(monkeypatch):
    mended = [clean_prompt(t) for t in TEXTS]
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert mended != [clean_prompt(t) for t in TEXTS]


def test_a_plain_prompt_imports_nothing_to_mend_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    plain = "".join(chr(code) for code in range(32, 127) if chr(code) != "&")
    without = clean_prompt(plain)
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "ftfy", raising=False)
    assert clean_prompt(plain) == without == pipeline_wan.prompt_clean(plain)
    assert clean_prompt("caf\u00c3\u00a9") == "caf\u00e9" and "ftfy" in sys.modules
