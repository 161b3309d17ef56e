"""From a plan to records: media found, cut and encoded by several processes, shard by shard.

    OUT/
      plan.json                           what is being built: source, options, hashes of the files
      train-00000-of-00012.array_record   the records of a shard of one split
      texts/train-00000-of-00012.array_record    the questions of the same examples alone
      shards/00000.json                   what became of a shard: counts, keys, what was left out
      keys/train.npy  parts/train-arig.npy  parts/train-{matched,boxed}.npy      written at the end,
      manifest.json                       as is this: counts, classes, everything left out by reason

A shard is there when its report is: it is written last, so a killed build goes on with the shards
that are missing and ends with the same bytes. The plan is looked through before anything is
encoded: which media are there, and whether something would be in two splits.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import hashlib
import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
from array_record.python import array_record_module

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.progress import Progress
from meerkat_jax.data import leaks, media
from meerkat_jax.data.build.validate import (
    SPLITS,
    Survey,
    check_skipped,
    look_through,
    lost,
    places_of,
    write_skipped,
)
from meerkat_jax.data.example import Example, to_bytes
from meerkat_jax.data.pipeline import leave_with_parent
from meerkat_jax.data.sources.entry import Entry, Options, Plan
from meerkat_jax.data.sources.skips import RowError
from meerkat_jax.data.split import TRAITS, write_part

# Raise it when records or parts change: a build that was begun before is not gone on with.
VERSION = 3
ROOM = 64 << 20  # bytes that a disk must have left beside a shard


@dataclasses.dataclass(frozen=True)
class Settings:
    """How records are made.

    sound: a key of `media.SOUNDS`. shard: most planned examples of a file; 256 are 50 to 150 MB
    with sound as FLAC. The longest clip is `Options.seconds`.
    """

    audio: str = "flac"
    shard: int = 256


class Job(NamedTuple):
    """One shard: its name, entries, and for each the (path, time) of its image and audio."""

    number: int
    count: int  # of all shards
    source: str
    seconds: float  # the longest clip
    entries: list[Entry]
    found: list[tuple[tuple[str, float], tuple[str, float]]]


def build(
    source: str,
    plan: Plan,
    root: Path,
    out: Path,
    options: Options,
    settings: Settings,
    workers: int,
    max_skipped: float,
    exclude: Sequence[Path] = (),
    limit: int | None = None,
    say: Callable[[str], Any] = print,
    max_leaking: float | None = None,
) -> dict[str, Any]:
    """Build the records of a plan in `out`; gives the manifest. See the module's docstring.

    Raises UserError when more than `max_skipped` of rows and examples cannot be used, when more
    than `max_leaking` (None: as much) of training's are in a test split, when `out`
    holds something else, or another build, and when the disk is full.
    """
    identity = identify(source, plan, root, options, settings, exclude, limit)
    claim(out, identity)
    media_index = media.MediaIndex(root)
    found = look_through(plan, media_index, max_skipped, exclude, limit, say, out, max_leaking)
    # Shards are counted over what is there: with other media they would be other ones.
    identity["media"] = hashlib.sha256(found.keep.tobytes()).hexdigest()[:16]
    claim(out, identity)
    for folder in ("shards", "texts", "keys", "parts"):
        (out / folder).mkdir(exist_ok=True)
    shards = Shards(plan, media_index, found, out, source, options.seconds, settings)
    reports = shards.make(workers, max_skipped, say)
    return _finish(out, identity, plan, found, reports, max_skipped)


def identify(
    source: str,
    plan: Plan,
    root: Path,
    options: Options,
    settings: Settings,
    exclude: Sequence[Path],
    limit: int | None,
) -> dict[str, Any]:
    """All that records depend on, with hashes of the files that were read."""
    return {
        "version": VERSION,
        "source": source,
        "options": dataclasses.asdict(options),
        "settings": dataclasses.asdict(settings),
        "limit": limit,
        "files": {_below(root, path): leaks.file_hash(path) for path in plan.files},
        "exclude": {str(path): leaks.file_hash(path / "manifest.json") for path in exclude},
    }


def _below(root: Path, path: Path) -> str:
    """A file by its place below the source folder; by its name when it is ours."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def claim(out: Path, identity: dict[str, Any]) -> None:
    """Make `out` the folder of this build; UserError when it is that of another, or not ours."""
    path = out / "plan.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.exists():
            before = json.loads(path.read_text())
            differing = [key for key in identity if before.get(key) != identity[key]]
            if not differing:
                return
            if any((out / "shards").glob("*.json")):
                then, now = before.get(differing[0]), identity[differing[0]]
                raise UserError(
                    f"{out}: holds a build with other {', '.join(differing)} "
                    f"({_changed(then, now)}); --overwrite deletes it, or name another --out"
                )
            # A shard whose report was not written yet is nobody's, and would be read all the same.
            for stale in (*out.glob("*.array_record"), *out.glob("texts/*.array_record")):
                stale.unlink()
        elif any(out.iterdir()):
            raise UserError(f"{out}: is not empty and holds no build of ours; name another --out")
        temporary = out / ".plan.json.tmp"
        temporary.write_text(json.dumps(identity, indent=1))
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--out={out} cannot be used: {error}") from None


def _changed(then: Any, now: Any) -> str:
    """What is another, in few words."""
    if isinstance(then, dict) and isinstance(now, dict):
        names = sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{then!r} then, {now!r} now"


@dataclasses.dataclass(frozen=True)
class Shards:
    """All shards of a build: which are there, and making the others."""

    plan: Plan
    media_index: media.MediaIndex
    found: Survey
    out: Path
    source: str
    seconds: float
    settings: Settings

    def report(self, number: int) -> Path:
        """The report of a shard, which is there when the shard is."""
        return self.out / "shards" / f"{number:05d}.json"

    def jobs(self) -> Iterator[Job]:
        """Those that are not there yet."""
        kept, size = np.flatnonzero(self.found.keep), self.settings.shard
        count = -(-len(kept) // size)
        for number in range(count):
            if not self.report(number).exists():
                rows = kept[number * size : (number + 1) * size]
                entries = [self.plan.entries[int(row)] for row in rows]
                places = [places_of(self.media_index, entry) for entry in entries]
                yield Job(number, count, self.source, self.seconds, entries, places)

    def make(self, workers: int, max_skipped: float, say: Callable) -> list[dict]:
        """Make what is missing; gives all reports in order. At most two jobs a worker are held."""
        total, size = int(self.found.keep.sum()), self.settings.shard
        numbers = range(-(-total // size))
        for stale in (*self.out.glob("*.partial"), *self.out.glob("*/*.partial")):
            stale.unlink()
        there = [number for number in numbers if self.report(number).exists()]
        done = sum(min(size, total - number * size) for number in there)
        if there and len(there) < len(numbers):
            say(f"going on: {len(there)} of {len(numbers)} shards are there")
        progress, told = Progress("examples", total, say=say), lost(self.found)
        progress.report(done)
        workers = max(1, min(workers, len(numbers) - len(there)))
        for planned, left_out in self._made(workers):
            done += planned
            told.update(reason for _, reason, _ in left_out)
            check_skipped(told, len(self.plan.entries), "examples", max_skipped, left_out)
            progress.report(done)
        return [json.loads(self.report(number).read_text()) for number in numbers]

    def _made(self, workers: int) -> Iterator[tuple[int, list]]:
        """What `make_shard` gives for each job, as they end; one worker is this process."""
        jobs, running = self.jobs(), set()
        if workers == 1:
            yield from (make_shard(job, self.out, self.settings.audio) for job in jobs)
            return
        spawn = multiprocessing.get_context("spawn")  # forking a process with threads can deadlock
        with concurrent.futures.ProcessPoolExecutor(
            workers, spawn, initializer=leave_with_parent
        ) as pool:
            try:
                while True:
                    while len(running) < 2 * workers and (job := next(jobs, None)) is not None:
                        running.add(pool.submit(make_shard, job, self.out, self.settings.audio))
                    if not running:
                        return
                    ended, running = concurrent.futures.wait(
                        running, return_when=concurrent.futures.FIRST_COMPLETED
                    )
                    yield from (one.result() for one in ended)
            except concurrent.futures.process.BrokenProcessPool as error:
                raise UserError(
                    "a process that makes records was ended from outside (out of memory?); "
                    "run the same command again, it goes on"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


class Encoded(NamedTuple):
    """Image and sound of an entry, and what is to be noted of the two."""

    image: bytes
    audio: bytes
    noted: tuple[str, ...]


def encode(entry: Entry, places: tuple, seconds: float, kind: str) -> Encoded:
    """The media of an entry at the `places_of` it; RowError when one cannot be used."""
    image_place, audio_place = places
    image, turned = media.encode_image(*image_place, entry.stored, entry.sizes)
    needed, claimed = entry.seconds, entry.claims_audio
    audio, changed = media.encode_audio(*audio_place, seconds, needed, kind, claimed)
    return Encoded(image, audio, turned + changed)


def make_shard(job: Job, out: Path, kind: str) -> tuple[int, list]:
    """Make one shard, its sounds stored as `kind`, and its report.

    Gives how many examples were planned and what was left out.
    """
    examples, left_out, noted = [], [], Counter()
    for entry, places in zip(job.entries, job.found, strict=True):
        try:
            encoded = encode(entry, places, job.seconds, kind)
            examples.append((entry, encoded.image, encoded.audio))
            noted.update(encoded.noted)
        except RowError as bad:
            left_out.append((entry.id, bad.reason, bad.detail))
    report = {"counts": {}, "questions": {}, "keys": {}, "skipped": left_out, "parts": {}}
    report["noted"] = dict(noted)
    report["classes"] = sorted(
        {name for e, _, _ in examples for name in (*e.image_labels, *e.audio_labels)}
    )
    for split in SPLITS:
        rows = [row for row in examples if row[0].split == split]
        if rows:
            _write_split(job, split, rows, out, report)
    path = out / "shards" / f"{job.number:05d}.json"
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(report))
    os.replace(temporary, path)
    return len(job.entries), left_out


def _write_split(job: Job, split: str, rows: list, out: Path, report: dict) -> None:
    """The records of one split of a shard, and its share of the report."""
    name = f"{split}-{job.number:05d}-of-{job.count:05d}"
    records, texts, questions = [], [], Counter()
    parts: dict[str, list[int]] = {name: [] for name in TRAITS}  # of a trait also an empty part
    for place, (entry, image, audio) in enumerate(rows):
        records.append(to_bytes(example(entry, job.source, image, audio)))
        asked = [[q.task, q.truth["kind"], q.instruction, q.response] for q in entry.questions]
        texts.append(msgpack.packb(asked))
        for question in entry.questions:
            said = question.truth["answer"]
            kind = f"{question.task}/{question.truth['kind']}"
            questions[f"{kind}/{said}" if isinstance(said, bool) else kind] += 1
        traits = {"matched": entry.matched, "boxed": bool(entry.boxes)}
        for part in (*sorted({q.task for q in entry.questions}), *(n for n in TRAITS if traits[n])):
            parts.setdefault(part, []).append(place)
    _write(out / f"{name}.array_record", records)
    _write(out / "texts" / f"{name}.array_record", texts)
    report["counts"][split] = len(rows)
    report["questions"][split] = dict(questions)
    report["keys"][split] = sorted({key for entry, _, _ in rows for key in entry.keys})
    report["parts"][split] = parts


def example(entry: Entry, source: str, image: bytes, audio: bytes) -> Example:
    """The record of an entry."""
    return Example(
        id=entry.id,
        source=source,
        split=entry.split,
        image=image,
        audio=audio,
        questions=entry.questions,
        image_labels=entry.image_labels,
        audio_labels=entry.audio_labels,
        boxes=entry.boxes,
        matched=entry.matched,
    )


def _write(path: Path, records: list[bytes]) -> None:
    """An ArrayRecord file, whole or not at all; an OSError when the disk has no room for it."""
    size = sum(map(len, records))
    if shutil.disk_usage(path.parent).free < size + ROOM:
        short = f"{os.strerror(errno.ENOSPC)} for {size >> 20} MiB and {ROOM >> 20} MiB to spare"
        raise OSError(errno.ENOSPC, short, str(path))
    temporary = path.with_suffix(".partial")
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    reader = array_record_module.ArrayRecordReader(str(temporary))
    written = reader.num_records()
    reader.close()
    if written != len(records) or temporary.stat().st_size < size:
        raise OSError(errno.EIO, "the file that was written cannot be read back", str(path))
    os.replace(temporary, path)


def _finish(
    out: Path, identity: dict, plan: Plan, found: Survey, reports: list[dict], max_skipped: float
) -> dict[str, Any]:
    """Keys, parts and the manifest of a build whose shards are all there."""
    left_out = [skip for report in reports for skip in report["skipped"]]
    told = lost(found) + Counter(reason for _, reason, _ in left_out)
    faults = [*left_out, *found.missing, *plan.skips.faults]
    check_skipped(told, len(plan.entries), "examples", max_skipped, faults, out)
    counts, questions = Counter(), {split: Counter() for split in SPLITS}
    parts: dict[tuple[str, str], list[int]] = {}
    for report in reports:
        for split, number in report["counts"].items():
            for part, places in report["parts"][split].items():
                rows = parts.setdefault((split, part), [])
                rows += [counts[split] + place for place in places]
            counts[split] += number
            questions[split].update(report["questions"][split])
    for (split, part), rows in parts.items():
        write_part(out, split, part, rows)
    for split in counts:
        keys = [key for report in reports for key in report["keys"].get(split, ())]
        leaks.write_keys(out, split, keys)
    write_skipped(out, faults)
    manifest = {
        **identity,
        "counts": dict(counts),
        "questions": {split: dict(sorted(asked.items())) for split, asked in questions.items()},
        "classes": sorted({name for report in reports for name in report["classes"]}),
        "skipped": {"rows": plan.skips.by_reason(), "examples": dict(told.most_common())},
        "dropped": dict(plan.skips.dropped + found.leaking),
        "noted": dict(sum((Counter(report["noted"]) for report in reports), plan.skips.noted)),
    }
    temporary = out / ".manifest.json.tmp"
    temporary.write_text(json.dumps(manifest, indent=1))
    os.replace(temporary, out / "manifest.json")
    return manifest
