"""MeerkatBench: from answered questions to scores per split and task, beside baselines.

Pure functions over texts and truths; nothing here runs a model. The result is what benchmark.json
holds: `{"<split>/<task>": {"<metric>": x, "n": n, "unparsed": k, "baselines": {...}}}`, with AVQA
also per kind as `"<split>/avqa/<kind>"`. An answer that cannot be read counts as wrong and is
counted in `unparsed`; one that needed mending counts and is counted in `mended`.

Grounding in space and time is scored apart for the scenes where it is hard: `several_objects` (two
and more things in the picture) and `two_sounds` (two sounds at one moment). The baselines are
described in baselines.py.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

from meerkat_jax.data.example import Question
from meerkat_jax.data.text import parse_boxes, parse_segments, parse_verdict
from meerkat_jax.errors import UserError
from meerkat_jax.evaluation import baselines
from meerkat_jax.evaluation.captions import Named, caption_scores, read_caption
from meerkat_jax.evaluation.grounding import grounding_scores
from meerkat_jax.evaluation.segments import segment_scores
from meerkat_jax.evaluation.verdicts import answer_scores, verdict_scores
from meerkat_jax.evaluation.words import canonical, normalise, read_answer

CLIP_SECONDS = 10.0
MAIN_METRIC = {"arig": "ciou", "igatl": "segment_f1", "avqa": "accuracy", "avc": "names_right"}
MAIN_METRIC |= {f"avfact{i}": "accuracy" for i in (1, 2, 3, 4)}

Scores = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Answered:
    """One question and the text that was answered to it."""

    example_id: str
    split: str
    question: Question
    text: str


@dataclasses.dataclass(frozen=True)
class Judged:
    """One answer judged by itself: could it be read, is it right, and its scores."""

    parsed: bool
    right: bool
    scores: dict[str, float]


def score(records: Sequence[Answered], seconds: float = CLIP_SECONDS) -> dict[str, Scores]:
    """Every split and task of `records`; `seconds` is the length of the clips."""
    groups: dict[str, list[Answered]] = defaultdict(list)
    for record in records:
        task = record.question.task
        if task not in _METRICS:
            raise UserError(f"{record.example_id}: unknown task {task!r}; one of {[*_METRICS]}")
        groups[f"{record.split}/{task}"].append(record)
        if task == "avqa":
            groups[f"{record.split}/{task}/{_kind(record)}"].append(record)
    names = class_names(records)
    return {key: _score_group(group, names, seconds) for key, group in sorted(groups.items())}


def judge(record: Answered, names: Collection[str]) -> Judged:
    """One answer by itself. Right is: IoU of a half for boxes and each event; all else exact."""
    scores = _METRICS[record.question.task]([record], names)
    deciding = {"arig": "ciou", "igatl": "event_f1"}.get(record.question.task)
    right = scores[deciding or MAIN_METRIC[record.question.task]] == 1.0
    return Judged(parsed=not scores.pop("unparsed"), right=right, scores=scores)


def class_names(records: Sequence[Answered]) -> frozenset[str]:
    """Every class name that the truths mention, normalised: the vocabulary to look for in texts."""
    names: set[str] = set()
    for truth in (record.question.truth for record in records):
        names |= {normalise(n) for key in ("seen", "heard") for n in truth.get(key) or ()}
        names |= {normalise(e[0]) for key in ("objects", "sounds") for e in truth.get(key) or ()}
    return frozenset(names)


def has_several_objects(record: Answered) -> bool:
    """Whether the picture shows two things or more."""
    return len(record.question.truth.get("objects") or ()) > 1


def has_two_sounds_at_once(record: Answered) -> bool:
    """Whether two sounds overlap in time."""
    times = sorted((start, end) for _, start, end in record.question.truth.get("sounds") or ())
    return any(later[0] < earlier[1] for earlier, later in zip(times, times[1:], strict=False))


def _score_group(group: list[Answered], names: Collection[str], seconds: float) -> Scores:
    task = group[0].question.task
    entry = _scores_and_baselines(group, names, seconds)
    if task in ("arig", "igatl"):
        for name, belongs in _SUBSETS.items():
            subset = [record for record in group if belongs(record)]
            if subset:
                entry[name] = _scores_and_baselines(subset, names, seconds)
    return entry


def _scores_and_baselines(group: list[Answered], names: Collection[str], seconds: float) -> Scores:
    metrics = _METRICS[group[0].question.task]
    entry: Scores = {**metrics(group, names), "n": len(group)}
    entry["baselines"] = _baselines(group, names, seconds)
    return entry


def _baselines(group: list[Answered], names: Collection[str], seconds: float) -> Scores:
    questions = [record.question for record in group]
    task = questions[0].task
    if task == "arig":
        return baselines.boxes(questions)
    if task == "igatl":
        return baselines.intervals(questions, seconds)
    if task == "avc":
        caption = baselines.most_frequent([question.response for question in questions])
        return {"frequent_caption": _rescored(group, [caption] * len(group), names)}
    found = {"majority": _rescored(group, _majority(group), names)}
    verdicts = baselines.anything_sounds(questions)
    return found | ({"anything_sounds": _rescored(group, verdicts, names)} if verdicts else {})


def _majority(group: list[Answered]) -> list[str]:
    """The most frequent answer to each question's kind."""
    answers: dict[str, list[str]] = defaultdict(list)
    for record in group:
        answers[_kind(record)].append(_answer_text(record.question))
    most = {kind: baselines.most_frequent(some) for kind, some in answers.items()}
    return [most[_kind(record)] for record in group]


def _rescored(group: list[Answered], texts: list[str], names: Collection[str]) -> Scores:
    """The scores that other texts would have got."""
    pairs = zip(group, texts, strict=True)
    scores = _METRICS[group[0].question.task](
        [dataclasses.replace(record, text=text) for record, text in pairs], names
    )
    return {k: v for k, v in scores.items() if k not in ("unparsed", "mended")}


def _answer_text(question: Question) -> str:
    answer = question.truth["answer"]
    answer = answer[0] if isinstance(answer, (list, tuple)) else answer
    if isinstance(answer, bool) and question.task == "avqa":
        return "yes" if answer else "no"
    return str(answer)


def _kind(record: Answered) -> str:
    return str(record.question.truth.get("kind") or "other")


def _boxes(group: Sequence[Answered], names: Collection[str]) -> Scores:
    parsed = [parse_boxes(record.text) for record in group]
    answered, true = [p.items for p in parsed], [record.question.boxes for record in group]
    return {
        **grounding_scores(answered, true),
        "labels_right": _share_equal(map(_labels, answered), map(_labels, true)),
        **_counts(parsed, true),
    }


def _segments(group: Sequence[Answered], names: Collection[str]) -> Scores:
    parsed = [parse_segments(record.text) for record in group]
    true = [record.question.segments for record in group]
    return {**segment_scores([p.items for p in parsed], true), **_counts(parsed, true)}


def _verdicts(group: Sequence[Answered], names: Collection[str]) -> Scores:
    said = [parse_verdict(record.text) for record in group]
    true = [bool(record.question.truth["answer"]) for record in group]
    return {**verdict_scores(said, true), "unparsed": said.count(None)}


def _answers(group: Sequence[Answered], names: Collection[str]) -> Scores:
    accepted = [canonical(r.question.truth["answer"], _kind(r)) for r in group]
    # An answer that is no class name ("nothing", say) is a word to look for as well.
    words: dict[str, set[str]] = defaultdict(lambda: set(names))
    for record, answers in zip(group, accepted, strict=True):
        words[_kind(record)] |= answers
    said = [read_answer(r.text, _kind(r), words[_kind(r)]) for r in group]
    return {**answer_scores(said, accepted), "unparsed": said.count(None)}


def _captions(group: Sequence[Answered], names: Collection[str]) -> Scores:
    said = [read_caption(record.text, names) for record in group]
    true = [_named(record.question.truth) for record in group]
    nothing = Named(frozenset(), frozenset())
    unparsed = sum(s == nothing != t for s, t in zip(said, true, strict=True))
    return {**caption_scores(said, true), "unparsed": unparsed}


def _named(truth: dict[str, Any]) -> Named:
    seen, heard = (frozenset(map(normalise, truth.get(k) or ())) for k in ("seen", "heard"))
    return Named(seen, heard)


def _counts(parsed, true) -> dict[str, int]:
    pairs = zip(parsed, true, strict=True)
    unparsed = sum(bool(t) and not p.items for p, t in pairs)
    return {"unparsed": unparsed, "mended": sum(bool(p.mended) for p in parsed)}


def _labels(items) -> list[str]:
    return sorted(normalise(item.label) for item in items)


def _share_equal(a, b) -> float:
    equal = [x == y for x, y in zip(a, b, strict=True)]
    return sum(equal) / len(equal)


_METRICS: dict[str, Callable[[Sequence[Answered], Collection[str]], Scores]] = {
    "arig": _boxes,
    "igatl": _segments,
    **{f"avfact{i}": _verdicts for i in (1, 2, 3, 4)},
    "avqa": _answers,
    "avc": _captions,
}
_SUBSETS = {"several_objects": has_several_objects, "two_sounds": has_two_sounds_at_once}
