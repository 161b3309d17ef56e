"""Which names stand for which, by place, by time and by word."""

from meerkat_jax.data.example import Box, Question, Segment
from meerkat_jax.evaluation.benchmark import Answered
from meerkat_jax.evaluation.confusion import confused, summary


def answer(task, text, boxes=(), segments=(), **truth):
    return Answered("1", "test", Question(task, "?", "", boxes, segments, truth), text)


def test_boxes_are_compared_with_what_they_lie_on():
    boxes = (Box("dog", 0.0, 0.0, 0.4, 0.4), Box("sea_lion", 0.5, 0.5, 1.0, 1.0))
    text = "[Bee, 0.500, 0.500, 0.900, 0.900] [dog, 0.000, 0.000, 0.600, 0.600]"
    # the answered dog overlaps with both true ones; matched one to one, it is the dog
    found = confused([answer("arig", text, boxes)], ())
    assert found == {"arig": [("dog", "dog"), ("sea lion", "bee")]}
    far = confused([answer("arig", "[dog, 0.800, 0.800, 0.900, 0.900]", boxes[:1])], ())
    assert far == {"arig": [("dog", "nothing")]}
    assert confused([answer("arig", "", boxes)], ())["arig"] == [
        ("dog", "nothing"),
        ("sea lion", "nothing"),
    ]


def test_segments_are_compared_with_when_they_are():
    segments = (Segment("dog", 1.0, 3.0), Segment("bee", 5.0, 6.0))
    text = "[owl, 2.0, 3.5] [bee, 5.5, 7.0] [cat, 8.0, 9.0]"
    found = confused([answer("igatl", text, segments=segments)], ())
    assert found == {"igatl": [("dog", "owl"), ("bee", "bee")]}


def test_the_last_name_answers_which():
    names = {"dog", "cat", "sea lion"}
    texts = ("The cat? The Sea Lion makes the sound.", "I hear it.", "The dog.")
    records = [answer("avqa", t, kind="which", answer="sea_lion") for t in texts]
    records.append(answer("avqa", "The dog.", kind="first", answer="dog"))
    said = [said for _, said in confused(records, names)["avqa/which"]]
    assert said == ["sea lion", "nothing", "dog"]


def test_the_summary_lists_the_worst_pairs_first():
    pairs = (
        [("dog", "dog")] * 5 + [("dog", "cat")] * 3 + [("owl", "cat")] + [("owl", "nothing")] * 2
    )
    found = summary(pairs)
    assert (found["n"], found["right"], found["nothing"]) == (11, 5 / 11, 2 / 11)
    assert found["most_frequent"] == 8 / 11
    assert found["worst"] == [
        ["dog", "cat", 3, 3 / 8],
        ["owl", "nothing", 2, 2 / 3],
        ["owl", "cat", 1, 1 / 3],
    ]
    assert found["counts"] == {"dog": {"dog": 5, "cat": 3}, "owl": {"nothing": 2, "cat": 1}}
