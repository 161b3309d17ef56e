"""Parameter trees: which leaves are trained, which stay frozen, and how two trees differ.

A model's parameters are nested dicts of arrays; a leaf is named by its path, as in
"llama/layers/q/kernel". Training splits them by regular expressions into `{"trainable": ...,
"frozen": ...}`, because only trainable leaves own a gradient, optimizer state and a place in the
checkpoint; `merge` puts the two back together inside the step. Patterns are searched in the path
(`re.search`), so "lora_[ab]$" means every adapter and "^avace/" one module. A pattern that selects
nothing is an error: nothing is frozen or trained by a typing mistake.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from meerkat_jax.core.errors import UserError, nearest

Tree = dict[str, Any]
STATISTICS = ("bn_mean", "bn_var")  # running statistics: leaves that no optimiser may touch


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts -> {"a/b/c": leaf} in the order of the tree; empty dicts vanish.

    flax's `flatten_dict`, which would join any keys: raises UserError for a key that is not a
    string, is empty or holds a "/", since `unflatten` would make another tree of it.
    """
    flat = flatten_dict(dict(tree))
    for key in itertools.chain.from_iterable(flat):
        if not isinstance(key, str) or not key or "/" in key:
            raise UserError(f"parameter tree: key {key!r} must be a non-empty string without '/'")
    return {"/".join(path): leaf for path, leaf in flat.items()}


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """{"a/b/c": leaf} -> nested dicts; raises UserError if one path lies inside another.

    flax's `unflatten_dict`, which would drop one of the two, or fail without their names.
    """
    for path in flat:
        for parent in itertools.accumulate(path.split("/")[:-1], "{}/{}".format):
            if parent in flat:
                raise UserError(f"parameter {path!r} lies inside the leaf {parent!r}")
    return unflatten_dict(flat, sep="/")


def found(pattern: str, path: str) -> bool:
    """Is `pattern` found in `path`; UserError if it is no regular expression."""
    try:
        return re.search(pattern, path) is not None
    except re.error as error:
        raise UserError(f"pattern {pattern!r} is not a regular expression: {error}") from None


def matching(pattern: str, paths: Iterable[str]) -> list[str]:
    """The paths in which `pattern` is found, in order; UserError if there is none."""
    paths = list(paths)
    hits = [path for path in paths if found(pattern, path)]
    if not hits:
        plain = re.sub(r"\.\*|[\^$.*+?()\[\]|\\]", "", pattern)
        near = ", ".join(nearest(plain, paths)) or "none: the tree is empty"
        raise UserError(f"pattern {pattern!r} matches no parameter; the nearest are: {near}")
    return hits


def selected(patterns: Iterable[str], paths: Iterable[str]) -> set[str]:
    """The paths in which any pattern is found; UserError for a pattern that matches nothing."""
    paths = list(paths)
    return {path for pattern in patterns for path in matching(pattern, paths)}


def split(params: Mapping[str, Any], trainable: Sequence[str]) -> Tree:
    """Params -> {"trainable": nested dict, "frozen": nested dict}; leaves are shared, not copied.

    A leaf is trainable if any pattern of `trainable` is found in its path; no pattern freezes all.
    Running statistics (`STATISTICS`) stay frozen whatever the patterns say: they have no gradient
    that means anything.
    Raises UserError for a pattern that matches nothing.
    """
    flat = flatten(params)
    chosen = selected(trainable, flat)
    chosen = {path for path in chosen if path.rsplit("/", 1)[-1] not in STATISTICS}
    return {
        "trainable": unflatten({path: leaf for path, leaf in flat.items() if path in chosen}),
        "frozen": unflatten({path: leaf for path, leaf in flat.items() if path not in chosen}),
    }


def merge(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> Tree:
    """The whole tree of both halves; UserError if a path is in both or lies inside the other's."""
    ours, theirs = flatten(trainable), flatten(frozen)
    both = sorted(ours.keys() & theirs.keys())
    if both:
        raise UserError(f"{len(both)} parameters are trainable and frozen at once, as {both[0]!r}")
    return unflatten({**theirs, **ours})


def count(tree: Mapping[str, Any]) -> int:
    """Number of numbers in the leaves (arrays or ShapeDtypeStructs)."""
    return sum(math.prod(leaf.shape) for leaf in flatten(tree).values())


def describe(halves: Mapping[str, Any], trainable: Sequence[str] = ()) -> str:
    """A summary of `split`: peft's line, then one line per pattern of `trainable`.

    "trainable params: 1,024 || all params: 8,192 || trainable%: 12.5000", then for each pattern the
    number of leaves, of numbers, their share of all, and one path as a sample.
    """
    flat, total = flatten(halves["trainable"]), count(halves["trainable"]) + count(halves["frozen"])

    def share(n: int) -> float:
        return 100 * n / max(total, 1)

    mine = count(halves["trainable"])
    lines = [
        f"trainable params: {mine:,} || all params: {total:,} || trainable%: {share(mine):.4f}"
    ]
    for pattern in trainable:
        paths = matching(pattern, flat)
        numbers = sum(math.prod(flat[path].shape) for path in paths)
        lines.append(
            f"  {pattern}: {len(paths)} leaves, {numbers:,} numbers ({share(numbers):.4f} %),"
            f" as {paths[0]}"
        )
    return "\n".join(lines)


def render(leaf: Any) -> str:
    """A leaf in words: "float32[3,4]" for anything with shape and dtype, otherwise its repr."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    return repr(leaf)


def compare(expected: Mapping[str, str], actual: Mapping[str, str]) -> list[str]:
    """Where two {path: description} differ, one sentence per path; equal ones give []."""
    both = {path: (expected.get(path), actual.get(path)) for path in {**expected, **actual}}
    return [
        f"{path}: expected {want or 'nothing'}, found {have or 'nothing'}"
        for path, (want, have) in both.items()
        if want != have
    ]
