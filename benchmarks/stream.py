"""From records on disk to batches in memory: our pipeline beside a torch DataLoader.

    python -m benchmarks.stream --out=stream.json
    taskset -c 1 python -m benchmarks.stream --workers=0

Records as a build makes them: 10 s of mono FLAC at 48 kHz, a JPEG of 512 px, questions; written to
a temporary folder. Both sides read the same ones, shuffled, with the same batch and the same number
of worker processes, and give the same arrays, which is seen to first. What the model would then do
is not there: the next batch is asked for as soon as one is here. Without workers ours decodes in
threads of this process, torch in the process itself.

The other side is what one would write with the plain tools: a Dataset over `array_record`, Pillow,
soundfile, soxr where the rate differs, and torch's own batching. The words are tokenised and packed
by the same code of ours on both sides.

On a busy machine time on the clock tells little. So the time of processors is told too, summed over
this process and its workers: examples per second of one core.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from absl import app, flags
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image

from benchmarks import measure
from benchmarks.records import RATE, encoder, write_split
from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import from_bytes
from meerkat_jax.data.pipeline import Encode, train_batches
from meerkat_jax.data.prompt import pack
from meerkat_jax.data.split import Split

SECONDS, STORED, SIDE = 10.0, 512, 224  # of a sound; pixels of an image on disk and in a batch
KEYS = (
    "image",
    "audio",
    "tokens",
    "loss_mask",
    "segment_ids",
    "boxes",
    "matched",
    "image_labels",
    "audio_labels",
)


class Plain(torch.utils.data.Dataset):
    """The same examples with the plain tools; a worker opens the files when it first reads."""

    def __init__(self, folder: Path, encode: Encode) -> None:
        self.paths = sorted(str(path) for path in folder.glob("train-*.array_record"))
        self.encode, self.source = encode, None

    def __len__(self) -> int:
        return len(ArrayRecordDataSource(self.paths))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if self.source is None:
            self.source = ArrayRecordDataSource(self.paths)
        return self.arrays(self.source[index], np.random.default_rng(index))

    def arrays(self, record: bytes, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """What `Encode` makes of a record."""
        example, shapes = from_bytes(record), self.encode.shapes
        side = (shapes.image_size, shapes.image_size)
        image = Image.open(io.BytesIO(example.image)).convert("RGB")
        wave, rate = soundfile.read(io.BytesIO(example.audio), dtype="float32")
        if rate != shapes.sample_rate:
            wave = soxr.resample(wave, rate, shapes.sample_rate)
        samples = round(shapes.seconds * shapes.sample_rate)
        wave = np.pad(wave[:samples], (0, max(0, samples - len(wave))))
        drawn = self.encode.draw(example, rng)
        pairs = [(question.instruction, question.response) for question in drawn]
        packed = pack(
            self.encode.prompt,
            pairs,
            shapes.num_packs,
            shapes.pack_length,
            shapes.max_target_tokens,
        )
        return {
            "image": np.array(image.resize(side, Image.Resampling.BICUBIC)),
            "audio": wave,
            **packed._asdict(),
            "boxes": self.encode.pad_boxes(example),
            "matched": np.bool_(example.matched),
            "image_labels": self.encode.pad_names(example.image_labels),
            "audio_labels": self.encode.pad_names(example.audio_labels),
        }


class Shuffled(torch.utils.data.Sampler):
    """Numbers of examples without end, each epoch in an order of its own."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(0)
        while True:
            yield from rng.permutation(self.count).tolist()


def ours(folder: Path, encode: Encode, batch: int, workers: int) -> Iterator[dict]:
    """Batches as training has them."""
    return train_batches(Split(folder, "train"), encode, batch, seed=0, workers=workers)


def theirs(folder: Path, encode: Encode, batch: int, workers: int) -> Iterator[dict]:
    """Batches of the DataLoader, with its own defaults; workers start anew, as ours do."""
    plain = Plain(folder, encode)
    context = "spawn" if workers else None
    return iter(
        torch.utils.data.DataLoader(
            plain,
            batch,
            sampler=Shuffled(len(plain)),
            num_workers=workers,
            drop_last=True,
            multiprocessing_context=context,
        )
    )


def agree(folder: Path, encode: Encode, count: int) -> None:
    """ValueError when the sides make different arrays of one of the first `count` examples."""
    plain = Plain(folder, encode)
    for index, record in enumerate(ArrayRecordDataSource(plain.paths)):
        if index == count:
            return
        found = plain.arrays(record, np.random.default_rng(index))
        expected = encode.random_map(from_bytes(record), np.random.default_rng(index))
        for key in KEYS:
            one, other = np.asarray(expected[key]), np.asarray(found[key])
            if one.dtype != other.dtype or not np.array_equal(one, other):
                raise ValueError(f"example {index}: {key} differs between the two sides")


def busy() -> float:
    """Seconds of processors that this process and its living workers have used (Linux)."""
    spent = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def feed(stream: Iterator[dict], batch: int, batches: int) -> dict[str, Any]:
    """Read batches and throw them away -> rates; the first ones, when all starts, are not timed.

    By then buffers are as empty as one who never waits makes them, and stay so. Ends the stream.
    """
    for _ in range(2 + 64 // batch):
        next(stream)
    waits, start, before = [], time.perf_counter(), busy()
    for _ in range(batches):
        waits.append(measure.seconds(lambda: next(stream)))
    elapsed, used = time.perf_counter() - start, busy() - before
    with contextlib.suppress(RuntimeError):  # torch tells of a worker that ArrayRecord ends hard
        for name in ("close", "_shutdown_workers"):  # grain's way, and torch's
            getattr(stream, name, lambda: None)()
    examples = batch * batches
    return {
        "examples_per_second": examples / elapsed,
        "examples_per_core_second": examples / used,
        "cores_used": used / elapsed,
        "batch_seconds": measure.spread(waits),
    }


def beside(
    folder: Path, encode: Encode, workers: int, batch: int, batches: int, repeats: int
) -> dict[str, Any]:
    """Both sides by turns -> what the report says of one number of workers."""
    found: dict[str, list[dict]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        for side, stream in (("ours", ours), ("theirs", theirs)):
            found[side].append(feed(stream(folder, encode, batch, workers), batch, batches))
    rates = ("examples_per_second", "examples_per_core_second", "cores_used")
    case: dict[str, Any] = {"workers": workers}
    for side, runs in found.items():
        case[side] = {rate: measure.spread([run[rate] for run in runs]) for rate in rates}
    for rate in rates[:2]:  # of ours to theirs: above 1 ours is faster
        pairs = zip(found["ours"], found["theirs"], strict=True)
        case["ratio_of_" + rate] = measure.spread([a[rate] / b[rate] for a, b in pairs])
    return case


def line(case: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [str(case["workers"])]
    for rate in ("examples_per_second", "examples_per_core_second"):
        cells += [f"{case[side][rate]['median']:.0f}" for side in ("ours", "theirs")]
        cells.append(measure.told(case["ratio_of_" + rate]))
    return f"| {' | '.join(cells)} |"


def run(
    workers: Sequence[int] = (0, 1, 2),
    records: int = 128,
    batch: int = 8,
    batches: int = 40,
    repeats: int = 5,
    rate: int = RATE,
    seconds: float = SECONDS,
    stored: int = STORED,
    side: int = SIDE,
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Write the records, read them with each number of workers -> the report."""
    setting = measure.setting("CPU", len(os.sched_getaffinity(0)))
    report: dict[str, Any] = {"setting": setting, "rate": rate, "batch": batch, "cases": []}
    with tempfile.TemporaryDirectory() as made:
        size = write_split(Path(made), records, seconds, stored)
        report |= {"records": records, "bytes_per_record": size / records, "repeats": repeats}
        encode = encoder(seconds, side, rate)
        agree(Path(made), encode, min(records, 8))
        say("| workers | ours, examples/s | torch | ratio | ours, of a core | torch | ratio |")
        say("|---|---|---|---|---|---|---|")
        for count in workers:
            report["cases"].append(beside(Path(made), encode, count, batch, batches, repeats))
            say(line(report["cases"][-1]))
    return report


def main(_: list[str]) -> None:
    """Read the flags, measure, write."""
    given = flags.FLAGS
    try:
        if any(not word.isdigit() for word in given.workers):
            raise UserError(f"--workers={','.join(given.workers)}: expected numbers, as 0,1,2")
        report = run(
            list(map(int, given.workers)),
            given.records,
            given.batch,
            given.batches,
            given.repeats,
            given.rate,
        )
    except UserError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)
    if given.out:
        Path(given.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    flags.DEFINE_list("workers", ["0", "1", "2"], "Numbers of worker processes to try.")
    flags.DEFINE_integer("records", 128, "Records that are written and read.", lower_bound=1)
    flags.DEFINE_integer("batch", 8, "Examples of a batch.", lower_bound=1)
    flags.DEFINE_integer("batches", 40, "Batches that are timed.", lower_bound=2)
    flags.DEFINE_integer("repeats", 5, "Times that either side is read, by turns.", lower_bound=1)
    flags.DEFINE_integer("rate", RATE, "Hz of sounds in a batch; on disk 48000.", lower_bound=1000)
    flags.DEFINE_string("out", None, "Where the JSON goes; default: nowhere.")
    app.run(main)
