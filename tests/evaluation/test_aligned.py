"""Attention in boxes, entropy of plans, and shuffled pairs, where the answer is known."""

import numpy as np
import pytest

from meerkat_jax.data.example import Box
from meerkat_jax.evaluation import alignment_metrics

LEFT = Box("", 0.0, 0.0, 0.5, 1.0)
SOME = (Box("", 0.1, 0.2, 0.63, 0.7), Box("", 0.4, 0.35, 0.9, 0.95))


def test_even_attention_gives_the_boxes_share_of_the_picture_and_chance():
    even = np.full((7, 5), 1 / 35)
    exact = 0.53 * 0.5 + 0.5 * 0.6 - 0.23 * 0.35
    assert alignment_metrics.mass_inside(even, SOME) == pytest.approx(exact, abs=1e-6)
    assert alignment_metrics.area(SOME, even.shape) == pytest.approx(exact, abs=1e-6)
    assert alignment_metrics.peak_inside(even, SOME) == alignment_metrics.peak_chance(
        SOME, even.shape
    )


def test_attention_counts_where_it_lies():
    attention = np.zeros((4, 4))
    attention[1, 1], attention[2, 3] = 3.0, 1.0
    assert alignment_metrics.mass_inside(attention, [LEFT]) == pytest.approx(0.75)
    assert alignment_metrics.peak_inside(attention, [LEFT]) == 1.0
    assert alignment_metrics.peak_inside(attention[:, ::-1], [LEFT]) == 0.0
    # a box that cuts through the patch counts for the part that it covers
    quarter = Box("", 0.25, 0.25, 0.375, 0.375)
    assert alignment_metrics.mass_inside(attention, [quarter]) == pytest.approx(0.75 / 4)


def test_the_middle_of_a_patch_decides_for_its_peak():
    inside = alignment_metrics.middles_inside([Box("", 0.2, 0.0, 0.45, 1.0)], (1, 4))
    assert inside.tolist() == [[False, True, False, False]]  # middles .125, .375, ...
    assert not alignment_metrics.middles_inside([], (2, 2)).any()


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (6, 3), (17, 29)])
def test_entropy_is_the_log_of_how_many_entries_share_the_mass(rows, columns):
    even = np.full((rows, columns), 0.5)  # mass is made 1
    assert alignment_metrics.entropy(even) == pytest.approx(np.log(rows * columns))
    sharp = np.zeros((rows, columns))
    sharp[0, 0] = 1.0
    assert alignment_metrics.entropy(sharp) == 0.0
    if rows == columns:  # the least that even masses allow
        assert alignment_metrics.entropy(np.eye(rows)) == pytest.approx(np.log(rows))


def test_another_sound_is_one_in_which_nothing_seen_is_heard():
    seen = [{"dog"}, {"cat", "dog"}, {"owl"}, set(), {"bee"}]
    heard = [{"dog"}, {"cat"}, {"owl", "dog"}, {"bee"}, set()]
    for seed in range(20):
        found = alignment_metrics.partners(seen, heard, seed)
        assert found[3] is None
        assert all(
            heard[j] and not seen[i] & heard[j] for i, j in enumerate(found) if j is not None
        )
        assert found[0] in (1, 3) and found[1] == 3
    assert alignment_metrics.partners([{"dog"}], [{"dog"}]) == [None]
    assert alignment_metrics.partners([], []) == []


def test_other_sounds_vary_and_follow_the_seed():
    names = [{str(i)} for i in range(50)]
    first = alignment_metrics.partners(names, names, 0)
    assert (
        first
        == alignment_metrics.partners(names, names, 0)
        != alignment_metrics.partners(names, names, 1)
    )
    assert len(set(first)) > 25
