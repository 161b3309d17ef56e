"""Render the mini data set once to ArrayRecord: scenes of real (or procedural) media, all tasks.

The folder holds `<split>-00000-of-00004.array_record` files and `manifest.json` (seed, classes,
counts, measured shares), which is written last: a folder without one is not a data set. The same
settings give the same folder, so a second run reuses it.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections import Counter
from pathlib import Path

from array_record.python import array_record_module

from meerkat_jax.data.example import Example, to_bytes
from meerkat_jax.data.mini import ask, compose
from meerkat_jax.data.mini.media import Media, MediaSet, load_media
from meerkat_jax.errors import UserError

SHARDS = 4
VERSION = 1  # raise it when scenes or questions change: old folders are then not reused


@dataclasses.dataclass(frozen=True)
class MiniConfig:
    """What to render: kind of media, counts of scenes, sampling rate in Hz, number of classes."""

    media: str = "auto"
    seed: int = 0
    classes: int = 40
    sample_rate: int = 16000
    train: int = 12000
    compositions: int = 800
    augmentations: int = 400
    instances: int = 400


def choose_classes(media: MediaSet, count: int) -> tuple[str, ...]:
    """`count` class names, alphabetical; those of which other instances exist come first."""
    known = {name for name, _ in media.others()}
    if not 4 <= count <= len(media.classes):
        raise UserError(
            f"data.mini.classes={count}: expected 4 to {len(media.classes)}, so many there are"
        )
    return tuple(sorted(sorted(media.classes, key=lambda name: name not in known)[:count]))


def instances(config: MiniConfig, media: MediaSet, split: str) -> dict[str, Media]:
    """The one picture and sound of each class that a split is made of."""
    names = choose_classes(media, config.classes)
    if split != "instances":
        return {name: media.media[name, "a"] for name in names}
    return {name: media.media[name, other] for name, other in media.others() if name in names}


def scene(config: MiniConfig, parts: dict[str, Media], split: str, index: int) -> Example:
    """One scene as a record. Pure in its arguments; `parts` is what `instances` gives."""
    rng = compose.scene_generator(config.seed, split, index)
    aspect = {name: part.picture.shape[1] / part.picture.shape[0] for name, part in parts.items()}
    plan = compose.plan_scene(rng, sorted(parts), aspect)
    new = split == "augmentations"
    image, boxes = compose.render_picture(rng, plan, parts, new)
    audio = compose.render_sound(rng, plan, parts, config.sample_rate, new)
    return Example(
        id=f"mini-{split}-{index:06d}",
        source="mini",
        split=split,
        image=image,
        audio=audio,
        questions=ask.ask(rng, plan, boxes, sorted(parts), split),
        seen=plan.seen,
        heard=plan.heard,
        boxes=tuple(box for box in boxes if box.label in plan.both),
        matched=bool(plan.both),
    )


def build(config: MiniConfig, cache: Path, workers: int | None = None) -> Path:
    """Render the data set below `cache` unless it is there; return its folder."""
    media = load_media(config.media, config.sample_rate)
    key = json.dumps([VERSION, dataclasses.asdict(config), media.notes])
    folder = Path(cache) / f"mini-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if (folder / "manifest.json").exists():
        print(f"mini data: reusing {folder}", flush=True)
        return folder
    print(f"mini data: rendering {folder} ({media.notes})", flush=True)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        shares = _render_all(config, partial, workers or os.cpu_count() or 1)
        manifest = {
            "config": dataclasses.asdict(config),
            "classes": choose_classes(media, config.classes),
            "classes_of_instances": sorted(instances(config, media, "instances")),
            "media": media.notes,
            "shares": shares,
        }
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _render_all(config: MiniConfig, folder: Path, workers: int) -> dict[str, dict[str, int]]:
    jobs = [
        (config, str(folder), split, shard)
        for split in compose.SPLITS
        for shard in range(SHARDS)
        if getattr(config, split) > 0
    ]
    begun, done, shares = time.time(), 0, {split: Counter() for split in compose.SPLITS}
    spawn = multiprocessing.get_context("spawn")  # forking a process that runs JAX can deadlock
    with concurrent.futures.ProcessPoolExecutor(
        workers, spawn, initializer=_prepare, initargs=(config,)
    ) as pool:
        for split, counts in pool.map(_render_shard, jobs):
            done += 1
            shares[split].update(counts)
            left = (time.time() - begun) / done * (len(jobs) - done)
            scenes = sum(counter["scenes"] for counter in shares.values())
            print(f"mini data: {scenes} scenes rendered, about {left:.0f} s left", flush=True)
    return {split: dict(sorted(counter.items())) for split, counter in shares.items() if counter}


_parts: dict[str, dict[str, Media]] = {}  # of this worker process


def _prepare(config: MiniConfig) -> None:
    """Load the media once per worker."""
    media = load_media(config.media, config.sample_rate, say=lambda line: None)
    _parts.update({split: instances(config, media, split) for split in compose.SPLITS})


def _render_shard(job: tuple[MiniConfig, str, str, int]) -> tuple[str, Counter]:
    config, folder, split, shard = job
    parts = _parts[split]
    counts: Counter = Counter()
    name = f"{split}-{shard:05d}-of-{SHARDS:05d}.array_record"
    writer = array_record_module.ArrayRecordWriter(f"{folder}/{name}", "group_size:1,uncompressed")
    total = getattr(config, split) if len(parts) >= 4 else 0  # procedural media: no other instances
    for index in range(shard, total, SHARDS):
        example = scene(config, parts, split, index)
        writer.write(to_bytes(example))
        counts.update(_shares(example))
    writer.close()
    return split, counts


def _shares(example: Example) -> Counter:
    """What the manifest counts: scenes by kind, questions by task, verdicts by answer."""
    counts = Counter(scenes=1, matched=example.matched)
    counts[f"objects/{len(example.seen)}"] += 1
    counts[f"sounds/{len(example.heard)}"] += 1
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
