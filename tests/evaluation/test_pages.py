"""The worst answers first, on small pages that stand alone and are linked with the report."""

import dataclasses
import re

from meerkat_jax.data.example import Box, Question
from meerkat_jax.evaluation.benchmark import Answered, score
from meerkat_jax.report.pages import choose_worst, write_pages
from meerkat_jax.report.report import write_report
from tests.evaluation.made import shown


def answer(number, task, text, true=None, split="test"):
    boxes = (Box("dog", 0.0, 0.0, 0.5, 0.5),) if task == "arig" else ()
    truth = {"kind": task, "answer": true, "image_labels": ["dog"], "audio_labels": ["dog", "cat"]}
    return Answered(f"{number}", split, Question(task, "?", "", boxes, truth=truth), text)


def test_boxes_that_lie_furthest_off_come_first():
    texts = ("[dog, 0.0, 0.0, 0.5, 0.45]", "[dog, 0.0, 0.0, 0.2, 0.2]", "nowhere")
    texts += ("[dog, 0.0, 0.0, 0.4, 0.4]", "[dog, 0.0, 0.0, 0.5, 0.5]")
    records = [answer(i, "arig", text) for i, text in enumerate(texts)]
    assert choose_worst(records, {"dog"}, 9) == [2, 1, 3, 0, 4]
    assert choose_worst(records, {"dog"}, 2) == [2, 1]


def test_what_is_most_certain_and_wrong_comes_first():
    # (said, truth, probability of True)
    known = [(True, True, 0.9), (True, False, 0.6), (False, True, 0.02), (False, False, 0.4)]
    known += [(True, False, 0.97), (None, True, None)]
    records = [
        answer(i, "avfact1", "I see." if said is None else f"I see: {said}.", true)
        for i, (said, true, _) in enumerate(known)
    ]
    chances = [chance for *_, chance in known]
    # without a probability, an answer that gives no verdict is simply wrong
    order = choose_worst(records, {"dog"}, 9, chances)
    assert order == [5, 2, 4, 1, 3, 0]
    assert choose_worst(records, {"dog"}, 9)[-2:] == [0, 3]


def test_captions_that_name_less_come_first_and_tasks_and_splits_stay_apart():
    texts = ("I see a dog. I hear a dog.", "I see a cat. I hear a dog.", "I see. I hear.")
    records = [answer(i, "avc", text) for i, text in enumerate(texts)]
    records += [answer(7, "arig", "", split="b"), answer(8, "arig", ""), answer(9, "arig", "")]
    assert choose_worst(records, {"dog", "cat"}, 9) == [4, 5, 1, 2, 0, 3]
    assert choose_worst([], set()) == []


def test_pages_hold_few_examples_and_lead_from_one_to_the_next(tmp_path):
    some = [shown(text="[dog, 0.6, 0.6, 0.9, 0.9]"), shown(), shown(), shown("avc", "<b>")]
    claim = shown("avfact3", "False")
    some.append(dataclasses.replace(claim, chance=0.0125))
    totals = {"compositions/arig": 12}
    pages = write_pages(tmp_path, some, totals, {"dog"}, per_page=2)
    assert [(page.task, page.shown, page.total) for page in pages] == [
        ("arig", 2, 12),
        ("avc", 1, 1),
        ("avfact3", 1, 1),
    ]
    texts = [(tmp_path / page.path).read_text() for page in pages]
    assert [text.count("<article") for text in texts] == [2, 1, 1]
    assert "The worst 2 of 12 answers" in texts[0]
    assert "probability of True against False 0.013" in texts[2]
    assert "<b>" not in re.sub(r"<b>[^<]+</b>", "", texts[1]) and "&lt;b&gt;" in texts[1]
    for page, text in zip(pages, texts, strict=True):
        addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)""", text)
        others = {a for a in addresses if not a.startswith("data:")}
        assert "../report.html#examples" in others
        for address in others - {"../report.html#examples"}:
            assert (tmp_path / page.path).with_name(address).is_file()
        assert "default-src 'none'" in text and not re.search(r"https?://|<script|<link", text)
    report = write_report(tmp_path / "report.html", score([s.answered for s in some]), [], [], {},
                          names={"dog"}, pages=pages)  # fmt: skip
    linked = re.findall(r'href="(examples/[^"]+)"', report.read_text())
    assert linked == [page.path for page in pages]
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"report.html", *linked}
