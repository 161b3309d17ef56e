"""LLP's protocol gives what its published evaluation gave (avvp_values.json says how)."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.data.example import Segment
from meerkat_jax.data.sources.llp import LABELS, WORDS
from meerkat_jax.evaluation import parsing

VIDEOS = json.loads((Path(__file__).parent / "avvp_values.json").read_text())["videos"]
DOG = Segment("dog", 1.0, 4.0)


def maps(numbers):
    """{audio, visual}: bool[25, 10] of two hexadecimal numbers."""
    bits = [[c == "1" for c in f"{int(number, 16):0250b}"] for number in numbers]
    return dict(zip(("audio", "visual"), np.array(bits).reshape(2, 25, 10), strict=True))


def test_scores_of_a_video_are_the_published_ones():
    assert len(VIDEOS) > 50
    for number, video in enumerate(VIDEOS):
        found = parsing.video_scores(maps(video["predicted"]), maps(video["true"]))
        for level in ("segment", "event"):
            three = [video["scores"][f"{level}_{kind}"] for kind in parsing.KINDS]
            assert found.pop(f"{level}_type") == pytest.approx(sum(three) / 3), number
        assert found == pytest.approx(video["scores"], abs=1e-12), number


def test_the_values_can_tell_scores_apart():
    for name in VIDEOS[0]["scores"]:
        assert len({round(video["scores"][name], 6) for video in VIDEOS}) > 8, name


def test_audio_visual_maps_alone_give_that_score_alone():
    video = VIDEOS[30]
    both = [m["audio"] & m["visual"] for m in (maps(video["predicted"]), maps(video["true"]))]
    found = parsing.video_scores(*({"audio_visual": one} for one in both))
    assert list(found) == ["segment_audio_visual", "event_audio_visual"]
    assert found == pytest.approx({name: video["scores"][name] for name in found})


@pytest.mark.parametrize(
    ("start", "end", "seconds"),
    [
        (1.0, 4.0, [1, 2, 3]),
        (1.4, 3.6, [1, 2, 3]),
        (1.5, 3.4, [2]),
        (2.6, 2.9, [2]),  # would round to nothing
        (9.6, 10.0, [9]),
        (-3.0, 1.2, [0]),
        (8.0, 14.0, [8, 9]),
        (3.0, 3.0, []),
        (12.0, 13.0, []),
    ],
)
def test_stretches_become_whole_seconds(start, end, seconds):
    found = parsing.to_map([Segment("Dog", start, end)], ["cat", "dog"])
    assert found.shape == (2, 10) and np.flatnonzero(found[1]).tolist() == seconds
    assert not found[0].any()


def test_truths_of_the_data_set_become_the_published_maps():
    names = [WORDS[label] for label in LABELS]
    found = parsing.to_map([Segment("frying food", 0.0, 3.0)], names)
    assert np.argwhere(found).tolist() == [[LABELS.index("Frying_(food)"), i] for i in range(3)]


@pytest.mark.parametrize(
    ("predicted", "segment", "event"),
    [
        ([DOG], 1.0, 1.0),
        ([], 0.0, 0.0),
        ([Segment("cat", 1.0, 4.0)], 0.0, 0.0),
        ([DOG, Segment("unheard of", 1.0, 4.0)], 0.5, 0.5),  # a label of its own, and wrong
        ([Segment("dog", 1.0, 3.0)], 0.8, 1.0),
        ([Segment("dog", 1.0, 2.0)], 0.5, 0.0),
        ([Segment("dog", 1.0, 2.0), Segment("dog", 2.0, 4.0)], 1.0, 1.0),  # one run of seconds
    ],
)
def test_answers_are_scored(predicted, segment, event):
    found = parsing.answer_scores([predicted, []], [[DOG], []])
    assert found["segment_audio_visual"] == pytest.approx([segment, 1.0])
    assert found["event_audio_visual"] == pytest.approx([event, 1.0])


@given(st.lists(st.booleans(), max_size=12))
def test_runs_are_what_is_active(active):
    found = parsing.runs(np.array(active, bool))
    assert [i for a, b in found for i in range(a, b)] == [i for i, on in enumerate(active) if on]
    assert all(a < b for a, b in found)
    assert all(b < a for (_, b), (a, _) in zip(found, found[1:], strict=False))
