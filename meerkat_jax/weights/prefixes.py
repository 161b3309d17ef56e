"""Tensors of a checkpoint that are the expected ones, but for what their names begin with.

A model around the model ("model.language_model."), a part saved alone, or a library's wrapping that
is missing ("base_model.model.") would otherwise show as hundreds of missing and unknown names.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

TRIED = 5  # names from which a prefix is guessed


def by_prefix(
    missing: Sequence[str], unknown: Sequence[str]
) -> tuple[str, list[str], list[str]] | None:
    """(what is wrong and the remedy, names still missing, still unknown); None without a pattern.

    A pattern explains at least two names and half of the missing.
    """
    heads = {_heads(u, m) for u, m in itertools.product(unknown, missing[:TRIED])} - {None}
    found: dict[tuple[str, str], dict[str, str]] = {}
    for theirs, ours in heads:
        renamed = {u: ours + u[len(theirs) :] for u in unknown if u.startswith(theirs)}
        found[theirs, ours] = {u: m for u, m in renamed.items() if m in missing}
    best = max(found, key=lambda heads: (len(found[heads]), -len(heads[0])), default=None)
    if best is None or len(found[best]) < max(2, len(missing) / 2):
        return None
    names, (theirs, ours) = found[best], best
    told = f"{len(names)} names begin with {theirs!r} where {ours!r} is expected"
    if not ours:
        told = f"{len(names)} names have {theirs!r} before them"
    remedy = "save the inner model by itself (inner.save_pretrained), or take it off the names"
    if not theirs:
        told, remedy = f"{len(names)} names lack {ours!r} before them", "put it there"
    elif ours and not theirs.startswith(ours):
        remedy = "rename them so"
    return (
        f"{told}; {remedy}",
        [name for name in missing if name not in set(names.values())],
        [name for name in unknown if name not in names],
    )


def _heads(unknown: str, missing: str) -> tuple[str, str] | None:
    """What two names begin with, up to where they are equal; None if too little of them is."""
    theirs, ours = unknown.split("."), missing.split(".")
    same = 0
    for one, other in zip(reversed(theirs), reversed(ours), strict=False):
        if one != other:
            break
        same += 1
    heads = theirs[: len(theirs) - same], ours[: len(ours) - same]
    numbered = any(part.isdigit() for part in (*heads[0], *heads[1]))  # another layer
    if same < min(len(ours), 2) or theirs == ours or numbered:
        return None
    before, after = ("".join(f"{part}." for part in head) for head in heads)
    return before, after
