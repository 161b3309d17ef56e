"""How the answers of one task are measured: sums over samples, whose functions the scores are.

Every measure is a `bootstrap.Summed`, so that its value and its interval come of one table. An
answer that cannot be read counts as wrong and is counted in `unparsed`; one that needed mending
counts and is counted in `mended`. What a benchmark measures by a protocol of its own (`PROTOCOLS`)
comes on top of what its task measures everywhere. Captions against references, which are measured
by tools in Java for all benchmarks at once, are in benchmark.py.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

from meerkat_jax.data.example import Question, Segment
from meerkat_jax.data.text import parse_boxes, parse_segments
from meerkat_jax.data.verdict import parse_verdict
from meerkat_jax.evaluation import events, parsing
from meerkat_jax.evaluation.answer_parsing import canonical, last_term, normalise, read_answer
from meerkat_jax.evaluation.bootstrap import Summed, means, pooled
from meerkat_jax.evaluation.captions import Named, caption_samples, read_caption
from meerkat_jax.evaluation.grounding import annotators_of, grounding_samples
from meerkat_jax.evaluation.segments import segment_samples
from meerkat_jax.evaluation.verdicts import verdict_counts

Segments = Sequence[Sequence[Segment]]


@dataclasses.dataclass(frozen=True)
class Answered:
    """One question and the text that was answered to it; `source` is the example's."""

    example_id: str
    split: str
    question: Question
    text: str
    source: str = "mini"


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a group's answers add up to, and how many could not be read or needed mending."""

    sums: tuple[Summed, ...]
    counts: dict[str, int]

    def scores(self) -> dict[str, float]:
        """All scores by name."""
        return {name: value for some in self.sums for name, value in some.scores().items()}


def measure(group: Sequence[Answered], names: Collection[str]) -> Measured:
    """The answers to questions of one task. `names` are the class names to look for in texts."""
    return MEASURES[group[0].question.task](group, names)


def kind_of(record: Answered) -> str:
    """Which kind of question of its task it is."""
    return str(record.question.truth.get("kind") or "other")


def spans(questions: Sequence[Question], predicted: Segments, source: str) -> tuple[Summed, ...]:
    """Measures of stretches of sound, those of the source's own protocol among them."""
    true = [question.segments for question in questions]
    counts = segment_samples(predicted, true)
    own = PROTOCOLS[source](predicted, true) if source in PROTOCOLS else ()
    return (
        *own,
        pooled(counts["segment"], "segment_"),
        pooled(counts["any_label"], "any_label_"),
        pooled(counts["event"], "event_"),
    )


def _boxes(group: Sequence[Answered], names: Collection[str]) -> Measured:
    parsed = [parse_boxes(record.text) for record in group]
    questions = [record.question for record in group]
    answered, true = [p.items for p in parsed], [question.boxes for question in questions]
    people = [annotators_of(question.truth) for question in questions]
    samples = grounding_samples(answered, true, people)
    labels = [_labels(a) == _labels(t) for a, t in zip(answered, true, strict=True)]
    return Measured((means({**samples, "labels_right": labels}),), _counts(parsed, true))


def _segments(group: Sequence[Answered], names: Collection[str]) -> Measured:
    parsed = [parse_segments(record.text) for record in group]
    questions = [record.question for record in group]
    sums = spans(questions, [p.items for p in parsed], group[0].source)
    return Measured(sums, _counts(parsed, [question.segments for question in questions]))


def _verdicts(group: Sequence[Answered], names: Collection[str]) -> Measured:
    said = [parse_verdict(record.text) for record in group]
    true = [bool(record.question.truth["answer"]) for record in group]
    right = [s is not None and s == t for s, t in zip(said, true, strict=True)]
    sums = (means({"accuracy": right}), pooled(verdict_counts(said, true), nothing=0.0))
    return Measured(sums, {"unparsed": said.count(None)})


def _answers(group: Sequence[Answered], names: Collection[str]) -> Measured:
    accepted = [canonical(r.question.truth["answer"], kind_of(r)) for r in group]
    # An answer that is no class name ("nothing", say) is a word to look for as well.
    words: dict[str, set[str]] = defaultdict(lambda: set(names))
    for record, answers in zip(group, accepted, strict=True):
        words[kind_of(record)] |= answers
    said = [_short(record, words[kind_of(record)]) for record in group]
    right = [s in a for s, a in zip(said, accepted, strict=True)]
    return Measured((means({"accuracy": right}),), {"unparsed": said.count(None)})


def _short(record: Answered, words: Collection[str]) -> str | None:
    choices = record.question.truth.get("choices")
    if choices:
        return last_term(record.text, choices)
    return read_answer(record.text, kind_of(record), words)


def _captions(group: Sequence[Answered], names: Collection[str]) -> Measured:
    true = [_named(record.question.truth) for record in group]
    nothing = Named(frozenset(), frozenset())
    if all(named == nothing for named in true):  # captions of people, who name no classes
        empty = sum(not record.text.strip() for record in group)
        return Measured((), {"unparsed": empty})
    said = [read_caption(record.text, names) for record in group]
    unparsed = sum(s == nothing != t for s, t in zip(said, true, strict=True))
    return Measured((means(caption_samples(said, true)),), {"unparsed": unparsed})


def _named(truth: dict[str, Any]) -> Named:
    seen, heard = (
        frozenset(map(normalise, truth.get(k) or ())) for k in ("image_labels", "audio_labels")
    )
    return Named(seen, heard)


def _counts(parsed, true) -> dict[str, int]:
    pairs = zip(parsed, true, strict=True)
    unparsed = sum(bool(t) and not p.items for p, t in pairs)
    return {"unparsed": unparsed, "mended": sum(bool(p.mended) for p in parsed)}


def _labels(items) -> list[str]:
    return sorted(normalise(item.label) for item in items)


def _sound_events(predicted: Segments, true: Segments) -> tuple[Summed, ...]:
    return events.segment_sums(predicted, true), events.event_sums(predicted, true)


def _video_parsing(predicted: Segments, true: Segments) -> tuple[Summed, ...]:
    return (means(parsing.answer_scores(predicted, true)),)


MEASURES: dict[str, Callable[[Sequence[Answered], Collection[str]], Measured]] = {
    "arig": _boxes,
    "igatl": _segments,
    **{f"avfact{i}": _verdicts for i in (1, 2, 3, 4)},
    "avqa": _answers,
    "avc": _captions,
}
# Of sources whose field scores stretches of sound in a way of its own.
PROTOCOLS: dict[str, Callable[[Segments, Segments], tuple[Summed, ...]]] = {
    "openimages_strong": _sound_events,
    "llp": _video_parsing,
}
