"""Bootstrap intervals: SciPy's, and as often right as they say."""

import numpy as np
import pytest
from scipy import sparse, stats

from meerkat_jax.evaluation import bootstrap
from meerkat_jax.evaluation.bootstrap import Summed, corpus_intervals, intervals, means, pooled


def f1(hits, false_alarms, misses, axis=-1):
    hits, wrong = hits.sum(axis), false_alarms.sum(axis) + misses.sum(axis)
    return 2 * hits / (2 * hits + wrong)


def by_scipy(samples, statistic, draws=500, seed=0):
    found = stats.bootstrap(
        samples, statistic, n_resamples=draws, paired=True, vectorized=True,
        method="percentile", rng=np.random.default_rng(seed), axis=-1,
    ).confidence_interval  # fmt: skip
    return pytest.approx((found.low, found.high), abs=1e-12)


@pytest.mark.parametrize("samples", [2, 37, 400])
def test_intervals_are_scipy_s(samples, monkeypatch):
    rng = np.random.default_rng(samples)
    values, counts = rng.random(samples), rng.integers(0, 5, (samples, 3)) + [1, 0, 0]
    for cells in (bootstrap._CELLS, 1000):  # the chunks do not matter
        monkeypatch.setattr(bootstrap, "_CELLS", cells)
        assert intervals(means({"a": values}), 500)["a"] == by_scipy((values,), np.mean)
        assert intervals(pooled(counts), 500)["f1"] == by_scipy(tuple(counts.T), f1)


def test_the_slow_path_is_scipy_s_too():
    values = np.random.default_rng(1).random(30)
    found = corpus_intervals(30, lambda rows: {"median": np.median(values[rows])}, draws=100)
    assert found["median"] == by_scipy((values,), np.median, draws=100)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, truth = np.random.default_rng(0), 0.3
    covered = 0
    for seed in range(300):
        values = (rng.random(150) < truth).astype(float)
        low, high = intervals(means({"share": values}), draws=200, seed=seed)["share"]
        covered += low <= truth <= high
    assert 0.91 <= covered / 300 <= 0.98  # 0.95 with a standard deviation of 0.013


def test_seed_and_confidence():
    summed = means({"a": np.random.default_rng(0).random(50)})
    assert intervals(summed) == intervals(summed) != intervals(summed, seed=1)
    (low, high), (lower, higher) = (intervals(summed, confidence=c)["a"] for c in (0.5, 0.99))
    assert lower < low < high < higher


def test_scores_without_doubt_have_no_width():
    assert intervals(means({"a": [1.0] * 9}), 50)["a"] == (1.0, 1.0)
    assert intervals(means({"a": [0.25]}), 50)["a"] == (0.25, 0.25)


def test_several_scores_share_their_draws():
    values = np.random.default_rng(0).random(40)
    found = intervals(means({"a": values, "b": values + 1}), 100)
    assert np.subtract(found["b"], found["a"]) == pytest.approx([1, 1])


def test_sparse_sums_are_the_same():
    counts = np.random.default_rng(0).integers(0, 3, (30, 3))
    dense = pooled(counts, "x_")
    thin = Summed(sparse.csr_array(counts), dense.score)
    assert thin.scores() == dense.scores()
    assert intervals(thin, 100) == intervals(dense, 100)


def test_pooled_scores_by_hand_and_where_there_is_nothing():
    assert pooled([(2, 2, 1), (1, 0, 0)]).scores() == pytest.approx(
        {"precision": 3 / 5, "recall": 3 / 4, "f1": 6 / 9}
    )
    assert set(pooled([(0, 0, 0)]).scores().values()) == {1.0}
    assert set(pooled([(0, 0, 0)], nothing=0.0).scores().values()) == {0.0}
    assert set(pooled([(0, 3, 0)]).scores().values()) == {0.0}


@pytest.mark.parametrize(("samples", "draws"), [(0, 10), (3, 0)])
def test_nothing_to_draw_is_an_error(samples, draws):
    with pytest.raises(ValueError, match=f"{samples} samples and {draws} draws"):
        intervals(means({"a": [0.5] * samples}), draws)
