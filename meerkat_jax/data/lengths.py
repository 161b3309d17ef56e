"""How many tokens the questions of built folders take, known before a run.

A built folder keeps the questions of its records apart from their media (`texts/`,
data/build/shards.py), so that all of them can be measured with a run's tokenizer and prompt in
little time: an answer that a batch has no room for is found before the first step, and examples
with little to say can share short batches (data/order.py). The lengths are kept in the cache.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
from array_record.python import array_record_module

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.progress import Progress
from meerkat_jax.data.leaks import file_hash
from meerkat_jax.data.prompt import Prompt
from meerkat_jax.data.shapes import Shapes

BLOCK = 4096  # records read at a time
VERSION = 1  # raise it when what is kept changes


class Lengths(NamedTuple):
    """Of n records with m questions in all; record i has those from first[i] to first[i + 1]."""

    first: np.ndarray  # int64[n + 1]
    question: np.ndarray  # int32[m], tokens of the instruction and what follows it
    answer: np.ndarray  # int32[m], tokens of the answer and the end token
    kind: np.ndarray  # int32[m], index into `kinds`
    kinds: tuple[str, ...]  # "task/kind"

    def of(self, records: np.ndarray) -> Lengths:
        """Those of some records, by their numbers int64[k]."""
        counts = np.diff(self.first)[records]
        first = np.concatenate([[0], np.cumsum(counts)])
        rows = np.repeat(self.first[records] - first[:-1], counts) + np.arange(first[-1])
        return Lengths(first, self.question[rows], self.answer[rows], self.kind[rows], self.kinds)

    def asked(self, weights: Mapping[str, float]) -> np.ndarray:
        """bool[m], which questions are ever drawn with these weights of tasks or "task/kind"."""
        odds = [weights.get(k, weights.get(k.split("/")[0], 1.0)) > 0 for k in self.kinds]
        return np.array(odds, bool)[self.kind]

    def needed(self, weights: Mapping[str, float], runs: int) -> np.ndarray:
        """int64[n], the least length of `runs` runs in which all questions surely find a place.

        Surely: put into the first run with room for it, in whatever order they are drawn. If that
        fails for a question of s tokens, every run holds more than length - s.
        """
        sizes = np.where(self.asked(weights), self.question + self.answer, 0)
        total, longest = _each(np.add, sizes, self.first), _each(np.maximum, sizes, self.first)
        return -(-(total + (runs - 1) * np.maximum(longest - 1, 0)) // runs)

    def fits(self, weights: Mapping[str, float], shapes: Shapes) -> np.ndarray:
        """bool[m], which questions a batch has room for; those that are never drawn all do."""
        said, size = self.answer, self.question + self.answer
        good = (said <= min(shapes.max_answer_tokens, shapes.max_target_tokens)) & (
            size <= shapes.pack_length
        )
        return good | ~self.asked(weights)


def _each(function: np.ufunc, values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """`function` over the values of each record; 0 for one without any."""
    found = np.zeros(len(first) - 1, np.int64)
    some = np.flatnonzero(np.diff(first))
    if len(some):
        found[some] = function.reduceat(values.astype(np.int64), first[some])
    return found


def joined(several: list[Lengths]) -> Lengths:
    """The records of one after those of the other."""
    kinds = tuple(sorted({kind for one in several for kind in one.kinds}))
    starts = np.cumsum([0, *(one.first[-1] for one in several)])
    first = [one.first[:-1] + start for one, start in zip(several, starts, strict=False)]
    renamed = [np.array([kinds.index(k) for k in one.kinds], np.int32)[one.kind] for one in several]
    return Lengths(
        np.concatenate([*first, starts[-1:]]),
        np.concatenate([one.question for one in several]),
        np.concatenate([one.answer for one in several]),
        np.concatenate(renamed),
        kinds,
    )


def measure(
    folder: Path, split: str, prompt: Prompt, cache: Path, say: Callable[[str], Any] = print
) -> Lengths:
    """Lengths of all records of a split of a built folder; measured once for each tokenizer.

    Raises UserError for a folder without `texts/`.
    """
    paths = sorted((Path(folder) / "texts").glob(f"{split}-*.array_record"))
    if not paths:
        raise UserError(
            f"{folder}: no texts/{split}-*.array_record; lengths are known of folders that "
            "data/build has built"
        )
    manifest = file_hash(Path(folder) / "manifest.json")
    named = [VERSION, manifest, split, prompt.tokenizer.sha256, prompt.style, prompt.system]
    name = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
    kept = Path(cache) / "lengths" / f"{name}.npz"
    if not kept.exists():
        found = _measured(paths, prompt, f"{folder}, {split}: measuring texts", say)
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(".partial.npz")
        np.savez(temporary, **found._asdict())
        temporary.replace(kept)
    with np.load(kept) as arrays:
        found = {key: arrays[key] for key in Lengths._fields}
    return Lengths(**found | {"kinds": tuple(map(str, found["kinds"]))})


def _measured(paths: list[Path], prompt: Prompt, what: str, say: Callable) -> Lengths:
    readers = [array_record_module.ArrayRecordReader(str(path)) for path in paths]
    progress = Progress(what, sum(reader.num_records() for reader in readers), say=say)
    question = functools.lru_cache(1 << 16)(lambda text: len(prompt.question_ids(text)))
    first, rows, kinds = [0], [], {}
    for reader in readers:
        for start in range(0, reader.num_records(), BLOCK):
            end = min(start + BLOCK, reader.num_records())
            for record in reader.read(start, end):
                for task, kind, instruction, response in msgpack.unpackb(record):
                    number = kinds.setdefault(f"{task}/{kind}", len(kinds))
                    rows.append((question(instruction), len(prompt.answer_ids(response)), number))
                first.append(len(rows))
            progress.report(len(first) - 1)
        reader.close()
    columns = np.array(rows, np.int32).reshape(-1, 3).T
    return Lengths(np.array(first, np.int64), *columns, tuple(kinds))
