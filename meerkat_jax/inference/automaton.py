"""The syntax of boxes and segments, byte by byte, which inference/grammar.py lifts to tokens.

A constrained answer is free text without digits and brackets, then one item or several with white
space between them. An item is `[label, number, ...]` as `data.text` writes it. The automaton knows
how far an item has got, not the numbers in it, which are compared elsewhere.

A label is text without brackets and control characters that begins with no space or quote and ends
in no white space, comma, colon or semicolon. At most one number stands in it by itself, whole and
not after a comma: "Boeing 747", not "1,000 birds", whose numbers would be read as coordinates.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

ANY, OVER = 0, 1  # the states of an unconstrained answer, and of one that has ended
WHITE, DIGITS, NUMERIC = b" \t\n\r", b"0123456789", b".0123456789"
_LETTER = re.compile(rb"[A-Za-z_]")
# First bytes of characters among which Unicode has white space, which reading strips.
_ODD = bytes((0xC2, 0xE1, 0xE2, 0xE3))

# ("text",), ("label", last, numbered), ("gap", number, numbered), ("whole", number, digits),
# ("zero", number), ("part", number, decimals), ("done", number), ("next", number), ("closed",).
# `last` is what the label ends in so far: "start", "word", "number", "mark", "dot", "high" (beyond
# ASCII), "odd" (perhaps white space), "space", "comma" or "break" (a comma or the like with white
# space after it, which a number must not follow).
State = tuple


@dataclasses.dataclass(frozen=True)
class ListFormat:
    """An item's numbers: how many, their decimals, and the largest in units of the last decimal."""

    count: int
    decimals: int
    top: int

    @property
    def digits(self) -> int:
        """The most digits before the point."""
        return len(str(self.top // 10**self.decimals))

    def step(self, state: State, byte: int) -> State | None:
        """The state after one more byte, None if it must not come."""
        kind, white = state[0], byte in WHITE
        if kind in ("text", "closed"):
            if byte == ord("["):
                return "label", "start", False
            free = byte not in b"]\x7f" + DIGITS and (byte >= 32 or white)
            return state if (free if kind == "text" else white) else None
        if kind == "label":
            return _label(state[1], state[2], byte)
        if kind == "gap" and byte not in DIGITS:
            return _label("break", state[2], byte) if state[1] == 0 else None
        return self._number(state, byte)

    def _number(self, state: State, byte: int) -> State | None:
        kind, number = state[:2]
        if kind == "done":
            last = number + 1 == self.count
            if byte != ord("]" if last else ","):
                return None
            return ("closed",) if last else ("next", number)
        if kind == "next":
            return ("gap", number + 1, False) if byte == ord(" ") else None
        if byte == ord("."):
            return ("part", number, 0) if kind in ("whole", "zero") else None
        if byte not in DIGITS:
            return None
        if kind == "gap":
            return ("zero", number) if byte == ord("0") else ("whole", number, 1)
        if kind == "whole" and state[2] < self.digits:
            return "whole", number, state[2] + 1
        if kind == "part":
            done = state[2] + 1 == self.decimals
            return ("done", number) if done else ("part", number, state[2] + 1)
        return None


def _label(last: str, numbered: bool, byte: int) -> State | None:
    if byte < 32 or byte in b"[]\x7f":
        return None
    if last == "start" and (byte in b" ,;:'\"" or 0x80 <= byte < 0xC0 or byte in _ODD):
        return None
    after_comma = last in ("comma", "break")
    if _LETTER.match(bytes([byte])):
        return "label", "word", numbered
    if byte in DIGITS:
        if last in ("word", "number"):
            return "label", last, numbered
        alone = last in ("start", "space", "mark") and not numbered
        return ("label", "number", True) if alone else None
    if byte == ord(" "):
        if last == "comma":
            return "gap", 0, numbered
        return "label", "break" if after_comma else "space", numbered
    if byte in b",;:":
        whole = last in ("word", "number", "mark", "dot", "high")
        return "label", "comma" if byte == ord(",") and whole else "break", numbered
    if byte >= 0x80:
        if after_comma and byte < 0xC0 or after_comma and byte in _ODD:
            return "label", "break", numbered
        odd = byte in _ODD or (last == "odd" and byte < 0xC0)
        return "label", "odd" if odd else "high", numbered
    # A point, and after a comma any mark, belong to the number that follows.
    bound = byte == ord(".") or after_comma
    return "label", "dot" if bound else "mark", numbered


def unit(kind: ListFormat, state: State) -> int:
    """Within and right after a number, 10 to the power of the decimals to come; 0 elsewhere."""
    if state[0] in ("whole", "zero"):
        return 10**kind.decimals
    if state[0] == "part":
        return 10 ** (kind.decimals - state[2])
    return int(state[0] == "done")


def more(kind: ListFormat, state: State) -> int:
    """How many digits can still come before the decimals of the number that has begun."""
    return kind.digits - state[2] if state[0] == "whole" else 0


def written(kind: ListFormat, state: State) -> int:
    """The number that the state is within or right after, -1 for none."""
    return state[1] if unit(kind, state) else -1


def coming(kind: ListFormat, state: State) -> int:
    """The number that is being written, or else the next one."""
    if state[0] in ("done", "next"):
        return (state[1] + 1) % kind.count
    return state[1] if state[0] in ("gap", "whole", "zero", "part") else 0


class Automaton:
    """The forms' states numbered from 2 (0 and 1: `ANY` and `OVER`), S in all.

    next int[S + 1, 256], where S stands for no way on; `starts` the forms' first states.
    """

    def __init__(self, kinds: Sequence[ListFormat]):
        self._states: list[tuple[ListFormat | None, State]] = [(None, ("any",)), (None, ("over",))]
        self.starts = []
        ways = [[ANY] * 256, [-1] * 256]
        for kind in kinds:
            self.starts.append(len(self._states))
            ways += self._explored(kind)
        self.size = len(self._states)
        table = np.array([*ways, [-1] * 256])
        self.next = np.where(table < 0, self.size, table)

    def _explored(self, kind: ListFormat) -> list[list[int]]:
        """Number all states of a form; the rows of their table."""
        first, rows = len(self._states), []
        found, known = [("text",)], {("text",): first}
        for state in found:  # grows meanwhile
            row = []
            for byte in range(256):
                after = kind.step(state, byte)
                if after is not None and after not in known:
                    known[after] = first + len(found)
                    found.append(after)
                row.append(-1 if after is None else known[after])
            rows.append(row)
        self._states += [(kind, state) for state in found]
        return rows

    def each(self, of: Callable[[ListFormat, State], int]) -> np.ndarray:
        """int32[S + 1]: `of` the states of forms, 0 elsewhere."""
        found = [0 if kind is None else of(kind, state) for kind, state in self._states]
        return np.array([*found, 0], np.int32)

    def alike(self) -> bytes:
        """For `bytes.translate`: the first of those bytes that do the same in every state.

        Digits and the point stand for themselves.
        """
        firsts: dict[tuple, int] = {}
        keys = ((byte if byte in NUMERIC else -1, *self.next[:, byte]) for byte in range(256))
        return bytes(firsts.setdefault(key, byte) for byte, key in enumerate(keys))
