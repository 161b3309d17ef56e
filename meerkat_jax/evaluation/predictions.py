"""Answers kept while they are given, so that a killed evaluation goes on where it was.

    predictions/<benchmark>.jsonl      of process 0, and <benchmark>.<process>.jsonl of the others

Each file begins with a line of facts (which weights, which data, how they were asked); then comes
a line for every example: `{"id": ..., "answers": [one text per question]}`. What is there of the
same facts is taken, by any number of processes; of other facts it is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from meerkat_jax.core.errors import UserError

FOLDER = "predictions"
SAMPLED = 256  # values of each leaf that tell one set of weights from another


class Predictions:
    """The answers to one benchmark by the id of the example; `add` appends to this process's file.

    A last line that was cut off by a kill is dropped, and its example answered again.
    """

    def __init__(
        self, out: Path, benchmark: str, facts: Mapping[str, Any], process: int = 0
    ) -> None:
        self.folder, self.benchmark, self.facts = Path(out) / FOLDER, benchmark, dict(facts)
        name = f"{benchmark}.{process}.jsonl" if process else f"{benchmark}.jsonl"
        self.path, self.answers = self.folder / name, {}
        self._file: IO[bytes] | None = None

    def read(self) -> None:
        """Take in what is on disk now, of all processes.

        Raises UserError when it was answered under other facts, or is no such file.
        """
        for path in self._paths():
            for row in self._rows(path):
                self.answers[row["id"]] = row["answers"]

    def forget(self) -> None:
        """Remove what is on disk, of all processes, to answer anew."""
        for path in self._paths():
            path.unlink()
        self.answers = {}

    def add(self, example: str, answers: Sequence[str]) -> None:
        """Keep the answers to the questions of an example."""
        if self._file is None:
            self._file = self._open()
        self._write({"id": example, "answers": list(answers)})
        self.answers[example] = list(answers)

    def flush(self) -> None:
        """To the disk, as far as answered."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """No more answers of this process."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def fingerprint(self) -> str:
        """Of the examples that are answered; processes that share the rest must agree on it."""
        return hashlib.sha256("\n".join(sorted(self.answers)).encode()).hexdigest()[:16]

    def _paths(self) -> list[Path]:
        own = [self.folder / f"{self.benchmark}.jsonl"]
        numbered = self.folder.glob(f"{self.benchmark}.*.jsonl")
        return [path for path in (*own, *sorted(numbered)) if path.is_file()]

    def _rows(self, path: Path) -> list[dict[str, Any]]:
        lines = path.read_bytes().split(b"\n")[:-1]  # behind the last end of line: cut off
        try:
            rows = [json.loads(line) for line in lines]
            rows = [rows[0], *({"id": r["id"], "answers": r["answers"]} for r in rows[1:])]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            if not lines:
                return []
            raise UserError(f"{path}: not a file of answers ({error}); remove it") from None
        for key, value in self.facts.items():
            if rows[0].get(key) != value:
                raise UserError(
                    f"{path} was answered with {key} {rows[0].get(key)!r}, now it is {value!r}; "
                    "answer anew with --overwrite, or name another folder with --out"
                )
        return rows[1:]

    def _open(self) -> IO[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        there = self.path.read_bytes() if self.path.is_file() else b""
        file = open(self.path, "r+b" if there else "wb")  # noqa: SIM115 (closed by `close`)
        file.truncate(there.rfind(b"\n") + 1)
        file.seek(0, 2)
        self._file = file
        if file.tell() == 0:
            self._write(self.facts)
        return file

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def weights_hash(params: Mapping[str, Any]) -> str:
    """Of some values of each leaf: the same weights have the same, trained ones another."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        flat = leaf.reshape(-1)
        some = flat[:: max(1, flat.shape[0] // SAMPLED)]
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(some).tobytes())
    return digest.hexdigest()[:16]
