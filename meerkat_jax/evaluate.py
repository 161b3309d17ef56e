"""Score a trained model on its held-out splits and write the report.

    python -m meerkat_jax.evaluate --workdir=runs/mini

Every question of every scene is answered by greedy generation from the newest checkpoint. What
comes out, in the work directory or in --out: benchmark.json (scores beside baselines),
answers.jsonl (every answer, and whether it is right), report.html (one page, without network).
"""

from __future__ import annotations

import collections
import datetime
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from meerkat_jax.api import Asked, Meerkat, cache_programs
from meerkat_jax.data.example import TASKS
from meerkat_jax.data.image import load_image
from meerkat_jax.data.mini.packages import default_cache
from meerkat_jax.data.open import open_folder
from meerkat_jax.data.split import has_split, open_split
from meerkat_jax.errors import UserError, nearest
from meerkat_jax.evaluation import tables
from meerkat_jax.evaluation.benchmark import MAIN_METRIC, Answered, class_names, judge, score
from meerkat_jax.evaluation.report import Shown, write_report
from meerkat_jax.progress import Progress
from meerkat_jax.training import config as configs
from meerkat_jax.training.metrics import read_metrics
from meerkat_jax.training.params import count

SPLITS = ("compositions", "augmentations", "instances", "test")
SHOWN_PER_SPLIT = 12
SHOWN_SIZE = 256  # pixels
HELD_OUT = {
    "compositions": "New compositions: new scenes made of the pictures and sounds of training.",
    "augmentations": "New augmentations: new scenes whose pictures are turned, tinted or blurred "
    "and whose sounds are faster, slower or echoing, as training never showed them.",
    "instances": "New instances: other pictures and other sounds of the same classes, none of "
    "which training used.",
    "test": "Test: the test splits of the data sets that the config names; no picture and no video "
    "of theirs was trained on.",
}

Say = Callable[[str], Any]


def evaluate(
    workdir: str | Path,
    benchmarks: Sequence[str] = (),
    out: str | Path | None = None,
    limit: int | None = None,
    batch: int = 16,
    cache: Path | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Score the run in `workdir`; returns what benchmark.json holds.

    `benchmarks` are splits (none: all that the data set has), `limit` the most scenes of each,
    `batch` the scenes answered at a time, `cache` where the data set is kept. Raises UserError for
    a work directory without a checkpoint and for a split that is not there.
    """
    out = Path(out or workdir)
    model = Meerkat.load(workdir)
    folder = _data_folder(model, cache or default_cache())
    splits = _splits(folder, benchmarks)
    _make_folder(out)
    say(f"step {model.step} of {workdir}; splits {', '.join(splits)}; data {folder}")

    answered: list[Answered] = []
    for split in splits:
        answered += answer_split(model, folder, split, limit, batch, say)
    benchmark = score(answered, model.seconds)
    configs.write_text(out / "benchmark.json", json.dumps(benchmark, indent=1) + "\n")
    _write_answers(out / "answers.jsonl", answered)

    say(table(benchmark))
    examples = [
        shown
        for split in splits
        for shown in show(model, folder, choose([a for a in answered if a.split == split]), batch)
    ]
    write_report(
        out / "report.html",
        benchmark,
        _metrics(Path(workdir)),
        examples,
        model.config,
        notes(model, workdir, splits, limit),
        class_names(answered),
    )
    say(f"scores: {out / 'benchmark.json'}\nanswers: {out / 'answers.jsonl'}")
    say(f"report: {out / 'report.html'} (open it in a browser)")
    return benchmark


# Answers -----------------------------------------------------------------------------------------


def answer_split(
    model: Meerkat,
    folder: Path,
    split: str,
    limit: int | None = None,
    batch: int = 16,
    say: Say = print,
) -> list[Answered]:
    """The answers to every question of the first `limit` scenes of one split."""
    records = open_split(folder, split)
    total = min(limit or len(records), len(records))
    waiting: collections.deque = collections.deque()

    def asked() -> Iterator[Asked]:
        for index in range(total):
            example = records[index]
            waiting.append((example.id, example.questions))
            prompts = [question.instruction for question in example.questions]
            yield Asked(example.image, example.audio, prompts)

    progress, done = Progress(f"{split}: scenes", total, say=say), []
    for number, answers in enumerate(model.stream(asked(), batch=batch, views=False), 1):
        name, questions = waiting.popleft()
        pairs = zip(questions, answers, strict=True)
        done += [Answered(name, split, question, answer.text) for question, answer in pairs]
        if number % batch == 0 or number == total:
            progress.report(number)
    return done


def _write_answers(path: Path, answered: Sequence[Answered]) -> None:
    """One JSON object per question."""
    names, lines = class_names(answered), []
    for record in answered:
        question, verdict = record.question, judge(record, names)
        row = {
            "id": record.example_id,
            "split": record.split,
            "task": question.task,
            "kind": question.truth.get("kind"),
            "instruction": question.instruction,
            "answer": record.text,
            "expected": question.response,
            "right": verdict.right,
            "parsed": verdict.parsed,
        }
        lines.append(json.dumps(row, ensure_ascii=False))
    configs.write_text(path, "\n".join(lines) + "\n")


# Scores ------------------------------------------------------------------------------------------


def table(benchmark: Mapping[str, Any]) -> str:
    """The main score of each task beside its best baseline, for a terminal."""
    lines = []
    for split, entries in tables.by_split(benchmark).items():
        lines += ["", f"{tables.split_words(split)[0]:<24}score  best baseline"]
        for task, entry in entries.items():
            metric = MAIN_METRIC[task.split("/")[0]]
            known = {name: found[metric] for name, found in entry["baselines"].items()}
            best = max(known, key=known.get)
            lines.append(
                f"  {task:<22}{entry[metric]:.3f}  {known[best]:.3f} {tables.BASELINES[best]} "
                f"({metric}, {entry['n']} questions)"
            )
    return "\n".join([*lines, ""])


# Examples of the report --------------------------------------------------------------------------


def choose(answered: Sequence[Answered], most: int = SHOWN_PER_SPLIT) -> list[Answered]:
    """About as many right as wrong answers of every task, always the same ones; scenes vary."""
    names = class_names(answered)
    order = np.random.default_rng(0).permutation(len(answered))
    queues = []
    for number, task in enumerate(TASKS):
        found: dict[bool, list[Answered]] = {True: [], False: []}
        for record in (answered[i] for i in order if answered[i].question.task == task):
            found[judge(record, names).right].append(record)
        first, second = found[number % 2 == 0], found[number % 2 == 1]
        longest = max(len(first), len(second))
        both = [part[i : i + 1] for i in range(longest) for part in (first, second)]
        queues.append([record for part in both for record in part])
    chosen: list[Answered] = []
    while any(queues) and len(chosen) < most:
        for queue in queues:
            fresh = [r for r in queue if r.example_id not in {c.example_id for c in chosen}]
            if queue and len(chosen) < most:
                record = (fresh or queue)[0]
                queue.remove(record)
                chosen.append(record)
    return chosen


def show(model: Meerkat, folder: Path, chosen: Sequence[Answered], batch: int = 16) -> list[Shown]:
    """The chosen answers with what is drawn of them: picture, spectrogram, attention, plan."""
    if not chosen:
        return []
    wanted, scenes = {record.example_id for record in chosen}, {}
    records = open_split(folder, chosen[0].split)
    for index in range(len(records)):
        example = records[index]
        if example.id in wanted:
            scenes[example.id] = example
        if len(scenes) == len(wanted):
            break
    pairs = [scenes[record.example_id] for record in chosen]
    views = model.look([Asked(pair.image, pair.audio, []) for pair in pairs], batch)
    return [
        Shown(
            answered=record,
            image=load_image(scenes[record.example_id].image, SHOWN_SIZE),
            logmel=view.logmel,
            attention=view.attention,
            plan=view.plan,
            grid=view.grid,
            audio_bytes=scenes[record.example_id].audio,
            seconds=view.seconds,
        )
        for record, view in zip(chosen, views, strict=True)
    ]


def notes(
    model: Meerkat, workdir: str | Path, splits: Sequence[str], limit: int | None
) -> list[str]:
    """How the scores came about, in plain words."""
    device = jax.devices()[0]
    lines = [HELD_OUT[split] for split in splits if split in HELD_OUT]
    lines += [
        "Instructions of our own wording were put in words that training did not use.",
        f"Model {model.config.get('name', '')}: {count(model.params):,} parameters, seed "
        f"{model.config['seed']}, after step {model.step} of training.",
        f"Command: python -m meerkat_jax.evaluate --workdir={workdir}"
        + (f" --limit={limit}: only the first scenes of each split" if limit else ""),
        f"Made on {datetime.datetime.now():%Y-%m-%d} with {platform.platform()}, {os.cpu_count()} "
        f"CPU cores, device {device.device_kind}, JAX {jax.__version__}.",
    ]
    return lines


# Files -------------------------------------------------------------------------------------------


def _data_folder(model: Meerkat, cache: Path) -> Path:
    folder, trained = open_folder(model.config["data"], cache), model.meta.get("data")
    if trained not in (None, folder.name):
        raise UserError(
            f"the model was trained on the data set {trained}, but its config now gives "
            f"{folder.name} (other media, or another version): name the cache that has it with "
            "--data_dir, or train anew"
        )
    return folder


def _splits(folder: Path, benchmarks: Sequence[str]) -> list[str]:
    """Those asked for, or all that there are."""
    known = [split for split in SPLITS if has_split(folder, split)]
    for split in benchmarks:
        if split not in known:
            near = nearest(split, known, 1)[0] if known else "none"
            raise UserError(
                f"benchmark {split!r} is not in {folder}; did you mean {near!r}? "
                f"(one of {', '.join(known)})"
            )
    return list(benchmarks or known)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(0, "not writable")
    except OSError as error:
        raise UserError(f"--out={out} cannot be used: {error.strerror}") from None


def _metrics(workdir: Path) -> list[dict[str, Any]]:
    return read_metrics(workdir) if (workdir / "metrics.jsonl").exists() else []


# The door ----------------------------------------------------------------------------------------


def define_flags() -> None:
    """The flags of the command line."""
    flags.DEFINE_string("workdir", None, "Work directory of training.")
    flags.DEFINE_list("benchmarks", [], f"Splits to score; default all of {','.join(SPLITS)}.")
    flags.DEFINE_string("out", None, "Folder for scores and report; default: the work directory.")
    flags.DEFINE_integer("limit", None, "At most so many scenes of each split.", lower_bound=1)
    flags.DEFINE_integer("batch", 16, "Scenes answered at a time.", lower_bound=1)
    flags.DEFINE_string("data_dir", None, "Cache of data and programs; else $MEERKAT_CACHE.")


def main(_: list[str]) -> None:
    """Read the flags and evaluate."""
    given = flags.FLAGS
    cache = Path(given.data_dir).expanduser() if given.data_dir else default_cache()
    cache_programs(cache)
    evaluate(
        given.workdir,
        given.benchmarks,
        given.out,
        given.limit,
        given.batch,
        cache,
        say=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    define_flags()
    configs.run_door(main, required=("workdir",))
