"""Records on disk with their class names and the tokenizer for their text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.prompt import Prompt
from meerkat_jax.data.shapes import Shapes
from meerkat_jax.data.split import Split
from meerkat_jax.data.tokenizer import Tokenizer


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
            if shapes.pack_lengths:
                raise UserError(f"data.pack_lengths: {self.folder} keeps no texts apart to measure")
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
                f"tokens, with its question {said + int(lengths.question[question])}; "
                f"data.max_answer_tokens is {shapes.max_answer_tokens}, data.max_target_tokens "
                f"{shapes.max_target_tokens}, data.pack_length {shapes.pack_length}"
            )
        return lengths.needed(weights, shapes.num_packs) if shapes.pack_lengths else None

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


def check_name(folder: Path, trained: str | None) -> None:
    """UserError unless the folder is named `trained`, as the data set of a model (None: any is)."""
    if trained not in (None, folder.name):
        raise UserError(
            f"the model was trained on the data set {trained}, but its config now gives "
            f"{folder.name} (other media, another build or version): name the cache that has it "
            "with --data_dir, or the folder of built sources with --root, or train anew"
        )
