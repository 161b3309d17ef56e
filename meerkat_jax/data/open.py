"""From the words of a config to a data set that can be read: folder, classes and tokenizer.

`data.kind` is "mini", the embedded data set, which is rendered into the cache folder when it is not
there yet, or "avfit", a mixture of folders that data/build.py has built.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meerkat_jax.data import instructions
from meerkat_jax.data.mini.build import MiniConfig, build, check_name
from meerkat_jax.data.mixture import mix
from meerkat_jax.data.pipeline import Shapes
from meerkat_jax.data.prompt import Prompt
from meerkat_jax.data.split import Split, open_split, read_manifest
from meerkat_jax.data.tokenizer import Tokenizer, build_mini_tokenizer
from meerkat_jax.errors import UserError, construct

HELD_OUT = {"mini": "compositions", "avfit": "test"}  # the split that is scored during training
KINDS = tuple(HELD_OUT)
TEXT_RECORDS = 1000  # records whose words the tokenizer learns; each has about ten questions


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Records on disk: `folder` of ArrayRecord files, class names in the order of their indices.

    cache: where what is measured of them is kept.
    """

    folder: Path
    classes: tuple[str, ...]
    tokenizer: Tokenizer
    cache: Path

    def name_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int32[N, W] of the class names and float32[N, W], 1 on words, 0 on padding."""
        return name_ids(self.tokenizer, self.classes)

    def needed(
        self, split: Split, prompt: Prompt, shapes: Shapes, weights: Mapping[str, float]
    ) -> np.ndarray | None:
        """The length int64[n] that each record's texts need; None where batches are all alike.

        Raises UserError when a question that may be drawn has no room in a batch. Of folders
        without `texts/`, as the mini data set, nothing is known beforehand.
        """
        if not split.has_texts():
            if shapes.lengths:
                raise UserError(f"data.lengths: {self.folder} keeps no texts apart to measure")
            return None
        lengths = split.lengths(prompt, self.cache)
        fits = lengths.fits(weights, shapes)
        if not fits.all():
            question = int(np.flatnonzero(~fits)[0])
            record = int(np.searchsorted(lengths.first, question, side="right")) - 1
            said = int(lengths.answer[question])
            raise UserError(
                f"{int((~fits).sum())} of {len(fits)} questions of split {split.name!r} have no "
                f"room in a batch, the first in {split.open()[record].id}: its answer has {said} "
                f"tokens, with its question {said + int(lengths.question[question])}; data.answer "
                f"is {shapes.answer}, data.room {shapes.room}, data.length {shapes.length}"
            )
        return lengths.needed(weights, shapes.runs) if shapes.lengths else None

    def fitting(
        self,
        name: str,
        prompt: Prompt,
        shapes: Shapes,
        weights: Mapping[str, float],
        say: Callable[[str], Any] = print,
    ) -> np.ndarray | None:
        """Numbers int64[k] of the records of a split all of whose questions have room in a batch.

        What is left out is told; None: nothing is known beforehand.
        """
        split = Split(self.folder, name)
        if not split.has_texts():
            return None
        lengths = split.lengths(prompt, self.cache)
        owners = np.repeat(np.arange(len(lengths.first) - 1), np.diff(lengths.first))
        long = np.unique(owners[~lengths.fits(weights, shapes)])
        if len(long):
            say(
                f"{len(long)} of {len(lengths.first) - 1} examples of {name!r} are not scored "
                "during training: their answers have no room in a batch (evaluate scores them)"
            )
        return np.setdiff1d(np.arange(len(lengths.first) - 1), long)


def name_ids(tokenizer: Tokenizer, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """See `DataSet.name_ids`."""
    ids = tokenizer.encode_batch(classes)
    table = np.full((len(ids), max(map(len, ids), default=1)), tokenizer.pad_id, np.int32)
    weights = np.zeros(table.shape, np.float32)
    for row, words in enumerate(ids):
        table[row, : len(words)], weights[row, : len(words)] = words, 1.0
    return table, weights


def open_data(data: Mapping, cache: Path, tokenizer: Tokenizer | None = None) -> DataSet:
    """The data set of `config["data"]`, below `cache`; the same words give the same data set.

    `tokenizer` is that of published weights; without, one is made of the data's own words.

    Raises UserError for an unknown kind or key, and when the cache folder cannot be used.
    """
    folder = open_folder(data, cache)
    classes = tuple(read_manifest(folder)["classes"])
    if tokenizer is None:
        tokenizer = build_mini_tokenizer(words(folder), classes, instructions.PHRASES)
    return DataSet(folder, classes, tokenizer, Path(cache))


def open_folder(data: Mapping, cache: Path, trained: str | None = None) -> Path:
    """The folder alone, rendered now if it is not there; that of a mixture names its sources.

    UserError when it is not the folder named `trained` (None: any is).
    """
    if data["kind"] not in KINDS:
        raise UserError(f"data.kind {data['kind']!r} is unknown; there is: {', '.join(KINDS)}")
    if data["kind"] == "avfit":
        folder = mix(Path(data["root"]).expanduser(), data["sources"], cache)
        check_name(folder, trained)
        return folder
    settings = {"sample_rate": data["sample_rate"], **data["mini"]}
    try:
        return build(construct(MiniConfig, settings, "data.mini"), cache, trained=trained)
    except OSError as error:
        raise UserError(
            f"data folder {cache}: {error.strerror or error}; name another with --data_dir"
        ) from error


def words(folder: Path) -> Iterator[str]:
    """Texts with every word in use: templates, and the text of evenly spaced train records."""
    for paraphrases in instructions.TEMPLATES.values():
        for text in (text for split in paraphrases.values() for text in split):
            yield re.sub(r"\{\w+\}", "", text)
    records = open_split(folder, "train")
    for index in range(0, len(records), max(1, len(records) // TEXT_RECORDS)):
        for question in records[index].questions:
            yield question.instruction
            yield question.response
