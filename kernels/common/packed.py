"""Weights in the layout of what packed them."""

from __future__ import annotations

import itertools
from weakref import WeakValueDictionary

_numbers = itertools.count()
_alive: WeakValueDictionary[int, Packed] = WeakValueDictionary()


class Packed:
    """The base of every op's weights. number: what compiled code knows one by, which does not keep it alive."""

    number: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "number", next(_numbers))  # the records that derive from this are frozen
        _alive[self.number] = self

    @staticmethod
    def numbered(number: int) -> Packed:
        """The weight of this number."""
        return _alive[number]
