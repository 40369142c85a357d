"""Small wrong edits of the native kernels, as mutate.py makes them of Triton's: one operator, call, constant or
statement of a function at a time.

C++ is read line by line, as clang-format leaves it: what stands at the left margin names a function, and operators
have spaces around them, which the brackets of a template have not. What only decides how fast a kernel is, and sizes
of memory, which the sanitizers watch (make sanitize), are left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from mutate import Mutant

# (what is looked for, what it becomes)
EDITS: tuple[tuple[str, str], ...] = (
    (r" < ", " <= "),
    (r" <= ", " < "),
    (r" > ", " >= "),
    (r" >= ", " > "),
    (r" == ", " != "),
    (r" != ", " == "),
    (r" && ", " || "),
    (r" \|\| ", " && "),
    (r" \+ ", " - "),
    (r" - ", " + "),
    (r" \* ", " + "),
    (r" / ", " * "),
    (r" % ", " / "),
    (r" \+= ", " -= "),
    (r"\btrue\b", "false"),
    (r"\bfalse\b", "true"),
    (r"\bmin\(", "max("),
    (r"\bmax\(", "min("),
    (r"\bvmin\(", "vmax("),
    (r"\bvmax\(", "vmin("),
    (r"\badd\(", "sub("),
    (r"\bsub\(", "add("),
    (r"\bfma\(([^()]*), ([^()]*), ([^()]*)\)", r"fma(\1, \2, sub(set1(0.0f), \3))"),
    (r"(?<![\w.])0\.0f", "0.125f"),
    (r"(?<![\w.])1\.0f", "1.125f"),
    (r"= 0;", "= 1;"),
)
# at the left margin a function or a struct, one step in a struct's method
NAMED = re.compile(r"^(?:struct (\w+)|(?=[a-z]).*?(?<!_)\b(?!__|always_inline|noinline)(\w+)\()")
METHOD = re.compile(r"^    (?:[\w:<>*&]+ )+[*&]?(\w+)\((?:[^;]*[{(,]|.*\{.*\})$")
STATEMENT = re.compile(
    r"^ +(?!return\b|const\b|static\b|if\b|for\b|else\b|while\b|V\b|using\b)[\w:\->.\[\]<>, *&]+"
    r"(?: [+*/-]?= .*|\(.*\)|\+\+);$"
)
# tilings, prefetching and scratch sizes
FAST_ONLY = {
    "Prefetcher",
    "prefetch_results",
    "GemmTiling",
    "AttentionTiling",
    "ConvBands",
    "WinogradTiling",
    "aligned",
    "bytes",
    "lines_bytes",
    "packed_bytes",
    "floats",
    "frames",
    "rows",
    "has_few_outputs",
    "reads_in_place",
    "conv3d_workspace",
    "parallel_for_rows",
    "probe_f32",
    "probe_i8",
}
LEFT_OUT = re.compile(r"^ *(?://|#|static_assert|template\b|typedef|constexpr int)|fetch|bytes|workspace|threads")


def mutants(source: str) -> list[Mutant]:
    """Every mutant of every function of a header."""
    lines = source.split("\n")
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    function = ""
    for number, line in enumerate(lines):
        named = NAMED.match(line) or METHOD.match(line)
        if named is not None:
            function = next(name for name in named.groups() if name is not None)
        if function == "" or function in FAST_ONLY or LEFT_OUT.search(line) or not line.startswith(" "):
            continue
        for what, changed in _edits(line):
            words = f"{function}: {what}"
            seen[words] += 1
            if seen[words] > 1:
                words += f" ({seen[words]})"
            found.append(Mutant(function, words, "\n".join([*lines[:number], changed, *lines[number + 1 :]])))
    return found


def _edits(line: str) -> Iterator[tuple[str, str]]:
    """(what is edited in words, the changed line)."""
    code = line.split(" //")[0].rstrip()
    text = code.strip()
    for pattern, new in EDITS:
        for match in re.finditer(pattern, code):
            changed = code[: match.start()] + match.expand(new) + code[match.end() :]
            yield f"{text} becomes {changed.strip()}", changed
    if STATEMENT.match(code):
        yield f"{text} dropped", code[: len(code) - len(code.lstrip())] + ";"
