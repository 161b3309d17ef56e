"""Sound event detection as the field scores it: AudioSet Strong by `sed_eval` (extra `[eval]`).

Two scores, each pooled over everything (micro) and as the mean over classes (macro):

    segment F1   a class is active in every second that it touches
    event F1     an answered event is a hit if its label is right, its onset within 0.2 s of the
                 true one, and its offset within 0.2 s or a share of the true length, whichever is
                 more; events are matched one to one, as many as can be

The library's own share is 0.5. Task 4 of the DCASE challenges, which set the custom for clips of
ten seconds, takes 0.2, the macro mean, and 0 for a class that is never answered (the library's
`zero_score`). So is it here, and in segments too, where the library leaves such a class out of the
mean. A class that is never true has no recall and is left out, there and here. AudioSet's paper on
strong labels scores detectors by frame (d', average precision); answers have no confidence for it.

The library keeps running totals; each clip is given to it alone, so that the counts of every clip
are there for `bootstrap.intervals`.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Segment
from meerkat_jax.evaluation.answer_parsing import normalise
from meerkat_jax.evaluation.bootstrap import Scores, Summed, ratio

RESOLUTION = 1.0  # seconds
COLLAR = 0.2  # seconds
SHARE = 0.2  # of an event's length, for its offset

Clips = Sequence[Sequence[Segment]]
_CLASS = "class "  # and a number
_COUNTS = ("Ntp", "Nsys", "Nref")


def segment_sums(predicted: Clips, true: Clips, resolution: float = RESOLUTION) -> Summed:
    """Counts of each clip and class in segments of `resolution` seconds.

    Scores are f1, precision, recall and f1_macro behind sed_segment_. UserError where the extra is
    missing.
    """
    tool = _library().SegmentBasedMetrics
    return _sums(
        predicted,
        true,
        lambda labels: tool(event_label_list=labels, time_resolution=float(resolution)),
        "sed_segment_",
    )


def event_sums(
    predicted: Clips, true: Clips, collar: float = COLLAR, share: float = SHARE
) -> Summed:
    """Counts of each clip and class in events; `collar` in seconds, `share` of a true length.

    Scores as of `segment_sums`, behind sed_event_.
    """
    tool = _library().EventBasedMetrics
    return _sums(
        predicted,
        true,
        lambda labels: tool(
            event_label_list=labels, t_collar=float(collar), percentage_of_length=float(share)
        ),
        "sed_event_",
    )


def _sums(predicted: Clips, true: Clips, tool: Callable[[list[str]], Any], prefix: str) -> Summed:
    clips = list(zip(predicted, true, strict=True))
    labels = {normalise(one.label) for pair in clips for side in pair for one in side}
    place = {label: number for number, label in enumerate(sorted(labels))}
    table = sparse.lil_array((len(clips), 3 * len(place) or 3))
    for row, pair in enumerate(clips):
        answered, wanted = (_events(side, place) for side in pair)
        named = sorted({event["event_label"] for event in (*answered, *wanted)})
        if not named:
            continue  # the library knows no length of a clip without events
        metric = tool(named).evaluate(reference_event_list=wanted, estimated_event_list=answered)
        for name in named:
            first = 3 * int(name.removeprefix(_CLASS))
            table[row, first : first + 3] = [metric.class_wise[name][n] for n in _COUNTS]
    return Summed(sparse.csr_array(table), lambda sums: _scores(sums, prefix))


def _scores(sums: np.ndarray, prefix: str) -> Scores:
    counts = sums.reshape(*sums.shape[:-1], -1, 3)  # hits, answered, true
    hits, answered, true = np.moveaxis(counts.sum(axis=-2), -1, 0)
    nothing = answered + true == 0
    of_class, known = ratio(2 * counts[..., 0], counts[..., 1:].sum(-1)), counts[..., 2] > 0
    parts = {
        "f1": ratio(2 * hits, answered + true),
        "precision": ratio(hits, answered),
        "recall": ratio(hits, true),
        "f1_macro": ratio((of_class * known).sum(axis=-1), known.sum(axis=-1)),
    }
    return {prefix + name: np.where(nothing, 1.0, value) for name, value in parts.items()}


def _events(segments: Sequence[Segment], place: dict[str, int]) -> list[dict[str, Any]]:
    """As the library takes them; it reads some names ("nan", "-") as none at all, so numbers."""
    return [
        {
            "event_label": f"{_CLASS}{place[normalise(one.label)]}",
            "event_onset": float(one.start),
            "event_offset": float(one.end),
        }
        for one in segments
    ]


def require() -> None:
    """UserError, saying how to install it, where the library is missing."""
    _library()


def _library():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how a package of theirs is imported
            return importlib.import_module("sed_eval").sound_event
    except ImportError as error:
        raise UserError(
            f"sed_eval is not installed ({error}): pip install 'meerkat_jax[eval]'"
        ) from None
