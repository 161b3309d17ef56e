"""MeerkatBench on hand-made answers: grouping, unreadable answers, subsets, baselines."""

import json

import pytest

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box, Question, Segment
from meerkat_jax.evaluation import coco
from meerkat_jax.evaluation.benchmark import (
    Answered,
    class_names,
    has_two_sounds_at_once,
    judge,
    lacking,
    main_metric,
    score,
)
from meerkat_jax.report.tables import overview, text_table

DOG_BOX, OWL_BOX = Box("dog", 0.0, 0.0, 0.4, 0.4), Box("owl", 0.6, 0.6, 1.0, 1.0)


def truth(
    answer=None,
    kind="",
    objects=(DOG_BOX, OWL_BOX),
    sound_events=(("dog", 1.0, 3.0),),
    interval=None,
):
    return {
        "kind": kind,
        "answer": answer,
        "image_labels": [box.label for box in objects],
        "audio_labels": [event[0] for event in sound_events],
        "objects": [[b.label, b.x0, b.y0, b.x1, b.y1] for b in objects],
        "sounds": [list(event) for event in sound_events],
    } | ({"interval": interval} if interval else {})


def answered(task, text, response="", boxes=(), segments=(), split="new", **known):
    question = Question(task, "?", response, tuple(boxes), tuple(segments), truth(**known))
    return Answered("id", split, question, text)


def arig(text, **known):
    return answered("arig", text, boxes=[DOG_BOX], **known)


def igatl(text, start, end):
    return answered("igatl", text, segments=[Segment("dog", start, end)])


def test_groups_by_split_task_and_kind():
    records = [
        answered("avqa", "yes", answer=True, kind="exists"),
        answered("avqa", "two", answer="two", kind="count"),
        answered("avqa", "no", answer=True, kind="exists", split="other"),
        answered("avfact1", "True", answer=True),
    ]
    scores = score(records)
    assert list(scores) == [
        "new/avfact1",
        "new/avqa",
        "new/avqa/count",
        "new/avqa/exists",
        "other/avqa",
        "other/avqa/exists",
    ]
    assert (scores["new/avqa"]["accuracy"], scores["new/avqa"]["n"]) == (1.0, 2)
    assert scores["other/avqa/exists"]["accuracy"] == 0.0


def test_an_unreadable_answer_is_wrong_and_counted_apart():
    scores = score(
        [
            arig("[dog, 0.000, 0.000, 0.400, 0.400]"),
            arig("over there"),
            igatl("[dog, 1.0, 3.0]", 1.0, 3.0),
            igatl("later", 1.0, 3.0),
            answered("avfact2", "True", answer=True),
            answered("avfact2", "perhaps", answer=True),
            answered("avqa", "the owl", answer="owl", kind="which"),
            answered("avqa", "a unicorn", answer="owl", kind="which"),
            answered("avc", "I see a dog and an owl. I hear a dog."),
            answered("avc", "Hm."),
        ]
    )
    assert scores["new/arig"]["ciou"] == scores["new/arig"]["labels_right"] == 0.5
    assert scores["new/igatl"]["segment_recall"] == 0.5
    assert scores["new/igatl"]["segment_precision"] == 1.0
    for key in ("new/avfact2", "new/avqa/which"):
        assert scores[key]["accuracy"] == 0.5
    assert scores["new/avc"]["names_right"] == 0.5
    assert all((entry["unparsed"], entry["n"]) == (1, 2) for entry in scores.values())


def test_mended_answers_count_and_are_counted():
    entry = score([arig("dog: 0.4 0.4 0.0 0.0")])["new/arig"]
    assert (entry["ciou"], entry["mended"], entry["unparsed"]) == (1.0, 1, 0)


def test_any_of_several_right_answers_is_right():
    records = [
        answered("avqa", f"The {name} comes first.", answer=["dog", "owl"], kind="first")
        for name in ("dog", "owl", "bee")
    ]
    entry = score(records)["new/avqa/first"]
    assert entry["accuracy"] == pytest.approx(2 / 3)
    assert entry["unparsed"] == 1  # no truth mentions a bee


def test_scenes_with_several_objects_and_two_sounds_are_scored_apart():
    right, wrong = "[dog, 0.0, 0.0, 0.4, 0.4]", "[dog, 0.6, 0.6, 1.0, 1.0]"
    both = (("dog", 1.0, 3.0), ("owl", 2.0, 4.0))
    entry = score(
        [
            arig(right, objects=[DOG_BOX]),
            arig(right, objects=[DOG_BOX]),
            arig(wrong),
            arig(right, sound_events=both),
        ]
    )["new/arig"]
    assert (entry["ciou"], entry["n"]) == (0.75, 4)
    assert (entry["several_objects"]["ciou"], entry["several_objects"]["n"]) == (0.5, 2)
    assert (entry["two_sounds"]["ciou"], entry["two_sounds"]["n"]) == (1.0, 1)
    assert "several_objects" not in score([arig(right, objects=[DOG_BOX])])["new/arig"]


@pytest.mark.parametrize(
    ("sound_events", "expected"),
    [
        ((("dog", 1.0, 3.0), ("owl", 3.0, 4.0)), False),
        ((("owl", 2.9, 4.0), ("dog", 1.0, 3.0)), True),
        ((("dog", 0.0, 9.0), ("owl", 1.0, 2.0), ("bee", 3.0, 4.0)), True),
        ((), False),
    ],
)
def test_two_sounds_at_once(sound_events, expected):
    assert has_two_sounds_at_once(arig("", sound_events=sound_events)) is expected


def test_box_baselines():
    baselines = score([arig(""), arig("", objects=[DOG_BOX])])["new/arig"]["baselines"]
    assert baselines["constant_box"]["mean_iou"] == 1.0  # all truths are the same box
    # one scene with a choice of two, one without a choice
    assert baselines["no_hearing_one"]["ciou"] == 0.75
    assert baselines["no_hearing_one"]["mean_iou"] == 0.75
    assert baselines["no_hearing_all"]["mean_iou"] == 0.75


def test_the_better_constant_box_is_taken():
    corner = Box("dog", 0.0, 0.0, 0.1, 0.1)
    middle = Box("dog", 0.25, 0.25, 0.75, 0.75)
    records = [answered("arig", "", boxes=[box]) for box in (corner, corner, middle)]
    assert score(records)["new/arig"]["baselines"]["constant_box"]["ciou"] == pytest.approx(1 / 3)


def test_interval_baselines():
    baselines = score([igatl("", 2.0, 4.0), igatl("", 3.0, 5.0)])["new/igatl"]["baselines"]
    # 4 active seconds: 2 to 5 hits all with two false alarms; the clip hits all with sixteen
    assert baselines["best_interval"]["segment_f1"] == pytest.approx(8 / 10)
    assert baselines["whole_clip"]["segment_f1"] == pytest.approx(8 / 24)


def test_majority_and_caption_baselines():
    records = [answered("avfact1", "", answer=value) for value in (True, False, False)]
    records += [answered("avqa", "", answer=a, kind="where") for a in ("left", "left", "right")]
    records += [answered("avqa", "", answer=True, kind="exists")]
    caption = "I see a dog and an owl. I hear a dog."
    records += [answered("avc", "", response=caption) for _ in range(2)]
    records += [answered("avc", "", response="I see a dog.", objects=[DOG_BOX], sound_events=())]
    scores = score(records)
    assert scores["new/avfact1"]["baselines"]["majority"]["accuracy"] == pytest.approx(2 / 3)
    assert scores["new/avqa/where"]["baselines"]["majority"]["accuracy"] == pytest.approx(2 / 3)
    assert scores["new/avqa"]["baselines"]["majority"]["accuracy"] == pytest.approx(3 / 4)
    share = scores["new/avc"]["baselines"]["frequent_caption"]["names_right"]
    assert share == pytest.approx(2 / 3)


def test_scores_are_plain_json():
    records = [arig("[dog, 0.0, 0.0, 0.4, 0.4]"), igatl("[dog, 1, 3]", 1.0, 3.0)]
    scores = score(records)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_an_unknown_task_is_named():
    with pytest.raises(UserError, match="id.*'arag'"):
        score([answered("arag", "")])


@pytest.mark.parametrize(
    ("record", "right", "parsed"),
    [
        (arig("[dog, 0.0, 0.0, 0.4, 0.3]"), True, True),
        (arig("[dog, 0.6, 0.6, 1.0, 1.0]"), False, True),
        (arig("nowhere"), False, False),
        (igatl("[dog, 1.4, 3.0]", 1.0, 3.0), True, True),
        (igatl("[dog, 5.0, 6.0]", 1.0, 3.0), False, True),
        (answered("avfact3", "False", answer=False), True, True),
        (answered("avqa", "one", answer="2", kind="count"), False, True),
        (answered("avc", "I see a dog, an owl. I hear a dog."), True, True),
        (answered("avc", "I see a dog."), False, True),
    ],
)
def test_judging_one_answer(record, right, parsed):
    verdict = judge(record, class_names([record]))
    assert (verdict.right, verdict.parsed) == (right, parsed)


def test_whether_anything_sounds_is_a_baseline_of_facts_about_an_interval():
    records = [
        answered("avfact3", "", answer=value, interval=[2.0, 4.0], sound_events=sound_events)
        for value, sound_events in (
            (True, (("dog", 1.0, 3.0),)),
            (False, (("owl", 3.0, 5.0),)),  # something else sounds: not enough
            (False, (("dog", 5.0, 6.0),)),
            (False, ()),
        )
    ]
    baselines = score(records)["new/avfact3"]["baselines"]
    assert baselines["anything_sounds"]["accuracy"] == 0.75
    assert "anything_sounds" not in score([answered("avfact1", "", answer=True)])["new/avfact1"]


def test_intervals_hold_the_score_and_narrow_with_more_samples():
    def of(times):
        right, wrong = (answered("avfact1", text, answer=True) for text in ("True", "False"))
        return score([right, right, wrong] * times)["new/avfact1"]

    few, many = of(5), of(80)
    for entry in (few, many):
        for metric in ("accuracy", "precision", "recall", "f1"):
            low, high = entry["intervals"][metric]
            assert 0 <= low <= entry[metric] <= high <= 1
    width = [high - low for low, high in (e["intervals"]["accuracy"] for e in (few, many))]
    assert width[1] == pytest.approx(width[0] / 4, rel=0.2)


def real(task, source, text, response="", boxes=(), segments=(), **truth):
    question = Question(task, "?", response, tuple(boxes), tuple(segments), truth)
    return Answered("id", source, question, text, source)


def test_boxes_are_scored_by_what_annotators_agree_on():
    box, own = ["x", 0.0, 0.0, 0.5, 1.0], [["x", 0.0, 0.0, 0.5, 1.0], ["x", 0.5, 0.0, 1.0, 1.0]]
    record = real(
        "arig", "flickr_soundnet", "[x, 0.0, 0.0, 0.5, 1.0]", boxes=[Box(*b) for b in own],
        annotators=[[box], own],
    )  # fmt: skip
    entry = score([record])["flickr_soundnet/arig"]
    # left half: both, 1 a cell; right half: one, a half a cell
    assert entry["mean_ciou"] == pytest.approx(1 / 1.5)
    assert entry["baselines"]["constant_box"]["mean_ciou"] < 1


@pytest.mark.parametrize(
    ("source", "main", "others"),
    [
        ("openimages_strong", "segment_f1", {"sed_segment_f1": 0.5, "sed_event_f1_macro": 0.5}),
        ("llp", "segment_audio_visual", {"event_audio_visual": 0.5}),
        ("mini", "segment_f1", {"event_f1": 0.5}),
    ],
)
def test_stretches_have_the_measures_of_their_source(source, main, others):
    dog, owl = Segment("dog", 1.0, 4.0), Segment("owl", 2.0, 5.0)
    records = [
        real("igatl", source, "[dog, 1.0, 4.0]", segments=[dog]),
        real("igatl", source, "[bee, 2.0, 5.0]", segments=[owl]),
    ]
    entry = score(records)[f"{source}/igatl"]
    assert main_metric(entry) == main and entry[main] == pytest.approx(0.5)
    assert {name: entry[name] for name in others} == pytest.approx(others)
    for scores in entry["baselines"].values():
        assert set(others) <= set(scores)


CHOICES = ["dog", "hot dog", "cat"]


def test_an_answer_is_read_among_the_choices_of_its_question():
    records = [
        real("avqa", "avqa", text, answer="hot dog", choices=CHOICES, kind="which")
        for text in ("hot dog", "A hot dog.", "dog", "sausage")
    ]
    entry = score(records)["avqa/avqa"]
    assert (entry["accuracy"], entry["unparsed"]) == (0.5, 1)


def test_captions_of_people_are_scored_by_the_tools_and_have_no_right_one():
    records = [
        real("avc", "valor", "a dog barks at a man", "x", references=["a dog barks at a man"]),
        real("avc", "valor", " ", "x", references=["a man sings", "someone sings"]),
    ]
    if coco.missing():
        with pytest.raises(UserError, match="valor is scored by captions alone"):
            lacking({"valor"})
        pytest.skip(coco.missing())
    entry = score(records, captions=True)["valor/avc"]
    assert (entry["unparsed"], entry["n"]) == (1, 2) and main_metric(entry) == "bleu4"
    assert 0 < entry["bleu4"] < 1 and entry["rouge_l"] == pytest.approx(0.5)
    low, high = entry["intervals"]["meteor"]
    assert low < entry["meteor"] < high
    assert entry["baselines"]["frequent_caption"]["bleu4"] < 0.01
    assert judge(records[0], ()).right is None
    assert lacking({"valor"}) is None


def test_captions_that_nothing_here_measures_are_said_to_be_unscored():
    """Of people, without their tools: no number may stand where the score would."""
    record = real("avc", "jsonl", "a dog", "x", references=["a dog barks"])
    found = score([record, answered("avc", "I see a dog and an owl. I hear a dog.")])
    assert main_metric(found["jsonl/avc"]) is None and main_metric(found["new/avc"])
    assert "not scored here (1 questions)" in text_table({"jsonl/avc": found["jsonl/avc"]})
    assert "–" in overview({"jsonl/avc": found["jsonl/avc"]})


def test_the_overview_names_a_score_that_is_not_its_row_s_own():
    dog = Segment("dog", 1.0, 4.0)
    some = [real("igatl", source, "", segments=[dog]) for source in ("mini", "llp")]
    page = overview(score(some))
    assert "LLP: seconds, F1" in page and page.count("seconds found and named right") == 1
