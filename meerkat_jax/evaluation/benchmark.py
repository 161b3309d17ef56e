"""MeerkatBench: from answered questions to scores per benchmark and task, beside baselines.

Pure functions over texts and truths; nothing here runs a model. The result is what benchmark.json
holds: `{"<benchmark>/<task>": {"<metric>": x, "intervals": {"<metric>": [low, high]}, "n": n,
"unparsed": k, "baselines": {...}}}`, with AVQA also per kind as `"<benchmark>/avqa/<kind>"`. What
is measured is in measures.py, the intervals (95 %) in bootstrap.py.

Grounding in space and time is scored apart for the scenes where it is hard: `several_objects` (two
and more things in the image) and `two_sounds` (two sounds at one moment). The baselines are
described in baselines.py.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Question
from meerkat_jax.evaluation import baselines, coco, events
from meerkat_jax.evaluation.answer_parsing import normalise
from meerkat_jax.evaluation.bootstrap import Summed, intervals
from meerkat_jax.evaluation.measures import MEASURES, Answered, kind_of, measure, spans

__all__ = ["Answered", "Judged", "class_names", "judge", "main_metric", "score"]

CLIP_SECONDS = 10.0
# The score that a benchmark's task is known by: the first of these that it has.
MAIN = ("ciou", "segment_audio_visual", "segment_f1", "accuracy", "names_right", "bleu4")

CAPTIONED = frozenset({"valor"})  # sources without any other task

Scores = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Judged:
    """One answer judged by itself: could it be read, is it right, and its scores.

    Of a caption that people wrote there is no right one: None.
    """

    parsed: bool
    right: bool | None
    scores: dict[str, float]


@dataclasses.dataclass(frozen=True)
class _Captions:
    """Texts to be measured against references, and the entry that the scores go to."""

    entry: Scores
    texts: Sequence[str]
    references: Sequence[Sequence[str]]
    own: bool  # the model's, not a baseline's


def score(
    records: Sequence[Answered], seconds: float = CLIP_SECONDS, captions: bool = False
) -> dict[str, Scores]:
    """Every benchmark and task of `records`; `seconds` is the length of the clips.

    With `captions` these have BLEU, METEOR, ROUGE-L and CIDEr. Raises UserError for an unknown
    task, and for measures that are not installed (see `lacking`).
    """
    groups: dict[str, list[Answered]] = defaultdict(list)
    for record in records:
        task = record.question.task
        if task not in MEASURES:
            raise UserError(f"{record.example_id}: unknown task {task!r}; one of {[*MEASURES]}")
        groups[f"{record.split}/{task}"].append(record)
        if task == "avqa":
            groups[f"{record.split}/{task}/{kind_of(record)}"].append(record)
    names = class_names(records)
    found = {k: _score_group(group, names, seconds) for k, group in sorted(groups.items())}
    described = [key for key in found if key.endswith("/avc")]
    if captions and described:
        _add_caption_scores([s for k in described for s in _caption_texts(groups[k], found[k])])
    return found


def lacking(sources: Collection[str]) -> str | None:
    """What has to be installed to score these sources by their field's own measures, if anything.

    Raises UserError when a source has no other measure.
    """
    captioned = CAPTIONED & {*sources}
    if captioned and coco.missing():
        raise UserError(f"{min(captioned)} is scored by captions alone: {coco.missing()}")
    if "openimages_strong" in sources:
        events.require()
    return coco.missing()


def main_metric(entry: Mapping[str, Any]) -> str | None:
    """The score that this entry of a benchmark is known by; None where nothing could be measured.

    So it is with captions of people where the caption tools are not installed.
    """
    return next((metric for metric in MAIN if metric in entry), None)


def judge(record: Answered, names: Collection[str]) -> Judged:
    """One answer by itself. Right is: IoU of a half for boxes and each event; all else exact."""
    measured = measure([dataclasses.replace(record, source="")], names)
    scores = measured.scores()
    deciding = {"arig": "ciou", "igatl": "event_f1"}.get(record.question.task)
    right = scores[deciding or main_metric(scores)] == 1.0 if scores else None
    return Judged(parsed=not measured.counts["unparsed"], right=right, scores=scores)


def class_names(records: Sequence[Answered]) -> frozenset[str]:
    """Every class name that the truths mention, normalised: the vocabulary to look for in texts."""
    names: set[str] = set()
    for truth in (record.question.truth for record in records):
        names |= {
            normalise(n) for key in ("image_labels", "audio_labels") for n in truth.get(key) or ()
        }
        names |= {normalise(e[0]) for key in ("objects", "sounds") for e in truth.get(key) or ()}
    return frozenset(names)


def has_several_objects(record: Answered) -> bool:
    """Whether the image shows two things or more."""
    return len(record.question.truth.get("objects") or ()) > 1


def has_two_sounds_at_once(record: Answered) -> bool:
    """Whether two sounds overlap in time."""
    times = sorted((start, end) for _, start, end in record.question.truth.get("sounds") or ())
    return any(later[0] < earlier[1] for earlier, later in zip(times, times[1:], strict=False))


def _score_group(group: list[Answered], names: Collection[str], seconds: float) -> Scores:
    entry = _scores_and_baselines(group, names, seconds)
    if group[0].question.task in ("arig", "igatl"):
        for name, belongs in _SUBSETS.items():
            subset = [record for record in group if belongs(record)]
            if subset:
                entry[name] = _scores_and_baselines(subset, names, seconds)
    return entry


def _scores_and_baselines(group: list[Answered], names: Collection[str], seconds: float) -> Scores:
    measured = measure(group, names)
    entry: Scores = {**measured.scores(), **measured.counts, "n": len(group), "intervals": {}}
    for summed in measured.sums:
        _add_intervals(entry, summed)
    entry["baselines"] = _baselines(group, names, seconds)
    return entry


def _add_intervals(entry: Scores, summed: Summed) -> None:
    entry["intervals"] |= {name: list(ends) for name, ends in intervals(summed).items()}


# Baselines ----------------------------------------------------------------------------------------


def _baselines(group: list[Answered], names: Collection[str], seconds: float) -> Scores:
    questions = [record.question for record in group]
    task = questions[0].task
    if task == "arig":
        return baselines.boxes(questions)
    if task == "igatl":
        found = {}
        for name, answers in baselines.intervals(questions, seconds).items():
            sums = spans(questions, answers, group[0].source)
            found[name] = {k: v for summed in sums for k, v in summed.scores().items()}
        return found
    if task == "avc":
        return {
            "frequent_caption": _rescored(group, [_frequent_caption(group)] * len(group), names)
        }
    found = {"majority": _rescored(group, _majority(group), names)}
    verdicts = baselines.anything_sounds(questions)
    return found | ({"anything_sounds": _rescored(group, verdicts, names)} if verdicts else {})


def _majority(group: list[Answered]) -> list[str]:
    """The most frequent answer to each question's kind."""
    answers: dict[str, list[str]] = defaultdict(list)
    for record in group:
        answers[kind_of(record)].append(_answer_text(record.question))
    most = {kind: baselines.most_frequent(some) for kind, some in answers.items()}
    return [most[kind_of(record)] for record in group]


def _frequent_caption(group: list[Answered]) -> str:
    return baselines.most_frequent([record.question.response for record in group])


def _rescored(group: list[Answered], texts: list[str], names: Collection[str]) -> Scores:
    """The scores that other texts would have got."""
    pairs = zip(group, texts, strict=True)
    return measure([dataclasses.replace(r, text=text) for r, text in pairs], names).scores()


def _answer_text(question: Question) -> str:
    answer = question.truth["answer"]
    answer = answer[0] if isinstance(answer, (list, tuple)) else answer
    if isinstance(answer, bool) and question.task == "avqa":
        return "yes" if answer else "no"
    return str(answer)


# Captions -----------------------------------------------------------------------------------------


def _caption_texts(group: list[Answered], entry: Scores) -> list[_Captions]:
    """The model's and the baseline's captions; a question without references has its response."""
    references = [r.question.truth.get("references") or [r.question.response] for r in group]
    frequent = [_frequent_caption(group)] * len(group)
    return [
        _Captions(entry, [record.text for record in group], references, True),
        _Captions(entry["baselines"]["frequent_caption"], frequent, references, False),
    ]


def _add_caption_scores(captions: Sequence[_Captions]) -> None:
    sums = coco.caption_sums([(some.texts, some.references) for some in captions])
    for some, summed in zip(captions, sums, strict=True):
        some.entry.update(summed.scores())
        if some.own:
            _add_intervals(some.entry, summed)


_SUBSETS = {"several_objects": has_several_objects, "two_sounds": has_two_sounds_at_once}
