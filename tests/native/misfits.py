"""Calls that do not fit: one argument of an op spoiled, or one field of what the C interface is given.

An op of Python has to refuse what does not fit, or to compute it as the reference does. The C interface believes how
much memory a pointer leads to and how a weight was packed; everything else it has to refuse, or to compute.
"""

import contextlib
import ctypes
import dataclasses

import torch

from kinema.ops.common import Target, native

# ---- arguments of an op


def spoiled(call, dice):
    """The call with another value in one place of its arguments or of its weight."""
    given = {"arguments": call.arguments, "weight": call.weight}
    path, value = dice.choice([leaf for leaf in leaves(given) if leaf[1] is not None])
    other = _other_tensor(value, given, dice) if isinstance(value, torch.Tensor) else _other(value, dice)
    return dataclasses.replace(call, **replaced(given, path, other))


def leaves(value, path=()):
    """(path, value) of all that is no container."""
    parts = _parts(value)
    if parts is None:
        yield path, value
    else:
        for name, part in parts.items():
            yield from leaves(part, (*path, name))


def _parts(value):
    if dataclasses.is_dataclass(value) and not isinstance(value, Target):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return dict(enumerate(value))
    return value if isinstance(value, dict) else None


def replaced(value, path, other):
    """`value` with another one at the end of the path."""
    if not path:
        return other
    name, *rest = path
    part = replaced(_parts(value)[name], rest, other)
    if isinstance(value, dict):
        return {**value, name: part}
    if isinstance(value, (tuple, list)):
        return type(value)(part if i == name else old for i, old in enumerate(value))
    return dataclasses.replace(value, **{name: part})


def _other_tensor(t, given, dice):
    axis = dice.randrange(t.ndim) if t.ndim else 0
    ways = {
        "none": lambda: None,
        "unsqueezed": lambda: t.unsqueeze(0),
        "double": lambda: t.double(),
        "half": lambda: t.half(),
        "int": lambda: torch.full_like(t, dice.choice((-1, 3, 1000)), dtype=torch.int32),
        "another": lambda: dice.choice([v for _, v in leaves(given) if isinstance(v, torch.Tensor)]),
    }
    if t.ndim:
        size = t.shape[axis]
        ways |= {
            "less": lambda: t.narrow(axis, 0, max(0, size - 1)).clone(),
            "more": lambda: torch.cat((t.float(), t.float()[(slice(None),) * axis + (slice(1),)]), axis).to(t.dtype),
            "one": lambda: t.narrow(axis, 0, min(size, 1)).clone(),
            "twice": lambda: torch.cat((t.float(), t.float()), axis).to(t.dtype),
            "empty": lambda: t.narrow(axis, 0, 0).clone(),
            "selected": lambda: t.select(axis, 0).clone() if size else t.sum(axis, dtype=torch.float32),
            "transposed": lambda: t.transpose(axis, -1),
            "spread": lambda: t.repeat_interleave(2, -1)[..., ::2],
        }
    if not t.is_floating_point():  # lengths, indices, counts
        ways |= {
            name: lambda number=number: torch.full_like(t, min(number, torch.iinfo(t.dtype).max))
            for name, number in (("below", -1), ("beyond", 3000), ("far", 2**31 - 1))
        }
    return ways[dice.choice(list(ways))]()


def _other(value, dice):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return dice.choice((-1, 0, value + 1, 2 * value + 1, value + 40, None, 1.5))
    return dice.choice((None, -1.0, float("nan"), "nonsense"))


# ---- fields of a struct

# what the interface can only believe: how a weight was packed, how long rows are, and which format lies somewhere
BELIEVED = {"x_dtype", "weight_dtype", "out_dtype", "gated", "winograd", "x_features", "across_heads", "quantize"}
SIZES = (-1, 0, -(2**63), 2**62, 2**63 - 1)
OPTIONS = (-1, 99, -(2**31), 2**31 - 1)


@contextlib.contextmanager
def meddling(dice, told):
    """Native calls have one field of their struct spoiled; `told` becomes what was done. Scratch is asked for anew."""
    plain = native.Cpu.call

    def call(self, name, arguments):
        spoil = dice.choice([f for f in _fields(arguments) if f[0] != "workspace" or arguments.workspace])
        told.append(f"{name}: {_spoil(dice, arguments, *spoil)}")
        if hasattr(arguments, "workspace") and spoil[0] != "workspace":
            scratch = aligned(self.ask(f"{name}_workspace", arguments))
            arguments.workspace = scratch.data_ptr()
        plain(self, name, arguments)

    native.Cpu.call = call
    try:
        yield
    finally:
        native.Cpu.call = plain


def aligned(count):
    """uint8 [count] at a cache line, and not a byte more, so that a sanitizer sees its ends."""
    return torch.full((count,), 0xFF, dtype=torch.uint8)


def _fields(struct):
    """(name, type, index in an array)"""
    for name, kind in struct._fields_:
        for index in range(kind._length_) if issubclass(kind, ctypes.Array) else (None,):
            yield name, kind._type_ if index is not None else kind, index


def _spoil(dice, struct, name, kind, index):
    if issubclass(kind, ctypes.Structure):
        field = dice.choice(list(_fields(getattr(struct, name))))
        return f"{name}.{_spoil(dice, getattr(struct, name), *field)}"
    old = getattr(struct, name) if index is None else getattr(struct, name)[index]
    if kind is ctypes.c_void_p:
        new = _other_pointer(dice, struct, name, old, index)
    elif kind is ctypes.c_float:
        new = dice.choice((-1.0, float("nan"), float("inf")))
    elif name in BELIEVED:
        new = dice.choice((-1, 99))
    else:
        new = dice.choice(SIZES if kind is ctypes.c_int64 else OPTIONS)
    if index is None:
        setattr(struct, name, new)
    else:
        getattr(struct, name)[index] = new
    return f"{name}{'' if index is None else [index]} = {new}, was {old}"


def _other_pointer(dice, struct, name, old, index):
    entries = {"lengths": ctypes.c_int64, "counts": ctypes.c_int32, "indices": ctypes.c_int32}.get(name)
    if old and entries is not None and dice.random() < 0.6 and (name != "indices" or struct.listed):
        ctypes.cast(old, ctypes.POINTER(entries))[0] = dice.choice((-1, 2**31 - 1, 1000))
        return old
    in_bytes = getattr(struct, f"{name}_dtype", native.F32) not in (native.F32, native.BF16)
    return old + 1 if old and not in_bytes and dice.random() < 0.5 else None
