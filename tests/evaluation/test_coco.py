"""Caption scores are those of the COCO tools, on ordinary and on odd texts."""

import random
import shutil
import sys

import numpy as np
import pytest

from meerkat_jax.core.errors import UserError
from meerkat_jax.evaluation import bootstrap, coco

java = pytest.mark.skipif(not shutil.which("java"), reason="no Java: the caption tools need it")

WORDS = "a the dog dogs man men barks barking is runs running car automobile red loudly".split()


def corpus():
    """Candidates and references: random ones, then edges."""
    rng = random.Random(0)

    def text():
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 9))).capitalize() + "."

    pairs = [(text(), [text() for _ in range(rng.randint(1, 4))]) for _ in range(24)]
    pairs += [
        ("A man's dog (red) isn't barking; it's loud!!", ["The dog of a man barks -- loudly ..."]),
        ("a dog barks", ["a dog barks", "cars run"]),  # the same words
        ("", ["A dog."]),
        ("...", ["!?", "A dog"]),  # nothing but punctuation
        ("Une fête à l'école", ["a fête at school"]),
        ("dog " * 60, ["a dog"]),
        ("The red dog runs and barks loudly.", ["a red dog runs and barks very loudly"]),
    ]
    return [candidate for candidate, _ in pairs], [references for _, references in pairs]


@pytest.fixture(scope="module")
def tools():
    """What the package's own classes make of the corpus: tokens and scores."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    candidates, references = corpus()
    meteor = Meteor()  # starts while the others run
    said = PTBTokenizer().tokenize({i: [{"caption": t}] for i, t in enumerate(candidates)})
    known = PTBTokenizer().tokenize(
        {i: [{"caption": t} for t in some] for i, some in enumerate(references)}
    )
    found = {"rouge_l": Rouge().compute_score(known, said)}
    found |= {"cider": Cider().compute_score(known, said)}
    bleu, each = Bleu(4).compute_score(known, said, verbose=0)
    found |= {name: (bleu[n], each[n]) for n, name in enumerate(coco.BLEU)}
    found["meteor"] = meteor.compute_score(known, said)
    return said, known, found


@java
def test_tokens_are_those_of_the_tool_and_every_text_stays_one_line():
    odd = [
        "*NL* one\ntwo\r\nthree\x0bfour\x85five\u2028six",
        "lone \ud800 half, null \x00, smile 😀",
        "",
        "-LRB- ``quoted'' ||| ;",
    ]
    assert coco.tokenize(odd)[0] == "one two three four five six"
    tokens = coco.tokenize([*odd, "Last."])
    assert len(tokens) == 5 and tokens[-1] == "last" and tokens[2] == ""
    assert coco.tokenize(["-LRB- ``quoted'' ;", "It's 5 o'clock, John!"]) == [
        "-lrb- quoted",  # in lower case the tool knows its brackets no more
        "it 's 5 o'clock john",
    ]


@java
@pytest.mark.slow  # METEOR takes eight seconds and more to start
def test_scores_are_those_of_the_tools(tools):
    said, known, found = tools
    candidates, references = corpus()
    tokens = coco.tokenize([*candidates, *(text for some in references for text in some)])
    assert tokens == [said[i][0] for i in said] + [text for some in known.values() for text in some]
    summed = coco.caption_sums([(candidates, references)])[0]
    scores, samples = summed.scores(), summed.score(summed.table)
    assert list(scores) == [*coco.BLEU, "meteor", "rouge_l", "cider"]
    for name, (whole, each) in found.items():
        assert scores[name] == pytest.approx(whole, rel=1e-9), name
        np.testing.assert_allclose(samples[name], each, rtol=1e-9, atol=1e-15, err_msg=name)
    assert 0.05 < scores["meteor"] < 0.9 and scores["bleu4"] > 1e-2  # the corpus tells them apart


@java
@pytest.mark.slow
def test_a_bootstrap_draw_is_scored_as_that_corpus():
    candidates, references = corpus()
    summed = coco.caption_sums([(candidates, references)])[0]
    drawn = np.random.default_rng(0).integers(0, len(candidates), len(candidates))
    redrawn = [candidates[i] for i in drawn], [references[i] for i in drawn]
    again = coco.caption_sums([redrawn])[0].scores()
    sums = {name: float(v) for name, v in summed.score(summed.table[drawn].sum(axis=0)).items()}
    assert again.pop("cider") != sums.pop("cider")  # word weights stay those of the whole set
    assert sums == pytest.approx(again, rel=1e-9)
    for name, (low, high) in bootstrap.intervals(summed, draws=200).items():
        assert low <= summed.scores()[name] <= high, name


@java
@pytest.mark.slow
def test_text_that_is_not_ascii_and_a_sign_between_texts_are_scored_in_any_locale(monkeypatch):
    texts = ["naïve fête", "one ||| two", "||| x", "\ud800"]
    monkeypatch.setenv("LC_ALL", "C")
    (summed,) = coco.caption_sums([(texts, [[text] for text in texts])])
    here = summed.score(summed.table)
    np.testing.assert_allclose(here["meteor"][:3], 1)
    np.testing.assert_allclose(here["rouge_l"], 1)


def sums_of(right, guesses, said, wanted, meteor=()):
    """One row as `caption_sums` has it, of BLEU's counts and a few of METEOR's."""
    row = np.zeros(36)
    row[:4], row[4:8], row[8:10], row[35] = right, guesses, (said, wanted), 1
    for place, value in dict(meteor).items():
        row[10 + place] = value
    return row


def test_scores_of_sums_by_hand():
    # five words of ten: half of one word's, a quarter of two words', brevity exp(1 - 2)
    row = sums_of([4, 1, 1, 1], [8, 4, 2, 1], 5, 10, {0: 2, 1: 2, 4: 2, 5: 2, 21: 2, 22: 2})
    scores = {name: float(value) for name, value in coco._scores(row).items()}
    assert scores["bleu1"] == pytest.approx(0.5 * np.exp(-1))
    assert scores["bleu2"] == pytest.approx(np.sqrt(0.125) * np.exp(-1))
    assert scores["meteor"] == pytest.approx(1)  # two content words, both found, none out of order
    row[10 + 20] = 2  # in two pieces: 1 - 0.6 * 1**0.2
    assert float(coco._scores(row)["meteor"]) == pytest.approx(0.4)


def test_what_is_missing_is_named(monkeypatch):
    with pytest.raises(UserError, match="caption 1: no references"):
        coco.caption_sums([(["a", "b"], [["a"], []])])
    with pytest.raises(ValueError, match="2 candidates for 1"):
        coco.caption_sums([(["a", "b"], [["a"]])])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="no java on the PATH"):
        coco.caption_sums([(["a"], [["a"]])])
    monkeypatch.setitem(sys.modules, "pycocoevalcap.tokenizer.ptbtokenizer", None)
    with pytest.raises(UserError, match=r"meerkat_jax\[eval\]"):
        coco.caption_sums([(["a"], [["a"]])])


@java
def test_a_tool_that_breaks_off_is_a_fault_and_not_a_score():
    with pytest.raises(RuntimeError, match="exit code 1"):
        coco._java(["NoSuchClass"], ["a"])
