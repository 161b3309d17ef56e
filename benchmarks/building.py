"""Building records: our build beside a plain loop, its memory by size, and the sound codecs.

    python -m benchmarks.building --out=workers.json
    python -m benchmarks.building --only=memory --sizes=1000,10000,100000

speed: the same images (JPEG, 1024 x 768) and sounds (WAV, 10 s at 44.1 kHz) become the same
records, by turns. The other side is what one would write with the plain tools: Pillow, soundfile
and soxr in a `multiprocessing.Pool` of as many workers, ArrayRecord written by the parent. It looks
for nothing beforehand, keeps no keys, and cannot go on where it was killed. Starting processes is
in the time of both.

memory: the peak of the process that plans and of its largest worker, builds of so many examples,
each in processes of its own. Media are tiny and shared by many examples: what is looked for is
memory that grows with their number, and what the rest of the work takes.

codecs: bytes, and milliseconds of encoding and decoding, of the same clips of 10 s.
"""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from absl import app, flags
from array_record.python import array_record_module
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image

from benchmarks import measure, records
from meerkat_jax.core.errors import UserError
from meerkat_jax.data import media
from meerkat_jax.data.audio import load_audio
from meerkat_jax.data.build import shards
from meerkat_jax.data.example import Example, Question, from_bytes, to_bytes
from meerkat_jax.data.sources.entry import Options
from meerkat_jax.data.sources.registry import find
from meerkat_jax.training.metrics import peak_kib

PARTS = ("speed", "memory", "codecs")
CODECS = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS"), "vorbis": ("OGG", "VORBIS")}
LARGE, RATE, SECONDS = (1024, 768), 44_100, 10.0  # of the media that are built from
SHARD = 32  # examples of a file in `speed`, so that few examples keep all workers at work


def write_tree(folder: Path, examples: int, files: int, size: tuple, seconds: float) -> None:
    """Own data in a folder: `examples` that take turns at `files` images and audio clips."""
    for number in range(files):
        rng = np.random.default_rng(number)
        image = Image.open(io.BytesIO(records.image(rng, size[0])))
        image.crop((0, 0, *size)).save(folder / f"{number}.jpg", quality=90)
        heard = records.audio(rng, seconds, RATE, "WAV")
        (folder / f"{number}.wav").write_bytes(heard)
    with open(folder / "annotations.jsonl", "w") as out:
        for number in range(examples):
            box = ["dog", 0.1, 0.2, 0.5, round(0.3 + number % 500 / 1000, 3)]
            row = {
                "id": f"e{number:07d}",
                "image": f"{number % files}.jpg",
                "audio": f"{number % files}.wav",
                "questions": [{"task": "arig", "boxes": [box]}],
            }
            out.write(json.dumps(row) + "\n")


def ours(tree: Path, out: Path, workers: int, shard: int = SHARD) -> None:
    """The build of own data, without the time that it takes Python to start."""
    options, settings = Options(), shards.Settings(shard=shard)
    plan, say = find("jsonl")(tree, options), lambda line: None
    shards.build("jsonl", plan, tree, out, options, settings, workers, 0.0, say=say)


def convert(tree: Path, row: dict) -> bytes:
    """A row's record by the plain tools."""
    image = Image.open(tree / row["image"]).convert("RGB")
    image.thumbnail((media.LONGEST_SIDE, media.LONGEST_SIDE))
    shown, heard = io.BytesIO(), io.BytesIO()
    image.save(shown, "JPEG", quality=media.QUALITY)
    wave, rate = soundfile.read(tree / row["audio"], dtype="float32", always_2d=True)
    wave = soxr.resample(wave.mean(axis=1), rate, media.RATE)[: round(SECONDS * media.RATE)]
    soundfile.write(heard, wave, media.RATE, format="FLAC", subtype="PCM_16")
    asked = tuple(
        Question("arig", "Where is what is heard?", str(box), truth={"kind": "arig"})
        for question in row["questions"]
        for box in question["boxes"]
    )
    kept = shown.getvalue(), heard.getvalue()
    return to_bytes(Example(row["id"], "plain", "train", *kept, asked))


def theirs(tree: Path, out: Path, workers: int) -> None:
    """The plain loop: rows to a pool of processes, records in files of as many as ours."""
    out.mkdir()
    rows = list(map(json.loads, (tree / "annotations.jsonl").read_text().splitlines()))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        made = pool.imap(functools.partial(convert, tree), rows, chunksize=8)
        for shard in range(-(-len(rows) // SHARD)):
            path = out / f"train-{shard:05d}.array_record"
            writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
            for _ in range(min(SHARD, len(rows) - shard * SHARD)):
                writer.write(next(made))
            writer.close()


def built(out: Path) -> Iterator[Example]:
    """The examples of a folder in the order of their files."""
    paths = sorted(map(str, out.glob("train-*.array_record")))
    source = ArrayRecordDataSource(paths)
    return (from_bytes(source[number]) for number in range(len(source)))


def agree(mine: Path, other: Path) -> None:
    """ValueError when the sides made other images or sounds of an example."""
    for one, two in zip(built(mine), built(other), strict=True):
        for what in ("image", "audio"):
            if getattr(one, what) != getattr(two, what):
                raise ValueError(f"{one.id}: {what} differs between the two sides")


def used() -> float:
    """Seconds of processors that this process and those that it has ended have used."""
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in both)


def speed(
    examples: int, workers: int, repeats: int, size: tuple = LARGE, seconds: float = SECONDS
) -> dict[str, Any]:
    """Both sides by turns, on the same media -> rates and their ratios, ours to theirs."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as made:
        tree = Path(made) / "tree"
        tree.mkdir()
        write_tree(tree, examples, min(examples, 32), size, seconds)
        for turn in range(repeats):
            outs = {side: Path(made) / f"{side}{turn}" for side in found}
            for side, call in (("ours", ours), ("theirs", theirs)):
                start, before = time.perf_counter(), used()
                call(tree, outs[side], workers)
                spent = {"second": time.perf_counter() - start, "core_second": used() - before}
                found[side].append({f"examples_per_{k}": examples / v for k, v in spent.items()})
            agree(*outs.values())
            for out in outs.values():
                shutil.rmtree(out)
    case: dict[str, Any] = {"examples": examples, "workers": workers, "repeats": repeats}
    for rate in found["ours"][0]:
        for side, runs in found.items():
            case.setdefault(side, {})[rate] = measure.spread([run[rate] for run in runs])
        pairs = zip(found["ours"], found["theirs"], strict=True)
        case["ratio_of_" + rate] = measure.spread([a[rate] / b[rate] for a, b in pairs])
    return case


def peak(process: int | None = None) -> float:
    """The most memory that a living process, this one if none is named, has held, MiB."""
    return peak_kib(process or os.getpid()) / 1024


def alone(examples: int, workers: int) -> dict[str, float]:
    """Build tiny media in this process -> its peak and that of its largest worker, in MiB.

    Not by `ru_maxrss`, which a process takes over from the one that started it.
    """
    peaks, ended = {}, threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for child in multiprocessing.active_children():
                peaks[child.pid] = max(peaks.get(child.pid, 0.0), peak(child.pid))

    with tempfile.TemporaryDirectory() as made:
        tree = Path(made) / "tree"
        tree.mkdir()
        write_tree(tree, examples, 16, (32, 24), 0.1)
        begun = peak()
        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        ours(tree, Path(made) / "out", workers, shards.Settings().shard)
        seconds = time.perf_counter() - start
        ended.set()
        watcher.join()
    own = {"before": begun, "planner": peak(), "largest_worker": max(peaks.values(), default=0.0)}
    return {"examples": examples, "seconds": seconds, **own}


def memory(sizes: Sequence[int], workers: int) -> list[dict[str, float]]:
    """`alone` for each size, in a process that does nothing else."""
    found = []
    for size in sizes:
        command = [sys.executable, "-m", "benchmarks.building", f"--alone={size}"]
        command.append(f"--workers={workers}")
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def codecs(clips: int, repeats: int, seconds: float = SECONDS) -> dict[str, dict[str, float]]:
    """Each codec's mean kilobytes a clip, and milliseconds of one, the codecs by turns."""
    waves = [records.wave(np.random.default_rng(i), seconds) for i in range(clips)]
    stored: dict[str, list[bytes]] = {}
    times: dict[str, dict[str, list[float]]] = {k: {"encode": [], "decode": []} for k in CODECS}
    for _ in range(repeats):
        for kind, (container, codec) in CODECS.items():
            effort = {"compression_level": media.OPUS_EFFORT} if kind == "opus" else {}
            stored[kind], start = [], time.process_time()
            for wave in waves:
                held = io.BytesIO()
                form = {"format": container, "subtype": codec, **effort}
                soundfile.write(held, wave, records.RATE, **form)
                stored[kind].append(held.getvalue())
            between = time.process_time()
            for clip in stored[kind]:
                load_audio(clip, records.RATE, seconds)
            times[kind]["encode"].append(1e3 * (between - start) / clips)
            times[kind]["decode"].append(1e3 * (time.process_time() - between) / clips)
    return {
        kind: {
            "kilobytes": sum(map(len, stored[kind])) / clips / 1000,
            **{f"{what}_ms": measure.spread(found) for what, found in times[kind].items()},
        }
        for kind in CODECS
    }


def told(what: str, found: Any) -> str:
    """The lines of one part."""
    if what == "speed":
        lines = []
        for rate in ("examples_per_second", "examples_per_core_second"):
            sides = [found[side][rate]["median"] for side in ("ours", "theirs")]
            ratio = measure.told(found["ratio_of_" + rate])
            lines.append(f"{rate}: ours {sides[0]:.1f}, plain loop {sides[1]:.1f}, ratio {ratio}")
        return "\n".join(lines)
    if what == "memory":
        return "\n".join(
            f"{row['examples']} examples: {row['seconds']:.0f} s, planner {row['planner']:.0f} MiB "
            f"({row['before']:.0f} before), largest worker {row['largest_worker']:.0f} MiB"
            for row in found
        )
    return "\n".join(
        f"{kind}: {row['kilobytes']:.0f} kB, encoded in {row['encode_ms']['median']:.1f} ms, "
        f"decoded in {row['decode_ms']['median']:.1f} ({row['decode_ms']['q1']:.1f} to "
        f"{row['decode_ms']['q3']:.1f})"
        for kind, row in found.items()
    )


def run(
    only: Sequence[str] = PARTS,
    workers: int = 2,
    examples: int = 600,
    repeats: int = 5,
    sizes: Sequence[int] = (1000, 10_000, 100_000),
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Measure some of `PARTS` -> the report. UserError for another name."""
    report: dict[str, Any] = {"setting": measure.setting("CPU", len(os.sched_getaffinity(0)))}
    calls = {
        "speed": lambda: speed(examples, workers, repeats),
        "memory": lambda: memory(sizes, workers),
        "codecs": lambda: codecs(16, repeats),
    }
    for what in only:
        if what not in calls:
            raise UserError(f"--only={what}: expected some of {', '.join(PARTS)}")
        report[what] = calls[what]()
        say(f"{what}:\n{told(what, report[what])}")
    return report


def main(_: list[str]) -> None:
    """Read the flags, measure, write."""
    given = flags.FLAGS
    if given.alone:
        print(json.dumps(alone(given.alone, given.workers)))
        return
    try:
        if any(not word.isdigit() or int(word) < 1 for word in given.sizes):
            raise UserError(f"--sizes={','.join(given.sizes)}: expected numbers, as 1000,10000")
        sizes = list(map(int, given.sizes))
        report = run(given.only, given.workers, given.examples, given.repeats, sizes)
    except UserError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)
    if given.out:
        Path(given.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    flags.DEFINE_list("only", list(PARTS), f"Parts: {', '.join(PARTS)}.")
    flags.DEFINE_integer("workers", 2, "Processes that make records.", lower_bound=1)
    flags.DEFINE_integer("examples", 600, "Examples whose building is timed.", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "Times that each side is timed, by turns.", lower_bound=1)
    flags.DEFINE_list("sizes", ["1000", "10000", "100000"], "Examples, where memory is looked at.")
    flags.DEFINE_integer("alone", None, "Build so many here and print the peaks (for memory).")
    flags.DEFINE_string("out", None, "Where the JSON goes; default: nowhere.")
    app.run(main)
