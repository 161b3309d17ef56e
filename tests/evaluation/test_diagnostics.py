"""Diagnostics: known rows give known numbers; a model's rows do not depend on how it is run."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from meerkat_jax.data.example import Question
from meerkat_jax.data.split import open_split
from meerkat_jax.evaluation.benchmark import Answered
from meerkat_jax.evaluation.diagnostics import diagnose
from meerkat_jax.evaluation.model_outputs import chances_of, observe
from meerkat_jax.report import diagnostics_text
from tests.evaluation.test_report import Page
from tests.inference.made import fast_compilation, made, model

PAIRS = 4


def row(number, own, other=None, **more):
    found = {"id": f"{number}", "matched": True, "tokens": [4, 4], "distance": own, "chances": []}
    found |= {"entropy": math.log(4)}
    if other is not None:
        found["shuffled"] = {"distance": other, "entropy": math.log(16), "sound": "x"}
    return found | more


def attended(mass, peak):
    return {"mass": mass, "area": 0.25, "peak": peak, "peak_chance": 0.2}


def claim(number, true, said):
    question = Question("avfact2", "?", "", truth={"answer": true})
    return Answered(f"{number}", "test", question, f"I see: {said}.")


def test_a_shuffled_pair_is_farther_and_a_sharp_plan_has_less_entropy():
    rows = [row(i, 0.1 * i, 0.1 * i + 0.5) for i in range(1, 5)]
    rows += [row(9, 0.2, 0.2), row(10, 0.0), row(11, 9.0, 0.0, matched=False)]
    found = diagnose(rows)
    avopt, plan = found["avopt"], found["plan"]
    assert (found["n"], avopt["n"], plan["n"]) == (7, 5, 5)  # those with another sound to compare
    assert avopt["matched"]["value"] == pytest.approx(1.2 / 5)
    assert avopt["margin"]["value"] == pytest.approx(2.0 / 5) and avopt["margin"]["chance"] == 0.0
    assert avopt["own_nearer"]["value"] == 0.9 and avopt["own_nearer"]["chance"] == 0.5
    # of 25 pairs of distances: the tied 0.2 against .1, .2, .2, .3, .4
    assert avopt["auc"]["value"] == pytest.approx((20 + 1 + 0.5 + 0.5) / 25)
    low, high = avopt["margin"]["interval"]
    assert low < 0.4 < high
    assert sum(avopt["histogram"]["matched"]) == sum(avopt["histogram"]["shuffled"]) == 5
    assert plan["entropy"]["value"] == pytest.approx(math.log(4)) == plan["least"]
    assert plan["entropy"]["chance"] == plan["shuffled"]["value"] == math.log(16)
    assert plan["relative"]["value"] == pytest.approx(0.5)


def test_attention_stands_beside_the_boxes_share():
    rows = [row(0, 1.0, box=attended(0.75, 1.0))]
    rows.append(row(1, 1.0, box=attended(0.25, 0.0), silent=attended(0.125, 0.0)))
    rows.append(row(2, 1.0, silent=attended(1.0, 1.0)))  # nothing heard is seen: left out
    found = diagnose(rows)["avace"]
    assert found["box"]["mass"]["value"] == 0.5 and found["box"]["mass"]["chance"] == 0.25
    assert found["box"]["peak"]["value"] == 0.5 and found["box"]["peak"]["chance"] == 0.2
    assert found["silent"]["n"] == 1 and found["silent"]["mass"]["value"] == 0.125


def test_chances_belong_to_their_answers():
    answered = [claim(0, True, "True"), claim(1, False, "True"), claim(0, False, "True")]
    answered += [claim(1, True, "nothing"), claim(7, True, "True")]
    rows = [row(0, 1.0, chances=[0.9, 0.2]), row(1, 1.0, chances=[0.6, None])]
    assert chances_of(rows, answered) == [0.9, 0.6, 0.2, None, None]
    found = diagnose(rows, answered)["calibration"]["avfact2"]
    assert (found["n"], found["without"], found["true"]) == (3, 2, 1 / 3)
    assert found["ece"]["value"] == pytest.approx((0.1 + 0.6 + 0.2) / 3)
    assert found["brier"]["value"] == pytest.approx((0.01 + 0.36 + 0.04) / 3)
    assert found["brier"]["chance"] == pytest.approx(2 / 9)


def test_a_name_that_no_truth_mentions_is_a_name_when_it_is_known():
    which = {"kind": "which", "answer": "dog", "image_labels": ["dog"]}
    answered = [Answered("0", "test", Question("avqa", "?", "", truth=which), "The orca.")]
    for names, said in (((), "nothing"), ({"orca"}, "orca")):
        found = diagnose([], answered, names)["confusion"]["avqa/which"]
        assert found["counts"] == {"dog": {said: 1}}


def test_what_nothing_is_known_of_is_left_out():
    assert diagnose([]) == {"n": 0}
    assert diagnose([row(0, 1.0)]) == {"n": 1}
    assert diagnostics_text.section({}) == ""


def test_the_section_shows_every_number_beside_chance_and_draws_each_figure():
    rng = np.random.default_rng(0)
    rows = [
        row(i, d, d + 0.2, box=attended(0.6, 1.0), silent=attended(0.2, 0.0), chances=[p])
        for i, (d, p) in enumerate(rng.random((30, 2)))
    ]
    answered = [claim(i, bool(i % 3), True) for i in range(30)]
    which = {"kind": "which", "answer": "<i>dog</i>", "image_labels": ["<i>dog</i>", "cat"]}
    answered.append(
        Answered("0", "test", Question("avqa", "?", "", truth=which), "The cat makes the sound.")
    )
    found = {"compositions": diagnose(rows, answered)}
    assert json.loads(json.dumps(found)) == found
    html, page = diagnostics_text.section(found), Page()
    page.feed(html)
    page.close()
    assert not page.open and "i" not in page.tags
    assert "<i>dog</i> named another name: 1 of 1" in "".join(page.words)
    assert page.tags.count("svg") - html.count('<svg width="26"') == 4
    assert html.count('scope="row"') == len(diagnostics_text.NUMBERS) + 1
    words = diagnostics_text.table(found)
    for line in diagnostics_text.lines(found["compositions"]):
        numbers = [diagnostics_text.number(n) for n in (line.value, *line.interval)]
        assert re.search(r"{} +{} to {} ".format(*map(re.escape, numbers)), words)
    assert words.count("\n") == len(diagnostics_text.NUMBERS) + 2


def test_small_numbers_keep_two_digits():
    known = {0.5449: "0.545", 0.0: "0.000", 0.000123: "0.00012", -0.0000071: "-7.1e-06"}
    assert {value: diagnostics_text.number(value) for value in known} == known


# ---- on a model ----


@pytest.fixture(scope="module")
def measured():
    """(examples, answers that say True to every claim, rows, measured at once)."""
    with fast_compilation():
        examples = [*open_split(made().data.folder, "compositions")[:PAIRS]]
        answered = [
            Answered(one.id, "compositions", question, "I hear a bee: True.")
            for one in examples
            for question in one.questions
        ]
        yield examples, answered, [*observe(model().sampler, examples, answered)]


def test_rows_of_a_model_are_whole(measured):
    examples, answered, rows = measured
    assert [r["id"] for r in rows] == [one.id for one in examples]
    known = {one.id: one for one in examples}
    for one, found in zip(examples, rows, strict=True):
        assert ("box" in found) == bool(one.boxes) and found["matched"] == one.matched
        assert 0 <= found["entropy"] <= math.log(math.prod(found["tokens"])) + 1e-6
        if "shuffled" in found:
            assert not set(known[found["shuffled"]["sound"]].audio_labels) & set(one.image_labels)
        for place in ("box", "silent"):
            if place in found:
                assert all(0 <= share <= 1 + 1e-6 for share in found[place].values())
    for record, chance in zip(answered, chances_of(rows, answered), strict=True):
        assert (chance is not None) == record.question.task.startswith("avfact")
        assert chance is None or 0 <= chance <= 1
    assert json.loads(json.dumps(diagnose(rows, answered)))["n"] == PAIRS


@pytest.mark.slow
def test_rows_depend_neither_on_the_batch_nor_on_who_measures(measured):
    examples, answered, rows = measured
    some = [3, 0, 2]
    with fast_compilation():
        again = [*observe(model().sampler, examples, answered, batch=3, only=some)]
    for number, found in zip(some, again, strict=True):
        assert json.dumps(rounded(found)) == json.dumps(rounded(rows[number]))


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 3) + 0.0 if isinstance(value, float) else value
