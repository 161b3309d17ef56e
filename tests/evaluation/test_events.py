"""Detection scores are those of sed_eval over all clips at once."""

import sys

import numpy as np
import pytest
import sed_eval

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Segment
from meerkat_jax.evaluation import bootstrap, events, segments
from meerkat_jax.evaluation.bootstrap import pooled

LABELS = ["dog", "owl", "sea lion"]


def clips(seed, number=12, labels=LABELS, most=5):
    rng = np.random.default_rng(seed)

    def some():
        times = np.sort(rng.integers(0, 101, (rng.integers(0, most), 2)), axis=1) / 10
        return [Segment(labels[rng.integers(len(labels))], *map(float, t)) for t in times]

    def near(true):
        moved = [(s.label, *(t + rng.choice([-1.5, -0.2, 0, 0.1, 0.3]) for t in (s.start, s.end)))
                 for s in true if rng.random() < 0.8]  # fmt: skip
        return [Segment(n, max(a, 0.0), b) for n, a, b in moved if b > max(a, 0)] + some()[:1]

    true = [some() for _ in range(number)]
    return [near(one) for one in true], true


def scores(predicted, true):
    sums = (events.segment_sums(predicted, true), events.event_sums(predicted, true))
    return sums[0].scores() | sums[1].scores()


def listed(some):
    return [{"event_label": s.label, "event_onset": s.start, "event_offset": s.end} for s in some]


def by_library(metric, predicted, true):
    """(micro, macro by class) of the library's running totals over all clips."""
    for p, t in zip(predicted, true, strict=True):
        if p or t:
            metric.evaluate(listed(t), listed(p))
    return metric.results_overall_metrics()["f_measure"], metric.results_class_wise_metrics()


@pytest.mark.parametrize("seed", range(6))
def test_scores_are_those_of_the_library(seed):
    predicted, true = clips(seed)
    found = scores(predicted, true)
    tools = {
        "sed_segment_": sed_eval.sound_event.SegmentBasedMetrics(LABELS, time_resolution=1.0),
        "sed_event_": sed_eval.sound_event.EventBasedMetrics(
            LABELS, percentage_of_length=0.2, empty_system_output_handling="zero_score"
        ),
    }
    for prefix, metric in tools.items():
        overall, classes = by_library(metric, predicted, true)
        macro = np.nanmean([one["f_measure"]["f_measure"] for one in classes.values()])
        assert found[f"{prefix}f1"] == pytest.approx(overall["f_measure"])
        assert found[f"{prefix}precision"] == pytest.approx(overall["precision"])
        assert found[f"{prefix}recall"] == pytest.approx(overall["recall"])
        assert found[f"{prefix}f1_macro"] == pytest.approx(macro)
        assert 0.1 < overall["f_measure"] < 1


@pytest.mark.parametrize(("collar", "share"), [(0.2, 0.5), (0.5, 0.0), (0.1, 1.0)])
def test_other_collars_are_those_of_the_library(collar, share):
    predicted, true = clips(9)
    metric = sed_eval.sound_event.EventBasedMetrics(
        LABELS, t_collar=collar, percentage_of_length=share
    )
    overall, _ = by_library(metric, predicted, true)
    found = events.event_sums(predicted, true, collar, share).scores()
    assert found["sed_event_f1"] == pytest.approx(overall["f_measure"])


@pytest.mark.parametrize("seed", range(4))
def test_our_own_segment_f1_is_the_library_s(seed):
    predicted, true = clips(seed + 20)
    library = events.segment_sums(predicted, true).scores()
    ours = pooled(segments.segment_samples(predicted, true)["segment"], "sed_segment_").scores()
    assert ours == pytest.approx({name: library[name] for name in ours})


@pytest.mark.parametrize("label", ["nan", "-", "none", "", "1", "[dog"])
def test_any_label_is_a_label(label):
    odd = Segment(label, 1.0, 4.0)
    found = scores([[odd], [odd]], [[odd], [Segment("owl", 1.0, 4.0)]])
    assert found["sed_event_f1"] == found["sed_segment_f1"] == 0.5


DOG = Segment("dog", 1.0, 4.0)


@pytest.mark.parametrize(
    ("predicted", "true", "f1", "macro"),
    [
        ([[]], [[]], 1.0, 1.0),
        ([[]], [[DOG]], 0.0, 0.0),
        ([[DOG]], [[]], 0.0, 0.0),
        ([[Segment("Dog", 1.2, 4.6)]], [[DOG]], 1.0, 1.0),  # 0.2 and a fifth of three seconds
        ([[Segment("dog", 1.3, 4.0)]], [[DOG]], 0.0, 0.0),
        ([[Segment("dog", 1.0, 4.7)]], [[DOG]], 0.0, 0.0),
        ([[DOG, DOG]], [[DOG]], 2 / 3, 2 / 3),  # one event is found once
        ([[DOG], []], [[DOG], [Segment("owl", 0.0, 1.0)]], 2 / 3, 0.5),  # never answered: 0
        ([[DOG, Segment("owl", 0.0, 1.0)]], [[DOG]], 2 / 3, 1.0),  # never true: no class
    ],
)
def test_events_by_hand(predicted, true, f1, macro):
    found = events.event_sums(predicted, true).scores()
    assert (found["sed_event_f1"], found["sed_event_f1_macro"]) == pytest.approx((f1, macro))


def test_intervals_hold_the_scores():
    predicted, true = clips(3, number=40)
    summed = events.event_sums(predicted, true)
    known, found = summed.scores(), bootstrap.intervals(summed, draws=300)
    for name, (low, high) in found.items():
        assert low <= known[name] <= high and high - low < 0.5, name
    # a draw is scored as those clips would be
    drawn = np.random.default_rng(0).integers(0, 40, 40)
    again = events.event_sums([predicted[i] for i in drawn], [true[i] for i in drawn]).scores()
    sums = np.asarray(summed.table[drawn].sum(axis=0), float)
    assert {n: float(v) for n, v in summed.score(sums).items()} == pytest.approx(again)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sed_eval", None)
    with pytest.raises(UserError, match=r"meerkat_jax\[eval\]"):
        scores([[]], [[]])
