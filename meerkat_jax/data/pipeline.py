"""Records to batches with Grain: shuffle, decode, resize, tokenise, pack; deterministic, resumable.

The order depends on the seed alone, not on the number of workers or hosts: workers prefetch records
before they are batched, and a host reads its rows of each global batch. The iterator's state is one
integer, the examples consumed; a resumed run rebuilds the pipeline from there (a worker's own state
would be tied to the number of workers and hosts).

Decoding and resizing happen here on the host; pixel normalisation and log-mel on the device.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.audio import load_audio
from meerkat_jax.data.example import Example, Question
from meerkat_jax.data.image import load_image
from meerkat_jax.data.order import BalancedBatches, endless
from meerkat_jax.data.prompt import Prompt, pack
from meerkat_jax.data.shapes import Shapes
from meerkat_jax.data.split import Part, Split, open_one

PART, AHEAD = 8, 64  # examples that a thread batches; examples prepared ahead


class Rows:
    """The examples at some `rows` of each batch of an endless data set, in order."""

    def __init__(self, records: grain.MapDataset, batch: int, rows: Sequence[int]) -> None:
        self.records, self.batch, self.rows = records, batch, tuple(rows)

    def __len__(self) -> int:
        return len(self.records) // self.batch * len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        number, row = divmod(index, len(self.rows))
        return self.records[number * self.batch + self.rows[row]]


class Features(Protocol):
    """Cached tower tokens (`training/feature_cache.py`)."""

    def lookup(self, example_id: str) -> dict[str, np.ndarray]:
        """The tower tokens of an example: image_tokens and audio_tokens."""


class Encode(grain.transforms.RandomMap):
    """Example -> arrays. As many of the pair's questions as fit, drawn by task weight.

    Without `needs_image`, `needs_audio` or `needs_text` that modality is not decoded: image is
    uint8[0, 0, 3], audio float32[0], and all tokens are padding. With `features` the cached tower
    tokens replace image and audio.
    """

    def __init__(
        self,
        shapes: Shapes,
        prompt: Prompt,
        classes: tuple[str, ...],
        weights: dict,
        needs_image: bool = True,
        needs_audio: bool = True,
        needs_text: bool = True,
        features: Features | None = None,
    ):
        self.shapes, self.prompt, self.weights, self.features = shapes, prompt, weights, features
        self.needs_image, self.needs_audio = needs_image, needs_audio
        self.needs_text = needs_text
        self.index = {name: i for i, name in enumerate(classes)}

    def random_map(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """See the contract in the module docstring of `training/step.py` for shapes."""
        return self.fit(example, rng, self.shapes.pack_length)

    def fit(self, example: Example, rng: np.random.Generator, length: int) -> dict[str, np.ndarray]:
        """The same with packs of `length` tokens."""
        shapes = self.shapes
        drawn = self.draw(example, rng) if self.needs_text else []
        pairs = [(question.instruction, question.response) for question in drawn]
        for _, response in pairs:
            longest = len(self.prompt.answer_ids(response))
            if longest > shapes.max_answer_tokens:
                raise UserError(
                    f"{example.id}: the answer {response!r} has {longest} tokens, "
                    f"data.max_answer_tokens is {shapes.max_answer_tokens}; raise it"
                )
        packed = pack(
            self.prompt, pairs, shapes.num_packs, length, min(shapes.max_target_tokens, length)
        )
        if self.features is not None:
            media = self.features.lookup(example.id)
        else:
            media = encode_media(example, shapes, self.needs_image, self.needs_audio)
        return media | {
            **packed._asdict(),
            "boxes": self.pad_boxes(example),
            "matched": np.bool_(example.matched),
            "image_labels": self.pad_names(example.image_labels),
            "audio_labels": self.pad_names(example.audio_labels),
        }

    def draw(self, example: Example, rng: np.random.Generator) -> list[Question]:
        """The questions in random order, drawn by the weight of `task` or `task/kind`.

        A task that the weights do not name has 1.
        """
        questions = example.questions
        keys = [(f"{q.task}/{q.truth.get('kind', q.task)}", q.task) for q in questions]
        odds = np.array([self.weights.get(k, self.weights.get(t, 1.0)) for k, t in keys])
        count = int((odds > 0).sum())
        if not count:
            raise UserError(f"{example.id}: no question left by the task weights {self.weights}")
        picks = rng.choice(len(questions), count, replace=False, p=odds / odds.sum())
        return [questions[i] for i in picks]

    def pad_boxes(self, example: Example) -> np.ndarray:
        """float32[N, 4]; a box of zero area is padding."""
        boxes = [(b.x0, b.y0, b.x1, b.y1) for b in example.boxes]
        return _pad(boxes, (self.shapes.max_boxes, 4), 0.0, f"{example.id}: boxes").astype(
            np.float32
        )

    def pad_names(self, names: tuple[str, ...]) -> np.ndarray:
        """int32[M] class indices, -1 on padding. Names that are no classes are left out."""
        known = [self.index[name] for name in names if name in self.index]
        return _pad(known, (self.shapes.max_labels,), -1, "names").astype(np.int32)


def _pad(values: list, shape: tuple[int, ...], fill: float, what: str) -> np.ndarray:
    if len(values) > shape[0]:
        raise UserError(f"{what}: {len(values)} of them, the batch has room for {shape[0]}")
    array = np.full(shape, fill)
    array[: len(values)] = np.reshape(values, (len(values), *shape[1:]))
    return array


def encode_media(
    example: Example, shapes: Shapes, needs_image: bool = True, needs_audio: bool = True
) -> dict[str, np.ndarray]:
    """Image and audio as arrays; empty ones for a modality that is not needed.

    image uint8[H, W, 3] squashed to the tower's size, or [0, 0, 3]; audio float32[samples], or [0].
    """
    image, audio = np.zeros((0, 0, 3), np.uint8), np.zeros(0, np.float32)
    if needs_image:
        image = load_image(example.image, shapes.image_size, name=example.id)
    if needs_audio:
        audio, _ = load_audio(example.audio, shapes.sample_rate, shapes.seconds, name=example.id)
    return {"image": image, "audio": audio}


class Fetch(grain.transforms.RandomMap):
    """The number of a record, or (number, length), to its encoded arrays."""

    def __init__(self, records: grain.MapDataset, encode: Encode) -> None:
        self.records, self.encode = records, encode

    def random_map(
        self, place: int | tuple[int, int], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Read the record and encode it in packs of that length, or of the longest."""
        whole = self.encode.shapes.pack_length
        number, length = place if isinstance(place, tuple) else (place, whole)
        return self.encode.fit(self.records[number], rng, length)


def train_batches(
    split: Split,
    encode: Encode,
    batch: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    scenes: int | None = None,
    rows: Sequence[int] | None = None,
    needed: np.ndarray | None = None,
    strata: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless shuffled batches, beginning at example number `start` of the endless order.

    `workers` processes decode ahead; 0 decodes in threads of this process. Same order either way.
    With `scenes` only the first ones of the split are read, with `rows` only these of each batch.
    With `strata` uint8[n], what is known of each record (`Split.strata`), each batch has its share
    of matched and boxed pairs; with `needed` as well, the length int[n] that each record's texts
    need, it has one of `lengths` of the shapes where its texts fit.
    """
    order = numbers(split, seed, scenes)
    if strata is not None:
        lengths = (*encode.shapes.pack_lengths, encode.shapes.pack_length)
        if needed is None:
            needed, lengths = np.zeros(len(strata), int), lengths[-1:]
        balanced = BalancedBatches(order, strata, needed, lengths, batch, seed)
        order = grain.MapDataset.source(balanced).seed(seed)
    records = order.random_map(Fetch(split.open(), encode))
    records = records[start:]
    if rows is not None:
        records = grain.MapDataset.source(Rows(records, batch, rows))
    size = batch if rows is None else len(rows)
    # A thread batches a part of a batch, so that fewer and larger arrays are passed on.
    part = max(count for count in range(1, min(size, PART) + 1) if size % count == 0)
    # More threads than cores would take turns; a lone one would wait for each record's disk.
    threads = min(4, max(2, cores() // max(workers, 1)))
    reading = grain.ReadOptions(threads, prefetch_buffer_size=max(threads, AHEAD // part))
    stream = records.batch(part, drop_remainder=True).to_iter_dataset(reading)
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers)
        stream = stream.mp_prefetch(options, worker_init_fn=leave_with_parent)
    if part < size or workers:  # a copy, so that memory shared with workers is free at once
        stream = stream.batch(size // part, drop_remainder=True, batch_fn=_joined)
    # Batches are assembled in a thread, too, so that the loop does not wait.
    return iter(grain.experimental.ThreadPrefetchIterDataset(stream, prefetch_buffer_size=2))


def cores() -> int:
    """Cores that this process may use; a container or a scheduler may give it fewer than all."""
    return len(os.sched_getaffinity(0))


def affordable(workers: int, say: Callable[[str], Any] = print) -> int:
    """`workers`, or fewer where there are fewer cores, which is told. The order stays the same."""
    if workers > cores():
        say(f"data.workers is {workers}, this process may use {cores()} cores: {cores()} workers")
    return min(workers, cores())


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def numbers(split: Split, seed: int, scenes: int | None = None) -> grain.MapDataset:
    """Numbers of the records of `split.open()`, shuffled without end (data/order.py)."""
    places, repeats = zip(*split.sources(), strict=True)
    counts = [len(open_one(place, split.name)) for place in places]
    shares = [count * each for count, each in zip(counts, repeats, strict=True)]
    return endless(counts, shares, seed, scenes)


def fixed_batches(
    split: Split,
    encode: Encode,
    batch: int,
    count: int,
    rows: Sequence[int] | None = None,
    among: Sequence[int] | None = None,
) -> list[dict[str, np.ndarray]]:
    """The first `count` batches of a split (fewer if it is small), the same questions each time.

    With `rows` only these of each batch, with `among` only of records with these numbers.
    """
    records = split.open()
    if among is not None:
        records = grain.MapDataset.source(Part(records, among))
    records = records.seed(0).random_map(encode)
    usable = len(records) // batch * batch
    records = records[: min(usable, count * batch)]
    if rows is not None:
        records = grain.MapDataset.source(Rows(records, batch, rows))
    return list(records.batch(batch if rows is None else len(rows)))


def leave_with_parent(*_: int) -> None:
    """End this worker process when the one that started it ends, even if that is killed.

    And not before: a run that is asked to go (training/preemption.py) needs its last batches, and
    those who ask send the signal to all its processes.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
