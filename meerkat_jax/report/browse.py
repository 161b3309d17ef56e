"""Look at a data set: one HTML page with examples of every task and statistics of a split.

    python -m meerkat_jax.report.browse avfit/vggss --split=test

The page, DIR/browse.html unless --out names another, opens without a network and without scripts:
images with their boxes, spectrograms with their times, sounds to play, and all texts. The
statistics are those of the whole split; --limit takes so many records, evenly spread, of a huge
one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from absl import flags

from meerkat_jax.core.cli import run_command
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.progress import Progress
from meerkat_jax.data.audio import LogMel, load_audio
from meerkat_jax.data.example import TASKS, Box, Example, Question, Segment
from meerkat_jax.data.image import read_image
from meerkat_jax.data.split import open_split, read_manifest
from meerkat_jax.data.statistics import (
    TWICE,
    Statistics,
    asked_boxes,
    asked_interval,
    corners,
)
from meerkat_jax.report import figures
from meerkat_jax.report.pages import style
from meerkat_jax.report.statistics_html import statistics_html
from meerkat_jax.report.tables import TASK_NAMES

FRAME = Path(__file__).with_name("browse.html")
LONGEST_SIDE = 512  # pixels of an image in the page
LONGEST_CLIP = 60.0  # seconds that are drawn
MOST_AUDIO = 4_000_000  # bytes of a sound in the page
MOST_TRUTH = 300  # characters of one thing in a truth
DRAWN = ("objects", "sounds", "interval")  # of a truth: shown in the figures

Picks = dict[str, list[tuple[int, int]]]  # task -> (record, question) of the examples


def main(argv: list[str]) -> None:
    """Write the page, and say where."""
    options = flags.FLAGS
    folder = Path(argv[1]).expanduser()
    out = Path(options.out).expanduser() if options.out else folder / "browse.html"
    say = _say
    write_page(folder, out, options.split, options.count, options.seed, options.limit, say)
    say(f"open {out} in a browser")


def write_page(
    folder: Path,
    out: Path,
    split: str | None = None,
    count: int = 6,
    seed: int = 0,
    limit: int | None = None,
    say: Callable[[str], Any] = print,
) -> Statistics:
    """Write the page about one split (default: train, or the first there is) to `out`.

    Gives the statistics. Raises UserError when the folder is no built data set, when it has no such
    split, and when `out` cannot be written.
    """
    manifest = read_manifest(folder)
    split = split or _first_split(folder)
    records = open_split(folder, split)
    unfinished = out.with_name(out.name + ".part")
    try:
        if out.is_dir():
            raise IsADirectoryError(f"{out} is a folder")
        unfinished.touch()  # before the long reading, not after it
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error}; name another --out") from None
    try:
        rows = _spread(len(records), limit)
        found, picks = survey(records, rows, count, seed, say)
        numbers = {number for what in TWICE for number, _ in found.repeats(what).most}
        ids = {number: records[rows[number]].id for number in numbers}
        told = {"manifest": manifest, "split": split, "total": len(records), "seed": seed}
        unfinished.write_text(
            Template(FRAME.read_text(encoding="utf-8")).substitute(
                _texts(folder, found, told),
                style=style(),
                examples=_examples(records, picks),
                statistics=statistics_html(found, ids, manifest),
            ),
            encoding="utf-8",
        )
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    return found


def survey(
    records: Sequence[Example],
    rows: Sequence[int],
    count: int,
    seed: int,
    say: Callable[[str], Any] = print,
) -> tuple[Statistics, Picks]:
    """Count the records `rows`, and draw `count` examples of each task, from different records.

    Every record with a question of a task is as likely, and then each of these questions.
    """
    found, rng = Statistics(), np.random.default_rng(seed)
    picks, met = defaultdict(list), defaultdict(int)
    progress = Progress("reading records:", len(rows), say=say)
    for number, row in enumerate(rows):
        example = records[row]
        found.add(example)
        places = defaultdict(list)
        for place, question in enumerate(example.questions):
            places[question.task].append(place)
        for task, theirs in places.items():
            pick = (row, theirs[rng.integers(len(theirs))])
            met[task] += 1
            if len(picks[task]) < count:
                picks[task].append(pick)
            elif (place := rng.integers(met[task])) < count:
                picks[task][place] = pick
        progress.report(number + 1)
    return found, {task: sorted(theirs) for task, theirs in picks.items()}


def _spread(total: int, limit: int | None) -> Sequence[int]:
    if limit is None or limit >= total:
        return range(total)
    return [number * total // limit for number in range(limit)]


def _first_split(folder: Path) -> str:
    have = sorted({path.name.split("-")[0] for path in folder.glob("*.array_record")})
    return "train" if "train" in have or not have else have[0]


def _texts(folder: Path, found: Statistics, told: dict[str, Any]) -> dict[str, str]:
    manifest, split, total = told["manifest"], told["split"], told["total"]
    name = Path(folder).resolve().name
    facts = {
        "Sources": ", ".join(f"{source} ({n})" for source, n in found.sources.most_common()),
        "Matched": f"{found.matched[True]} records; {found.matched[False]} are not",
        "Media": manifest.get("media"),
        "Options": manifest.get("options") or manifest.get("config"),
        "Settings": manifest.get("settings"),
    }
    words = "".join(
        f"<dt>{key}</dt><dd>{escape(_short(value))}</dd>" for key, value in facts.items() if value
    )
    lead = f"Split {split}: {total} records. Examples are drawn with seed {told['seed']}."
    counted = f"All {total} records are counted."
    if found.records < total:
        counted = f"{found.records} of {total} records are counted, evenly spread over the split."
    texts = {"title": f"{name}: {split}", "lead": lead, "counted": counted}
    return {key: escape(value) for key, value in texts.items()} | {"facts": words}


def _short(value: Any) -> str:
    """A value in few words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def _examples(records: Sequence[Example], picks: Picks) -> str:
    return "".join(_task(records, task, picks.get(task, ())) for task in TASKS)


def _task(records: Sequence[Example], task: str, picks: Sequence[tuple[int, int]]) -> str:
    cards = "".join(card(records[row], place) for row, place in picks)
    cards = cards or '<p class="note">No questions of this task.</p>'
    return f'<h3 id="task-{task}">{escape(TASK_NAMES[task])} <small>{task}</small></h3>{cards}'


def card(example: Example, place: int) -> str:
    """One question of a record with its image and audio, as HTML."""
    question = example.questions[place]
    rows = {"Instruction": question.instruction, "Response": question.response}
    rows["Truth"] = _truth(question)
    body = "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in rows.items())
    state = "matched" if example.matched else "not matched"
    where = f"{example.id} · {example.source} · {example.split}"
    return (
        f'<article class="card"><header><span>{escape(question.task)}</span><span>{state}</span>'
        f'<span class="where">{escape(where)}</span></header><dl class="talk">{body}</dl>'
        f'<div class="figures">{_image(example, question)}{_audio(example, question)}'
        "</div></article>"
    )


def _truth(question: Question) -> str:
    parts = []
    for key, value in question.truth.items():
        if key not in DRAWN and value is not None:
            text = _short(value)
            parts.append(f"{key}: {text[:MOST_TRUTH]}{'…' * (len(text) > MOST_TRUTH)}")
    for segment in asked_interval(question):
        parts.append(f"interval: {segment.start:g} to {segment.end:g} s")
    return "\n".join(parts)


def roles(example: Example, question: Question) -> Iterator[tuple[str, Box]]:
    """All boxes with the role that each is drawn in; a box with two roles has the first."""
    drawn = set()
    for role, boxes in (
        ("true", question.boxes),
        ("asked", asked_boxes(question)),
        ("scene", example.boxes),
        ("context", [Box(*fields) for fields in question.truth.get("objects") or ()]),
    ):
        for box in boxes:
            place = tuple(round(number, 3) for number in corners(box))
            if place not in drawn:
                drawn.add(place)
                yield role, box


def _image(example: Example, question: Question) -> str:
    seen = f"In the image: {', '.join(example.image_labels) or 'nothing named'}"
    try:
        image = read_image(example.image, example.id)
    except UserError as error:
        return _figure("", str(error))
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    boxes = list(roles(example, question))
    return _figure(figures.image_figure(np.array(image), boxes, seen), seen)


def _audio(example: Example, question: Question) -> str:
    heard = f"In the sound: {', '.join(example.audio_labels) or 'nothing named'}"
    try:
        mel = LogMel()
        wave, info = load_audio(example.audio, mel.sample_rate, LONGEST_CLIP, name=example.id)
    except UserError as error:
        return _figure("", str(error), "audio")
    seconds = max(0.1, min(info.seconds, LONGEST_CLIP))
    levels = mel.exact(wave[None, : round(seconds * mel.sample_rate)])[0]
    tracks = []
    sound_events = [Segment(*fields) for fields in question.truth.get("sounds") or ()]
    if sound_events and tuple(sound_events) != question.segments:
        tracks.append(("in the clip", "context", sound_events))
    if question.segments:
        tracks.append(("true", "true", question.segments))
    if asked := asked_interval(question):
        tracks.append(("asked about", "asked", asked))
    player = figures.audio_player(example.audio, MOST_AUDIO)
    player = player or '<p class="note">Too large, or of a kind that cannot be played here.</p>'
    drawn = figures.clip_figure(levels, tracks, seconds) + player
    return _figure(drawn, f"{heard}. {info.seconds:.2f} s at {info.sample_rate} Hz", "audio")


def _figure(drawn: str, caption: str, kind: str = "") -> str:
    return f'<figure class="{kind}">{drawn}<figcaption>{escape(caption)}</figcaption></figure>'


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "The page; default: DIR/browse.html.")
    flags.DEFINE_string("split", None, "Which split; default: train, or the first there is.")
    flags.DEFINE_integer("count", 6, "Examples of each task.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Of the examples that are drawn.")
    flags.DEFINE_integer("limit", None, "Read at most so many records, evenly spread.", 1)
    run_command(main, words=("dir",))
