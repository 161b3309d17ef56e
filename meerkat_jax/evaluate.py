"""MeerkatBench: score a trained model on every benchmark that is there, and write the report.

    python -m meerkat_jax.evaluate --workdir=runs/mini
    python -m meerkat_jax.evaluate --workdir=runs/7b --root=/data/avfit --benchmarks=vggss,llp
    ... on several hosts: the same command with --coordinator, --processes and --process

Every question of every example is answered by greedy generation from the newest checkpoint. What
comes out, in the work directory or in --out: predictions/ (answers as they are given; a killed
evaluation goes on from them), benchmark.json (scores beside baselines, with intervals),
diagnostics.json, answers.jsonl (every answer, and whether it is right), report.html (one page,
without network) and examples/ (the worst answers of each task).
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from meerkat_jax.api import Meerkat, Request, cache_programs, define_storage_flags
from meerkat_jax.core import cli
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.files import default_cache, write_text
from meerkat_jax.core.progress import Progress
from meerkat_jax.core.trees import count
from meerkat_jax.data import leaks
from meerkat_jax.data.example import Example, Question
from meerkat_jax.data.image import load_image
from meerkat_jax.evaluation import discover
from meerkat_jax.evaluation.benchmark import Answered, class_names, judge, lacking, score
from meerkat_jax.evaluation.diagnostics import diagnose
from meerkat_jax.evaluation.discover import Benchmark
from meerkat_jax.evaluation.examples import choose
from meerkat_jax.evaluation.model_outputs import chances_of, observe
from meerkat_jax.evaluation.predictions import Predictions, weights_hash
from meerkat_jax.from_config import open_folder
from meerkat_jax.parallel import hosts
from meerkat_jax.report import comparison, diagnostics_text, tables
from meerkat_jax.report.cards import Shown
from meerkat_jax.report.pages import choose_worst, write_pages
from meerkat_jax.report.report import write_report
from meerkat_jax.training.metrics import read_metrics

SHOWN_SIZE = 256  # pixels
GRAMMARS = {"arig": "boxes", "igatl": "segments"}  # what answers to a task can be held to

Say = Callable[[str], Any]


def evaluate(
    workdir: str | Path,
    benchmarks: Sequence[str] = (),
    out: str | Path | None = None,
    limit: int | None = None,
    batch: int = 16,
    cache: Path | None = None,
    say: Say = print,
    root: str | Path | None = None,
    grammars: bool = False,
    overwrite: bool = False,
    host_timeout: int = 300,
    diagnosed: int = 200,
    quantise: str = "none",
    unstack_layers: bool = False,
) -> dict[str, Any]:
    """Score the run in `workdir`; returns what benchmark.json holds (in process 0, else nothing).

    `benchmarks` by name (none, or "all": all that are there), `root` the folder of built sources on
    this machine, those that the run was trained on among them (default: its data.root), `limit` the
    most examples of each, `batch` the examples answered at a time, `cache` where the data set is
    cached. With `grammars` answers about places and times are constrained to well-formed ones.
    Existing answers are reused, unless `overwrite`. Diagnostics (evaluation/diagnostics.py) use the
    first `diagnosed` examples of each benchmark. `quantise` and `unstack_layers` are
    those of `Meerkat.load`.

    Raises UserError for a work directory without a checkpoint, for a benchmark that is not there,
    that was trained on or that cannot be scored here, and for answers of another model.
    """
    out = Path(out or workdir)
    model = Meerkat.load(workdir, quantise, unstack_layers)
    data, root = model.config["data"], Path(root).expanduser() if root else None
    trained = discover.trained_on(
        data, cache or default_cache(), model.meta.get("data"), root, open_folder
    )
    root = root or _trained_root(model)
    chosen = discover.choose(discover.find(trained, root), benchmarks, trained.folder, root)
    discover.check_leaks(trained, chosen)
    if unseen := discover.unseen(trained):
        say(unseen)
    missing = lacking({one.records()[0].source for one in chosen})
    _make_folder(out)
    names = ", ".join(one.name for one in chosen)
    say(f"step {model.step} of {workdir}; benchmarks {names}; data {trained.folder or root}")

    answered: list[Answered] = []
    weights = weights_hash(model.params)
    for one in chosen:
        facts = {
            "step": model.step,
            "weights": weights,
            "data": data_name(one),
            "grammars": grammars,
        }
        kept = Predictions(out, one.name, facts, jax.process_index())
        answered += answer(model, one, kept, grammars, limit, batch, say, overwrite, host_timeout)
    if not hosts.is_first():
        return {}
    benchmark = score(answered, model.seconds, captions=missing is None)
    write_text(out / "benchmark.json", json.dumps(benchmark, indent=1) + "\n")
    _write_answers(out / "answers.jsonl", answered)

    say(tables.text_table(benchmark))
    if missing:
        say(f"captions are not scored by BLEU, METEOR, ROUGE-L and CIDEr: {missing}")
    say(comparison.text(benchmark))
    names = class_names(answered)
    parts = [[a for a in answered if a.split == one.name] for one in chosen]
    diagnostics, chances = {}, []
    for one, part in zip(chosen, parts, strict=True):
        found, chance = diagnose_some(model, one, part, names, diagnosed, batch, say)
        diagnostics |= {one.name: found} if found else {}
        chances.append(chance)
    if diagnostics:
        write_text(out / "diagnostics.json", json.dumps(diagnostics, indent=1) + "\n")
        say(diagnostics_text.table(diagnostics))

    examples, worst = [], []
    for one, part, chance in zip(chosen, parts, chances, strict=True):
        numbers = choose_worst(part, names, chances=chance)
        shown = show(model, one, [*choose(part), *(part[i] for i in numbers)], batch)
        certain = [chance[i] for i in numbers]
        last = shown[len(shown) - len(numbers) :]
        examples += shown[: len(shown) - len(numbers)]
        worst += [dataclasses.replace(s, chance=c) for s, c in zip(last, certain, strict=True)]
    totals = {key: entry["n"] for key, entry in benchmark.items()}
    write_report(
        out / "report.html",
        benchmark,
        _metrics(Path(workdir)),
        examples,
        model.config,
        notes(model, workdir, chosen, limit, grammars, quantise, unstack_layers, missing, unseen),
        names,
        diagnostics,
        write_pages(out, worst, totals, names),
    )
    say(f"scores: {out / 'benchmark.json'}\nanswers: {out / 'answers.jsonl'}")
    say(f"report: {out / 'report.html'} (open it in a browser)")
    return benchmark


# Answers -----------------------------------------------------------------------------------------


def answer(
    model: Meerkat,
    benchmark: Benchmark,
    kept: Predictions,
    grammars: bool = False,
    limit: int | None = None,
    batch: int = 16,
    say: Say = print,
    overwrite: bool = False,
    host_timeout: int = 300,
) -> list[Answered]:
    """The answers to every question of the first `limit` examples; each host gives its share."""
    if overwrite:
        hosts.run_on_first_process(f"{benchmark.name} anew", kept.forget, host_timeout)
    kept.read()
    records = benchmark.records()[:limit]
    asked = [
        (one.id, one.source, one.questions) for one in map(records.__getitem__, range(len(records)))
    ]
    left = [i for i, (name, *_) in enumerate(asked) if name not in kept.answers]
    same = {"answers that are there": kept.fingerprint()}
    hosts.barrier(f"{benchmark.name} begins", same, host_timeout)
    if done := len(asked) - len(left):
        say(f"{benchmark.name}: {done} of {len(asked)} examples were answered before")
    mine = left[jax.process_index() :: jax.process_count()]
    progress = Progress(f"{benchmark.name}: examples", len(mine), say=say)
    _answer(model, records, mine, kept, grammars, batch, progress)
    hosts.barrier(f"{benchmark.name} is answered", {}, host_timeout)
    if not hosts.is_first():
        return []
    kept.read()
    return [
        Answered(name, benchmark.name, question, text, source)
        for name, source, questions in asked
        for question, text in zip(questions, kept.answers[name], strict=True)
    ]


def _answer(
    model: Meerkat,
    records: Sequence[Example],
    numbers: Sequence[int],
    kept: Predictions,
    grammars: bool,
    batch: int,
    progress: Progress,
) -> None:
    """Answer the questions of these records, and keep what is said as it is said."""
    waiting: collections.deque = collections.deque()

    def asked() -> Iterator[Request]:
        for index in numbers:
            example = records[index]
            waiting.append(example.id)
            prompts = [question.instruction for question in example.questions]
            held = [grammar_of(question) for question in example.questions] if grammars else None
            yield Request(example.image, example.audio, prompts, grammars=held)

    try:
        for done, answers in enumerate(model.stream(asked(), batch=batch, views=False), 1):
            kept.add(waiting.popleft(), [found.text for found in answers])
            if done % batch == 0 or done == len(numbers):
                kept.flush()
                progress.report(done)
    finally:
        kept.close()


def grammar_of(question: Question) -> str | None:
    """What an answer to this question can be held to."""
    return GRAMMARS.get(question.task)


def data_name(benchmark: Benchmark) -> str:
    """The data that a benchmark is of: a built folder by its contents."""
    manifest = leaks.file_hash(benchmark.folder / "manifest.json")
    return f"{benchmark.folder.name}-{manifest}"


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
    write_text(path, "\n".join(lines) + "\n")


# Diagnostics -------------------------------------------------------------------------------------


def diagnose_some(
    model: Meerkat,
    benchmark: Benchmark,
    answered: Sequence[Answered],
    names: Collection[str],
    most: int,
    batch: int = 16,
    say: Say = print,
) -> tuple[dict[str, Any], list[float | None]]:
    """What `diagnose` finds in the first `most` examples, and P(True) of each answer."""
    records = benchmark.records()[:most]
    wanted = {records[i].id for i in range(len(records))}
    some = [record for record in answered if record.example_id in wanted]
    progress, rows = Progress(f"{benchmark.name}: diagnosed", len(records), say=say), []
    for row in observe(model.sampler, records, some, batch):
        rows.append(row)
        if len(rows) % batch == 0 or len(rows) == len(records):
            progress.report(len(rows))
    if not rows:
        return {}, [None] * len(answered)
    known = iter(chances_of(rows, some))
    return diagnose(rows, some, names), [
        next(known) if record.example_id in wanted else None for record in answered
    ]


# Examples of the report --------------------------------------------------------------------------


def show(
    model: Meerkat, benchmark: Benchmark, chosen: Sequence[Answered], batch: int = 16
) -> list[Shown]:
    """The chosen answers with what is drawn of them: image, spectrogram, attention, plan."""
    if not chosen:
        return []
    wanted, scenes = {record.example_id for record in chosen}, {}
    records = benchmark.records()
    for index in range(len(records)):
        example = records[index]
        if example.id in wanted:
            scenes[example.id] = example
        if len(scenes) == len(wanted):
            break
    pairs = [scenes[record.example_id] for record in chosen]
    views = model.look([Request(pair.image, pair.audio, []) for pair in pairs], batch)
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
    model: Meerkat,
    workdir: str | Path,
    benchmarks: Sequence[Benchmark],
    limit: int | None,
    grammars: bool,
    quantise: str,
    unstack_layers: bool,
    missing: str | None,
    unseen: str | None = None,
) -> list[str]:
    """How the scores came about, in plain words."""
    device = jax.devices()[0]
    lines = [
        f"{title}: {words}" for title, words in (tables.split_words(b.name) for b in benchmarks)
    ]
    lines += [
        "Instructions of our own wording were put in words that training did not use.",
        "Intervals are of 2,000 draws of the examples with replacement (95 %): how much a score "
        "varies with the examples, not with the seed of training.",
        f"Model {model.config.get('name', '')}: {count(model.params):,} parameters, seed "
        f"{model.config['seed']}, after step {model.step} of training.",
        f"Command: python -m meerkat_jax.evaluate --workdir={workdir}"
        + (
            " --grammars: answers about places and times were held to well-formed ones"
            if grammars
            else ""
        )
        + (f" --quantise={quantise}" if quantise != "none" else "")
        + (" --unstack_layers" if unstack_layers else "")
        + (f" --limit={limit}: only the first examples of each benchmark" if limit else ""),
        f"Made on {datetime.datetime.now():%Y-%m-%d} with {platform.platform()}, {os.cpu_count()} "
        f"CPU cores, {jax.process_count()} process(es), device {device.device_kind}, "
        f"JAX {jax.__version__}.",
    ]
    if missing:
        lines.append(f"Captions are not scored by BLEU, METEOR, ROUGE-L and CIDEr: {missing}.")
    if unseen:
        lines.append(f"{unseen}.")
    return lines


# Files -------------------------------------------------------------------------------------------


def _trained_root(model: Meerkat) -> Path | None:
    """Where the sources of a mixture were built: there may be others beside them."""
    root = model.config["data"].get("root")
    return Path(root).expanduser() if root else None


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(0, "not writable")
    except OSError as error:
        raise UserError(f"--out={out} cannot be used: {error.strerror}") from None


def _metrics(workdir: Path) -> list[dict[str, Any]]:
    return read_metrics(workdir) if (workdir / "metrics.jsonl").exists() else []


# The command --------------------------------------------------------------------------------------


def define_flags() -> None:
    """The flags of the command line."""
    flags.DEFINE_string("workdir", None, "Work directory of training.")
    flags.DEFINE_list("benchmarks", [], "What to score, by name; default: all that is there.")
    flags.DEFINE_string("root", None, "Folder of built sources here; default: the run's data.root.")
    flags.DEFINE_string("out", None, "Folder for scores and report; default: the work directory.")
    flags.DEFINE_integer("limit", None, "At most so many examples of each.", lower_bound=1)
    flags.DEFINE_integer("batch", 16, "Examples answered at a time.", lower_bound=1)
    define_storage_flags()
    flags.DEFINE_bool("grammars", False, "Hold answers to well-formed boxes and times.")
    flags.DEFINE_integer("diagnosed", 200, "Examples of each that are diagnosed.", lower_bound=0)
    flags.DEFINE_bool("overwrite", False, "Answer anew what was answered before.")
    flags.DEFINE_string("data_dir", None, "Cache of data and programs; else $MEERKAT_CACHE.")
    hosts.define_flags(timeout=3600)  # one may have the longer answers


def main(_: list[str]) -> None:
    """Read the flags and evaluate."""
    given = flags.FLAGS
    cache = Path(given.data_dir).expanduser() if given.data_dir else default_cache()
    cache_programs(cache)
    hosts.initialize(given.coordinator, given.processes, given.process, given.host_timeout)
    first = hosts.is_first()
    evaluate(
        given.workdir,
        given.benchmarks,
        given.out,
        given.limit,
        given.batch,
        cache,
        say=lambda line: print(line, flush=True) if first else None,
        root=given.root,
        grammars=given.grammars,
        overwrite=given.overwrite,
        host_timeout=given.host_timeout,
        diagnosed=given.diagnosed,
        quantise=given.quantise,
        unstack_layers=given.unstack_layers,
    )


if __name__ == "__main__":
    define_flags()
    cli.run_command(main, required=("workdir",))
