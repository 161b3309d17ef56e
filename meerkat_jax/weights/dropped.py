"""Tensors of a checkpoint that no leaf takes: what they are, and whether they say something else.

A table drops what has no part in our module (CLIP's text tower), and what the module computes by
itself (position indices). The latter are compared with the computed values. Where transformers
computes with the file's values a difference is refused, because our results would differ from its
results; where transformers ignores them too, the difference is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights.source import Source, Tensor
from meerkat_jax.weights.table import Row, pattern

NEAR = {"rtol": 1e-2, "atol": 1e-6}  # tables may be kept in bfloat16


def dropped(rows: Sequence[Row], tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """{name in the table: names in the checkpoint} of what the table drops."""
    found: dict[str, list[str]] = {}
    for row in rows:
        matches = pattern(row.source).fullmatch
        names = [name for name in tensors if row.target is None and matches(name)]
        if names:
            found[row.source] = names
    return found


def check_dropped(rows: Sequence[Row], source: Source) -> list[str]:
    """Lines about dropped tensors whose values are not those that our module computes.

    Raises UserError for those of them with which transformers computes.
    """
    wrong, told = [], []
    names = dropped(rows, source.tensors)
    for row in rows:
        if row.computed is None or row.source not in names:
            continue
        computed = row.computed()
        other = [name for name in names[row.source] if not _same(source.tensors[name], computed)]
        if not other:
            continue
        what = f"{other[0]} ({len(other)} of {len(names[row.source])} such tensors)"
        if row.loaded:
            wrong.append(
                f"{what} is not what follows from the config, and transformers computes with it; "
                "we cannot"
            )
        else:
            told.append(f"{what} is not what follows from the config; transformers ignores it too")
    if wrong:
        raise UserError(f"{source.path}: {'; '.join(wrong)}")
    return told


def _same(tensor: Tensor, computed: np.ndarray) -> bool:
    """Equal values; leading axes of length 1 do not count."""
    value = tensor.read()
    if value.size != computed.size:
        return False
    return np.allclose(value.reshape(computed.shape).astype(np.float64), computed, **NEAR)
