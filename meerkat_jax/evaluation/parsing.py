"""LLP's own scores: the protocol of audio-visual video parsing (Tian et al., ECCV 2020).

A video is ten segments of a second; for each of 25 labels it is known in which of them the event is
heard (audio), seen (visual), and both (audio-visual). The rules are those of the published
evaluation (github.com/YapengTian/AVVP-ECCV20, utils/eval_metrics.py and main_avvp.py):

    segment level   a label's segments are counted as hits, false alarms and misses
    event level     a label's runs of segments are its events; an answered event is a hit if any
                    true one overlaps it at an IoU of 0.5 (else a false alarm), a true event is a
                    miss if no answered one does. Several may match the same one.
    F1 of a video   2 hits / (2 hits + false alarms + misses) of each label, and the mean over the
                    labels that are answered or true; 1 where there are none
    score           the mean over videos

Five scores at each level: `audio`, `visual`, `audio_visual`, `type` (Type@AV: the mean of those
three) and `event` (Event@AV: counts of audio and visual added for each label before F1). An answer
that says when what is seen is heard gives the audio-visual score alone: the other four need
separate answers for hearing and for sight. The published mean is over all 1,200 test videos; one
where nothing is both heard and seen is no question here, and would score 1 for saying nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from meerkat_jax.data.example import Segment
from meerkat_jax.evaluation.answer_parsing import normalise

SECONDS = 10
LEAST = 0.5  # IoU of a match
KINDS = ("audio", "visual", "audio_visual")


def to_map(segments: Sequence[Segment], labels: Sequence[str], seconds: int = SECONDS):
    """bool[labels, seconds]: where each label is active; others than `labels` are left out.

    Ends are rounded to whole seconds. A stretch that would vanish is the second of its middle.
    """
    rows = {normalise(label): row for row, label in enumerate(labels)}
    active = np.zeros((len(labels), seconds), bool)
    for one in segments:
        start, end = (math.floor(time + 0.5) for time in (one.start, one.end))
        if end <= start and one.end > one.start:
            start = math.floor((one.start + one.end) / 2)
            end = start + 1
        if normalise(one.label) in rows:
            active[rows[normalise(one.label)], max(start, 0) : max(end, 0)] = True
    return active


def answer_maps(predicted: Sequence[Segment], true: Sequence[Segment]):
    """Two maps bool[labels, 10] of one video over all labels that it has in answer and truth.

    Labels that are neither do not count in the protocol. One that LLP does not know is a false
    alarm of a label of its own.
    """
    labels = sorted({normalise(one.label) for one in (*predicted, *true)})
    return to_map(predicted, labels), to_map(true, labels)


def segment_counts(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """int[labels, 3]: hits, false alarms and misses in segments, of maps bool[labels, seconds]."""
    p, t = np.asarray(predicted, bool), np.asarray(true, bool)
    return np.stack([(p & t).sum(1), (p & ~t).sum(1), (~p & t).sum(1)], axis=1)


def event_counts(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """int[labels, 3]: answered events found, answered in vain, and true events missed."""
    counts = []
    for p, t in zip(predicted, true, strict=True):
        answered, wanted = runs(p), runs(t)
        same = np.array([[_match(a, w) for w in wanted] for a in answered], bool)
        same = same.reshape(len(answered), len(wanted))
        hits = int(same.any(axis=1).sum())
        counts.append((hits, len(answered) - hits, int((~same.any(axis=0)).sum())))
    return np.array(counts, int).reshape(-1, 3)


def runs(active: np.ndarray) -> list[tuple[int, int]]:
    """(first, behind the last) of every unbroken run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(active, int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def mean_f1(counts: np.ndarray) -> float:
    """Mean F1 over the labels that have any count; 1 where none has."""
    counts = counts[counts.sum(axis=1) > 0]
    if not len(counts):
        return 1.0
    hits = 2 * counts[:, 0]
    return float(np.mean(hits / (hits + counts[:, 1] + counts[:, 2])))


def video_scores(
    predicted: Mapping[str, np.ndarray], true: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """The scores of one video, as segment_audio and event_type, of maps bool[25, 10].

    `predicted` and `true` hold `audio` and `visual` and get all five of each level; those that hold
    `audio_visual` alone get that one.
    """
    maps = [_with_both(side) for side in (predicted, true)]
    known = [kind for kind in KINDS if all(kind in side for side in maps)]
    found: dict[str, float] = {}
    for level, count in (("segment", segment_counts), ("event", event_counts)):
        counts = {kind: count(*(side[kind] for side in maps)) for kind in known}
        scores = {kind: mean_f1(counts[kind]) for kind in known}
        if set(KINDS) == set(known):
            scores["type"] = sum(scores.values()) / 3
            scores["event"] = mean_f1(counts["audio"] + counts["visual"])
        found |= {f"{level}_{kind}": value for kind, value in scores.items()}
    return found


def answer_scores(
    predicted: Sequence[Sequence[Segment]], true: Sequence[Sequence[Segment]]
) -> dict[str, np.ndarray]:
    """Per video: `segment_audio_visual` and `event_audio_visual` of answers; means are the scores.

    `true` are the stretches in which a label is both heard and seen.
    """
    rows = []
    for said, known in zip(predicted, true, strict=True):
        answered, wanted = answer_maps(said, known)
        rows.append(video_scores({"audio_visual": answered}, {"audio_visual": wanted}))
    names = ("segment_audio_visual", "event_audio_visual")
    return {name: np.array([row[name] for row in rows]) for name in names}


def _with_both(maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {kind: np.asarray(values, bool) for kind, values in maps.items()}
    if "audio" in found and "visual" in found:
        found["audio_visual"] = found["audio"] & found["visual"]
    return found


def _match(a: tuple[int, int], b: tuple[int, int]) -> bool:
    both = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    return both >= LEAST * (a[1] - a[0] + b[1] - b[0] - both)
