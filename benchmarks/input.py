"""Examples per second that the input pipeline gives, from records on disk to batches in memory.

    python -m benchmarks.input --out=input.json

Records as they are in training: 10 s of mono FLAC at 48 kHz, a JPEG of 224 px, questions; written
to a temporary folder and read by `data.pipeline.train_batches`, with no worker processes (decoding
in threads) and with some. What the model would then do is not there: the next batch is asked for
as soon as one is here.

On a busy machine time on the clock tells little. So the time of processors is told too, summed over
this process and its workers: examples per second of one core.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from absl import app, flags
from array_record.python import array_record_module
from PIL import Image

from benchmarks import measure
from meerkat_jax.data.example import Example, Question, to_bytes
from meerkat_jax.data.pipeline import Encode, Shapes, train_batches
from meerkat_jax.data.prompt import make_prompt
from meerkat_jax.data.tokenizer import build_mini_tokenizer
from meerkat_jax.errors import UserError

RATE, SECONDS, SIDE = 48_000, 10.0, 224
QUESTIONS = [
    ("Where is the object that makes this sound?", "[dog, 0.100, 0.200, 0.300, 0.400]"),
    ("When does the dog bark?", "[dog, 1.0, 2.5]"),
    ("Is the sound that of a dog?", "Yes."),
]


def sound(rng: np.random.Generator, seconds: float, rate: int = RATE) -> bytes:
    """FLAC of some tones that come and go over pink noise: it packs like a recording."""
    count = round(seconds * rate)
    at = np.arange(count) / rate
    hiss = np.fft.rfft(rng.standard_normal(count))
    hiss[1:] /= np.sqrt(np.arange(1, len(hiss)))
    wave = 3.0 * np.fft.irfft(hiss, count)
    for pitch in rng.uniform(100, 2000, 4):
        wave += 0.1 * np.sin(2 * np.pi * pitch * at) * (np.sin(rng.uniform(1, 6) * at) > 0)
    held = io.BytesIO()
    soundfile.write(held, 0.3 * wave / np.abs(wave).max(), rate, format="FLAC", subtype="PCM_16")
    return held.getvalue()


def picture(rng: np.random.Generator, side: int) -> bytes:
    """JPEG of smooth patches with grain on them: it packs like a photograph."""
    coarse = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    grain = smooth + 12 * rng.standard_normal((side, side, 3))
    held = io.BytesIO()
    Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).save(held, "JPEG", quality=90)
    return held.getvalue()


def write_split(folder: Path, records: int, seconds: float, side: int, rate: int = RATE) -> int:
    """Write a split "train" of so many examples; returns its bytes."""
    path = folder / "train-00000-of-00001.array_record"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for index in range(records):
        rng = np.random.default_rng(index)
        asked = tuple(Question("arig", *words, truth={"kind": "arig"}) for words in QUESTIONS)
        media = picture(rng, side), sound(rng, seconds, rate)
        writer.write(to_bytes(Example(str(index), "benchmark", "train", *media, asked, ("dog",))))
    writer.close()
    return path.stat().st_size


def encoder(seconds: float, side: int) -> Encode:
    """What the train door does with a record."""
    tokenizer = build_mini_tokenizer([text for pair in QUESTIONS for text in pair], ["dog"])
    shapes = Shapes(side, RATE, seconds, runs=2, length=192, room=160, answer=144)
    return Encode(shapes, make_prompt(tokenizer, "llama2"), ("dog",), {})


def busy() -> float:
    """Seconds of processors that this process and its living workers have used (Linux)."""
    spent = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def feed(folder: Path, encode: Encode, workers: int, batch: int, batches: int) -> dict[str, Any]:
    """Read batches and throw them away -> rates; the first ones, when all starts, are not timed.

    By then buffers are as empty as one who never waits makes them, and stay so.
    """
    stream = train_batches(folder, "train", encode, batch, seed=0, workers=workers)
    for _ in range(2 + 64 // batch):
        next(stream)
    waits, start, before = [], time.perf_counter(), busy()
    for _ in range(batches):
        waits.append(measure.seconds(lambda: next(stream)))
    elapsed, used = time.perf_counter() - start, busy() - before
    if hasattr(stream, "close"):
        stream.close()
    examples = batch * batches
    return {
        "workers": workers,
        "examples": examples,
        "examples_per_second": examples / elapsed,
        "examples_per_core_second": examples / used,
        "cores_used": used / elapsed,
        "batch_seconds": measure.spread(waits),
    }


def run(
    workers: Sequence[int] = (0, 1, 2),
    records: int = 128,
    batch: int = 8,
    batches: int = 60,
    seconds: float = SECONDS,
    side: int = SIDE,
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Write the records, read them with each number of workers -> the report."""
    report: dict[str, Any] = {"setting": measure.setting("CPU", os.cpu_count()), "cases": []}
    with tempfile.TemporaryDirectory() as made:
        size = write_split(Path(made), records, seconds, side)
        report |= {"records": records, "bytes_per_record": size / records, "batch": batch}
        encode = encoder(seconds, side)
        for count in workers:
            found = feed(Path(made), encode, count, batch, batches)
            report["cases"].append(found)
            say(
                f"workers {count}: {found['examples_per_second']:.0f} examples/s on "
                f"{found['cores_used']:.2f} cores, {found['examples_per_core_second']:.0f} per "
                "second of a core"
            )
    return report


def main(_: list[str]) -> None:
    """Read the flags, measure, write."""
    given = flags.FLAGS
    try:
        if any(not word.isdigit() for word in given.workers):
            raise UserError(f"--workers={','.join(given.workers)}: expected numbers, as 0,1,2")
        workers = list(map(int, given.workers))
        report = run(workers, given.records, given.batch, given.batches)
    except UserError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)
    if given.out:
        Path(given.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    flags.DEFINE_list("workers", ["0", "1", "2"], "Numbers of worker processes to try.")
    flags.DEFINE_integer("records", 128, "Records that are written and read.", lower_bound=1)
    flags.DEFINE_integer("batch", 8, "Examples of a batch.", lower_bound=1)
    flags.DEFINE_integer("batches", 60, "Batches that are timed.", lower_bound=2)
    flags.DEFINE_string("out", None, "Where the JSON goes; default: nowhere.")
    app.run(main)
