"""What the C interface has to refuse, or to do nothing for: one misuse after the other, each on its own line of output.

A process of its own, so that a call that dies takes no test run with it: what was printed last tells which it was.
"""

import contextlib
import ctypes
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import torch
from misuse_table import CONTROLS, EMPTY, EVIL, INT32, INT64, LEGAL, MISUSES, OTHERS, POINTER

from kinema.ops.common import native
from kinema.ops.common.interrupts import Control
from kinema.ops.unpatchify.cpu import UnpatchifyArguments

HEADER = Path(__file__).parents[2] / "csrc" / "include" / "kinema.h"
ENUM = re.search(r"enum kinema_status \{(.*?)\};", HEADER.read_text(), flags=re.DOTALL)[1]
STATUSES = {name: int(value) for name, value in re.findall(r"KINEMA_(\w+) = (\d+)", ENUM)}


def put(struct, field, value):
    name, _, rest = field.partition(".")
    if rest and not rest.isdigit():
        return put(getattr(struct, name), rest, value)
    place = (getattr(struct, name), int(rest)) if rest else None
    old = place[0][place[1]] if place else getattr(struct, name)
    new = value(old) if callable(value) else value
    if place:
        place[0][place[1]] = new
    else:
        setattr(struct, name, new)


def no_pointer_leads_anywhere(struct):
    for name, kind in struct._fields_:
        if kind is POINTER and getattr(struct, name) and name != "norm":
            setattr(struct, name, EVIL)
        elif issubclass(kind, ctypes.Array) and kind._type_ is POINTER:
            for index in range(kind._length_):
                getattr(struct, name)[index] = EVIL if getattr(struct, name)[index] else None


def outcome(call, spoil):
    """(status of a call whose arguments `spoil` has changed, what its scratch function answers)."""
    answers, plain = [], native.Cpu.call

    def spoiled(self, name, arguments):
        spoil(arguments)
        asked = 0
        if name.removeprefix("kinema_") in native.WITH_WORKSPACE:
            asked = getattr(self.library, f"{name}_workspace")(self.handle, ctypes.byref(arguments))
        try:
            plain(self, name, arguments)
            answers.append((0, asked))
        except ValueError as error:
            text = str(error).removeprefix("native kernel: ").encode()
            status = next(s for s in STATUSES.values() if self.library.kinema_status_text(s) == text)
            answers.append((status, asked))

    native.Cpu.call = spoiled
    try:
        with contextlib.suppress(ValueError):
            call()
    finally:
        native.Cpu.call = plain
    return answers[0]


def cases():
    """(name, call, what is done to its arguments, the status that must come of it)"""
    for calls, field, value, status in MISUSES:
        for name in calls:
            yield f"{name}: {field} = {value}", name, lambda a, f=field, v=value: put(a, f, v), status
    for name, fields in EMPTY.items():
        for field in fields:

            def empty(arguments, field=field):
                put(arguments, field, 0)
                no_pointer_leads_anywhere(arguments)

            yield f"{name}: no {field}, no memory", name, empty, "OK"
    for name in LEGAL:
        yield f"{name}: as it was", name, lambda arguments: None, "OK"


# ---- functions of no struct

API = re.compile(r"KINEMA_API\s+([\w\s*]+?)\s*\b(kinema_\w+)\(([^)]*)\);")


def functions():
    """(name, what it answers, types of its arguments) of all in the header."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    for answer, name, given in API.findall(text):
        yield name, _ctype(answer), [_ctype(part) for part in given.split(",") if part.strip() != "void"]


def _ctype(declared):
    if "*" in declared or "kinema_parallel" in declared:
        return ctypes.c_char_p if "char" in declared else POINTER
    known = {"int64_t": INT64, "int32_t": INT32, "unsigned": ctypes.c_uint, "void": None}
    return next(kind for word, kind in known.items() if word in declared.split())


def of_nothing(function):
    """A function's answer to null handles, null structs and zeros."""
    _, _, kinds = function
    result = called(function, *(0 if kind in (INT32, INT64) else None for kind in kinds))
    return result.decode() if isinstance(result, bytes) else result


def called(function, *given):
    name, answer, kinds = function
    found = getattr(ctypes.CDLL(str(native.LIBRARY)), name)
    found.restype, found.argtypes = answer, kinds
    return found(*given)


def other(function, given):
    """The status of a function's answer to `given` behind the handle."""
    memory = torch.zeros(4096, dtype=torch.uint8)
    places = {f"memory + {offset}" if offset else "memory": memory.data_ptr() + offset for offset in range(2048)}
    given = [native.cpu().handle, *(places.get(part, part) for part in given)]
    given += [None] * (len(function[2]) - len(given))
    answer = called(function, *given)
    return -answer if function[1] is INT64 and answer < 0 else 0 if function[1] is INT64 else answer


def controlled(field, value):
    """The status of a call that may be ended by what is spoiled."""
    flag, memory = INT32(0), torch.ones(64)
    flags = (POINTER * 1)(ctypes.addressof(flag))
    control = Control(flags=ctypes.addressof(flags), flag_count=1)
    put(control, field, value)
    arguments = UnpatchifyArguments(*[1] * 8, memory.data_ptr(), 1, 1, memory[16:].data_ptr())
    called_with = (native.cpu().handle, ctypes.byref(arguments), ctypes.byref(control))
    return native.cpu().library.kinema_unpatchify(*called_with)


def main():
    for function in functions():
        print(json.dumps([function[0], of_nothing(function)]), flush=True)
    known = {function[0]: function for function in functions()}
    for name, given, _ in OTHERS:
        print(json.dumps([f"{name}{given}", other(known[name], given)]), flush=True)
    for field, value, _ in CONTROLS:
        print(json.dumps([f"control: {field} = {value}", controlled(field, value)]), flush=True)
    for label, name, spoil, _ in cases():
        print(json.dumps([label, outcome(LEGAL[name], spoil)]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
