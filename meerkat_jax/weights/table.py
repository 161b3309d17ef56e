"""Conversion as a table: which published tensor becomes which leaf of ours, strict both ways.

A row says "published name, path of our leaf, changed so". A placeholder that stands in both, as {s}
in ("layers.{s}.norm.weight", "stage_{s}/norm/scale"), is a number that is copied; `{i}` in the name
alone numbers the slices of a leaf that is stacked on a leading axis (nn.scan):

    Row("model.layers.{i}.self_attn.q_proj.weight", "layers/q/kernel", LINEAR)

So the shapes of our leaves say which tensors a checkpoint must hold, by name; those, and the ones
that a row drops on purpose, are all that it may hold. What is wrong is told in one error. A change
can be undone bit for bit, so the same table exports.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights.prefixes import by_prefix

LISTED = 4  # names that an error lists of each kind of fault; the rest are counted


@dataclasses.dataclass(frozen=True)
class Change:
    """From a published tensor to a leaf (or a slice of a stacked leaf) and back.

    Both functions are views where they can be (`.T`, `.reshape`, slices): `plan` runs them on
    arrays of a tensor's shape that have no memory of their own.
    """

    forward: Callable[[Any], Any]
    back: Callable[[Any], Any]


SAME = Change(lambda x: x, lambda x: x)
LINEAR = Change(lambda x: x.T, lambda x: x.T)  # torch keeps [out, in]
CONV = Change(  # torch's [out, in, y, x] as our kernel [y, x, in, out]
    lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table; `target` None drops the tensor, and `source` may then end in "*".

    computed: for a dropped tensor, the values that our module computes in its place (weights/
    dropped.py compares). loaded: whether transformers computes with the file's values.
    """

    source: str
    target: str | None
    change: Change = SAME
    computed: Callable[[], np.ndarray] | None = None
    loaded: bool = False


def dense(source: str, target: str, change: Change = LINEAR) -> tuple[Row, Row]:
    """The rows of a product with bias."""
    kernel = Row(f"{source}.weight", f"{target}/kernel", change)
    return kernel, Row(f"{source}.bias", f"{target}/bias")


def norm(source: str, target: str) -> tuple[Row, Row]:
    """The rows of a norm's scale and bias."""
    return Row(f"{source}.weight", f"{target}/scale"), Row(f"{source}.bias", f"{target}/bias")


@dataclasses.dataclass(frozen=True)
class Piece:
    """A source tensor's place: leaf `target`, slice `index` of it (None: the whole leaf)."""

    source: str
    target: str
    index: int | None
    change: Change


def plan(
    rows: Sequence[Row],
    source: Mapping[str, Sequence[int]],
    target: Mapping[str, Sequence[int]],
    what: str,
) -> list[Piece]:
    """Where every tensor goes, in the order of `source`.

    source: shapes by published name; target: shapes by path of our leaves; `what` begins the error.
    Raises UserError with all that is wrong: tensors that are missing, unknown, of another shape or
    claimed by several rows, and leaves that not exactly one row fills.
    """
    pieces, orphans = pieces_of(rows, target)
    wanted = {piece.source: piece for piece in pieces}
    drops = [pattern(row.source) for row in rows if row.target is None]
    claims = Counter([piece.source for piece in pieces])
    claims.update(name for name in source for drop in drops if drop.fullmatch(name))
    missing = [name for name in wanted if name not in source]
    misfits = {
        name: told
        for name, shape in source.items()
        if name in wanted and (told := _misfit(wanted[name], shape, target))
    }

    unknown, prefixed = [name for name in source if name not in claims], []
    if (explained := by_prefix(missing, unknown)) is not None:
        told, missing, unknown = explained
        prefixed = [told]

    def stray(name: str) -> str:
        near = difflib.get_close_matches(name, missing, n=1)
        return f"{name} {list(source[name])}" + (f" (is it {near[0]}?)" if near else "")

    _refuse(
        f"{what} is not the checkpoint that its config describes",
        ("named otherwise", prefixed, str),
        ("missing", missing, lambda name: f"{name} (for {wanted[name].target})"),
        ("unknown", unknown, stray),
        ("of another shape", list(misfits), misfits.__getitem__),
        ("claimed by several rows of the table", [n for n in claims if claims[n] > 1], str),
        ("without a row of its own in the table", orphans, str),
    )
    return [wanted[name] for name in source if name in wanted]


def assembled(pieces: Sequence[Piece], read: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
    """{path: leaf} of a small model at once, in memory: for tests and verification.

    read: gives the tensor of a published name.
    """
    slices: dict[str, dict[int | None, np.ndarray]] = {}
    for piece in pieces:
        value = np.asarray(piece.change.forward(read(piece.source)), order="C")
        slices.setdefault(piece.target, {})[piece.index] = value
    return {
        path: found[None] if None in found else np.stack([found[i] for i in range(len(found))])
        for path, found in slices.items()
    }


def published(rows: Sequence[Row], leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The way back: {published name: tensor} of {path: leaf}.

    Raises UserError for leaves that no row or several rows lead back.
    """
    pieces, orphans = pieces_of(rows, {path: leaf.shape for path, leaf in leaves.items()})
    _refuse("this cannot be published", ("without a row of its own in the table", orphans, str))

    def tensor(piece: Piece) -> np.ndarray:
        leaf = leaves[piece.target]
        back = piece.change.back(leaf if piece.index is None else leaf[piece.index])
        return np.asarray(back, order="C")

    return {piece.source: tensor(piece) for piece in pieces}


def pieces_of(rows: Sequence[Row], target: Mapping[str, Sequence[int]]) -> tuple[list, list[str]]:
    """All pieces of the leaves in `target` (by shape), and the leaves that not one row fills."""
    patterns = [(row, pattern(row.target)) for row in rows if row.target is not None]
    pieces, orphans = [], []
    for path, shape in target.items():
        hits = [(row, found) for row, known in patterns if (found := known.fullmatch(path))]
        if len(hits) != 1:
            orphans.append(path)
            continue
        row, numbers = hits[0][0], hits[0][1].groupdict()
        stacked = "{i}" in row.source and "i" not in numbers
        for i in range(shape[0]) if stacked else [None]:
            name = row.source.format(**numbers, **({"i": i} if stacked else {}))
            pieces.append(Piece(name, path, i, row.change))
    return pieces, orphans


def pattern(template: str) -> re.Pattern[str]:
    """A template as a pattern: placeholders are numbers, a final "*" is anything."""
    numbers = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[0-9]+)", re.escape(template))
    return re.compile(re.sub(r"\\\*$", ".*", numbers))


def _misfit(piece: Piece, shape: Sequence[int], target: Mapping[str, Sequence[int]]) -> str:
    """What is wrong with the shape of a tensor, "" for nothing."""
    want = tuple(target[piece.target])[0 if piece.index is None else 1 :]
    try:
        have = piece.change.forward(np.broadcast_to(np.int8(0), shape)).shape  # takes no memory
    except (ValueError, IndexError):  # as of another number of axes
        have = None
    if have == want:
        return ""
    became = "" if have in (None, tuple(shape)) else f", as {list(have)}"
    return f"{piece.source} {list(shape)}{became} ({piece.target} takes {list(want)})"


def _refuse(what: str, *faults: tuple[str, Sequence[str], Callable[[str], str]]) -> None:
    """UserError that lists all faults: (kind, names, what to say of a name)."""
    told = []
    for kind, names, say in faults:
        more = [f"and {len(names) - LISTED} more"] if len(names) > LISTED else []
        count = f" ({len(names)})" if more else ""
        if names:
            told.append(
                f"{kind}{count}: {', '.join([say(name) for name in names[:LISTED]] + more)}"
            )
    if told:
        raise UserError(f"{what}; {'; '.join(told)}")
