"""Render the mini data set once to ArrayRecord: scenes of real (or procedural) media, all tasks.

The folder holds `<split>-00000-of-00024.array_record` files (scenes in order of their index) and
`parts/` (which scenes are in which part) and `manifest.json` (seed, classes, measured shares),
which is written last: a folder without one is not a data set. The same settings give the same
folder, so a second run reuses it; of two at once the second waits and reuses what the first made.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from array_record.python import array_record_module

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.files import alone
from meerkat_jax.core.progress import Progress
from meerkat_jax.data.dataset import check_name
from meerkat_jax.data.example import Example, to_bytes
from meerkat_jax.data.pipeline import cores, leave_with_parent
from meerkat_jax.data.split import write_part
from meerkat_jax.mini import compose, questions
from meerkat_jax.mini.media import load_media
from meerkat_jax.mini.thing import Media, MediaSet

SHARD = 500  # scenes of one file, which is one job of a worker: seconds of work
REPORT_SECONDS = 3.0  # between two lines that tell how far it is
VERSION = 24  # raise it when scenes, questions or manifest change: old folders are then not reused
# Parts of a split that a phase can read alone, as "train/matched".
PARTS: dict[str, Callable[[Example], bool]] = {
    "matched": lambda example: example.matched,  # something seen is heard
    "crowded": lambda example: len(example.image_labels) > 1,  # more names in an image
}


@dataclasses.dataclass(frozen=True)
class MiniConfig:
    """What to render: kind of media, counts of scenes, sampling rate in Hz, number of classes."""

    media: str = "auto"
    seed: int = 0
    classes: int = 40
    sample_rate: int = 16000
    train: int = 16000
    compositions: int = 1200
    augmentations: int = 400
    instances: int = 400


class Job(NamedTuple):
    """One file: the scenes `start` to `stop` (not included) of a split."""

    config: MiniConfig
    split: str
    start: int
    stop: int
    path: str


def choose_classes(media: MediaSet, count: int) -> tuple[str, ...]:
    """`count` class names, alphabetical; those of which other instances exist come first."""
    known = {name for name, _ in media.others()}
    if not 4 <= count <= len(media.classes):
        raise UserError(
            f"data.mini.classes={count}: expected 4 to {len(media.classes)}, so many there are"
        )
    return tuple(sorted(sorted(media.classes, key=lambda name: name not in known)[:count]))


def instances(config: MiniConfig, media: MediaSet, split: str) -> dict[str, Media]:
    """The one image and audio of each class that a split is made of."""
    names = choose_classes(media, config.classes)
    if split != "instances":
        return {name: media.media[name, "a"] for name in names}
    return {name: media.media[name, other] for name, other in media.others() if name in names}


def scene(config: MiniConfig, media: dict[str, Media], split: str, index: int) -> Example:
    """One scene as a record. Pure in its arguments; `media` is what `instances` gives."""
    rng = compose.scene_generator(config.seed, split, index)
    aspect = {name: one.image.shape[1] / one.image.shape[0] for name, one in media.items()}
    plan = compose.plan_scene(rng, sorted(media), aspect, split)
    new = split == "augmentations"
    image, boxes = compose.render_image(rng, plan, media, new)
    audio = compose.render_audio(rng, plan, media, config.sample_rate, new)
    return Example(
        id=f"mini-{split}-{index:06d}",
        source="mini",
        split=split,
        image=image,
        audio=audio,
        questions=questions.ask(rng, plan, boxes, sorted(media), split),
        image_labels=plan.image_labels,
        audio_labels=plan.audio_labels,
        boxes=tuple(box for box in boxes if box.label in plan.both),
        matched=bool(plan.both),
    )


def build(
    config: MiniConfig, cache: Path, workers: int | None = None, trained: str | None = None
) -> Path:
    """Render the data set below `cache` unless it is there; return its folder.

    UserError, before anything is rendered, if it is not the one named `trained`.
    """
    media = load_media(config.media, config.sample_rate, cache)
    key = json.dumps([VERSION, dataclasses.asdict(config), media.notes])
    folder = Path(cache) / f"mini-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    check_name(folder, trained)
    with alone(folder):
        if (folder / "manifest.json").exists():
            print(f"mini data: reusing {folder}", flush=True)
            return folder
        print(f"mini data: rendering {folder} ({media.notes})", flush=True)
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir()
        try:
            shares, parts = _render_all(config, media, partial, Path(cache), workers)
            manifest = {
                "config": dataclasses.asdict(config),
                "classes": choose_classes(media, config.classes),
                "classes_of_instances": sorted(instances(config, media, "instances")),
                "media": media.notes,
                "shares": shares,
            }
            for part, by_split in parts.items():
                for split, rows in by_split.items():
                    write_part(partial, split, part, rows)
            (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _jobs(config: MiniConfig, media: MediaSet, folder: Path) -> list[Job]:
    """One job for each file."""
    jobs = []
    for split in compose.SPLITS:
        # a scene needs four classes, and other instances there may be of fewer
        total = getattr(config, split) if len(instances(config, media, split)) >= 4 else 0
        starts = range(0, total, SHARD)
        for number, start in enumerate(starts):
            name = f"{split}-{number:05d}-of-{len(starts):05d}.array_record"
            jobs.append(Job(config, split, start, min(start + SHARD, total), str(folder / name)))
    return jobs


def _render_all(
    config: MiniConfig, media: MediaSet, folder: Path, cache: Path, workers: int | None
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, list[int]]]]:
    """Render every file with `workers` processes (default: one for each core).

    Gives by split what its scenes hold, and by part and split the indices of its scenes.
    """
    jobs = _jobs(config, media, folder)
    total = sum(job.stop - job.start for job in jobs)
    progress, done = Progress("mini data: scenes", total, REPORT_SECONDS), 0
    progress.report(done)
    shares = {job.split: Counter() for job in jobs}
    parts = {part: {job.split: [] for job in jobs} for part in PARTS}
    spawn = multiprocessing.get_context("spawn")  # forking a process that runs JAX can deadlock
    workers = min(workers or cores(), len(jobs)) or 1
    with concurrent.futures.ProcessPoolExecutor(
        workers, spawn, initializer=_prepare, initargs=(config, cache)
    ) as pool:
        try:
            futures = [pool.submit(_render, job) for job in jobs]
            for future in concurrent.futures.as_completed(futures):
                split, counts, found = future.result()
                shares[split].update(counts)
                for part, indices in found.items():
                    parts[part][split] += indices
                done += counts["scenes"]
                progress.report(done)
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(
                "a process that renders the mini data was ended from outside (out of memory?); "
                "run the same command again"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    shares = {split: dict(sorted(counter.items())) for split, counter in shares.items()}
    return shares, parts


_media: dict[str, dict[str, Media]] = {}  # by split and class, of this worker process


def _prepare(config: MiniConfig, cache: Path) -> None:
    """Load the media once per worker."""
    leave_with_parent()
    media = load_media(config.media, config.sample_rate, cache, say=lambda line: None)
    _media.update({split: instances(config, media, split) for split in compose.SPLITS})


def _render(job: Job) -> tuple[str, Counter, dict[str, list[int]]]:
    """Write one file; gives the split, what its scenes hold, and which are in each part."""
    counts: Counter = Counter()
    found = {part: [] for part in PARTS}
    writer = array_record_module.ArrayRecordWriter(job.path, "group_size:1,uncompressed")
    for index in range(job.start, job.stop):
        example = scene(job.config, _media[job.split], job.split, index)
        writer.write(to_bytes(example))
        counts.update(_shares(example))
        for part, belongs in PARTS.items():
            if belongs(example):
                found[part].append(index)
    writer.close()
    return job.split, counts, found


def _shares(example: Example) -> Counter:
    """What the manifest counts: scenes by kind, questions by task, verdicts by answer."""
    counts = Counter(scenes=1, matched=example.matched)
    counts[f"objects/{len(example.image_labels)}"] += 1
    counts[f"sounds/{len(example.audio_labels)}"] += 1
    sounds = []
    for question in example.questions:
        kind = question.truth["kind"]
        counts[f"questions/{question.task}/{kind}"] += 1
        if isinstance(question.truth["answer"], bool):
            counts[f"answers/{kind}/{question.truth['answer']}"] += 1
        sounds = question.truth["sounds"]
    if len(sounds) == 2:
        together = min(s[2] for s in sounds) - max(s[1] for s in sounds)
        counts["sounds/2/simultaneous"] += together >= 0.5
    return counts
