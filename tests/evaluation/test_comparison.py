"""The paper's results, complete and as published, beside ours."""

import pytest

from meerkat_jax.report import comparison

# The values written down a second time: a slip of the pen in either is seen.
PAPER = {
    "VGG-SS": (48.51, 45.62, 40.31, 39.68),
    "Flickr-SoundNet": (88.35, 67.88, 81.17, 62.29),
    "PASCAL Sound": (65.23, 56.10, 58.52, 51.63),
    "AVSBench": (79.82, 65.35, 74.33, 59.49),
    "LLP": (54.96,),
    "AudioSet Strong": (56.85,),
    "AVFact, type 1": (85.0,),
    "AVQA, existence": (88.24,),
    "MUSIC-AVQA, existential": (83.62,),
    "VALOR-32K": (16.88,),
}


def test_every_known_result_is_there_with_its_source_and_a_statement():
    rows = comparison.rows({})
    for name, values in PAPER.items():
        some = [row for row in rows if row.benchmark == name]
        found = [row.paper for row in some] + [row.other[1] for row in some if row.other]
        assert tuple(found) == values, name
    assert len(rows) == sum(len(v) // 2 or 1 for v in PAPER.values())
    known = comparison.paper()
    for row in rows:
        assert row.ours is None and row.why.endswith(".")
        assert row.same_metric in ("yes", "no", "not told") and row.source in known["sources"]
        assert row.same_test in ("yes", "no", "not told")


def test_ours_stand_in_per_cent_and_what_is_absent_says_so():
    benchmark = {
        "vggss/arig": {"ciou": 0.25, "auc": 0.3, "n": 40},
        "compositions/arig": {"ciou": 0.9, "auc": 0.9, "n": 7},
        "valor/avc": {"meteor": 0.1, "n": 3},
    }
    rows = {(row.benchmark, row.metric): row for row in comparison.rows(benchmark)}
    assert rows["VGG-SS", "cIoU"].ours == 25.0 and rows["VGG-SS", "AUC"].n == 40
    assert rows["AVSBench", "cIoU"].missing == comparison.ABSENT
    assert rows["VALOR-32K", "BLEU@4"].missing == comparison.NO_SCORE
    assert rows["AVQA, existence", "accuracy"].missing == comparison.NO_SCORE
    text = comparison.text(benchmark)
    assert "48.51  40.31 BuboGPT    25.00 (n 40)" in text
    assert text.count("not on disk") == 10 and "same test set: not told" in text
    page = comparison.section(benchmark)
    assert "<b>25.00</b>" in page and "90.00" not in page
    assert page.count("<tr>") == 1 + len(rows)
    assert "cannot be compared" in page


def test_mini_scores_have_no_place_beside_the_paper():
    mini = {"compositions/arig": {"ciou": 1.0, "n": 5}, "instances/avfact1": {"f1": 1.0, "n": 5}}
    assert all(row.ours is None for row in comparison.rows(mini))
    assert comparison.section(mini) == comparison.section({})


@pytest.mark.parametrize("key", ["benchmark", "task", "metric", "value", "source", "why"])
def test_rows_name_all_that_a_reader_needs(key):
    assert all(one[key] for one in comparison.paper()["rows"])
