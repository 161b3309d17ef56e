"""Calibration of mixtures whose calibration is known."""

import numpy as np
import pytest

from meerkat_jax.evaluation.bootstrap import intervals
from meerkat_jax.evaluation.calibration import (
    calibrated_ece,
    calibration_sums,
    reliability,
    verdict_chance,
)


def test_ece_and_brier_by_hand():
    # one bin with mean .85 of which half are true, one with .2 of which none is
    chances, true = [0.82, 0.88, 0.2, 0.2], [True, False, False, False]
    found = calibration_sums(chances, true).scores()
    assert found["ece"] == pytest.approx((abs(0.82 + 0.88 - 1) + 0.4) / 4)
    assert found["brier"] == pytest.approx((0.18**2 + 0.88**2 + 0.04 + 0.04) / 4)


def test_a_calibrated_mixture_has_the_error_that_chance_gives_it_and_a_boastful_one_more():
    rng = np.random.default_rng(0)
    chances = rng.choice([0.03, 0.32, 0.55, 0.97], 2000)
    true = rng.random(2000) < chances
    usual = calibrated_ece(chances)
    found = calibration_sums(chances, true)
    assert 0 < usual < 0.02 and found.scores()["ece"] < 3 * usual
    # the same claims, but the model says .99 or .01: it is wrong by what it pretends
    boast = np.where(chances > 0.5, 0.99, 0.01)
    expected = np.mean(np.abs(boast - chances))
    sums = calibration_sums(boast, true)
    assert sums.scores()["ece"] == pytest.approx(expected, abs=0.03)
    low, high = intervals(sums)["ece"]
    assert low < expected < high and high - low < 0.08


def test_brier_of_the_share_of_true_is_its_variance():
    true = np.arange(10) < 3
    assert calibration_sums([0.3] * 10, true).scores()["brier"] == pytest.approx(0.21)


def test_bins_hold_every_claim_once_ends_included():
    bins = reliability([0.0, 0.1, 0.1, 0.95, 1.0], [False, True, False, True, True])
    assert [one["n"] for one in bins] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert bins[1]["chance"] == pytest.approx(0.1) and bins[1]["true"] == 0.5
    assert "true" not in bins[2]


def test_the_first_token_that_differs_decides_a_verdict():
    true = ([5, 6, 7, 9], np.log([0.1, 0.2, 0.6, 0.001]))
    false = ([5, 6, 8, 9], np.log([0.1, 0.2, 0.2, 0.9]))
    assert verdict_chance(true, false) == pytest.approx(0.75)
    assert verdict_chance(false, true) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="do not differ"):
        verdict_chance(true, true)
