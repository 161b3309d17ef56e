"""Answers side by side: each as if it were alone, none lost, none mixed up."""

from __future__ import annotations

import threading
import time
import types

import numpy as np
import pytest

from meerkat_jax.api import Request
from meerkat_jax.core.errors import UserError
from meerkat_jax.inference.engine import Busy, Engine
from meerkat_jax.inference.inputs import load
from meerkat_jax.inference.sampling import Sampler
from tests.inference.made import fast_compilation, model, png, tone, wav

PAIRS = ((png(3), wav(tone(440))), (png(4), wav(tone(1500))), (None, wav(tone(440))))
SHORT = ("What makes this sound?", "Describe the clip.", "Count the things that you see.")
LONG = "Find the object that makes the audio. Give [object, x_left, y_top, x_right, y_bottom]."
TURNS = (("Describe the clip.", "I hear a reddisc."),)
SLOTS = 3  # in all tests, so that they share compiled programs
# (pair, prompt, turns, temperature, seed, form)
QUESTIONS = [
    *((pair, prompt, (), t, pair, None) for pair in range(3) for prompt in SHORT for t in (0, 1.5)),
    *(
        (pair, LONG, (), 0, 0, grammar)
        for pair in range(3)
        for grammar in ("boxes", "segments", None)
    ),
    *((pair, LONG, (), 1.5, 7, "boxes") for pair in range(3)),
    (0, SHORT[0], TURNS, 0, 0, None),
]


@pytest.fixture(scope="module", autouse=True)
def quick():
    with fast_compilation():
        yield


@pytest.fixture(scope="module")
def expected():
    """What `Meerkat` answers to QUESTIONS, in batches of its own."""
    found = {}
    for heat in (0, 1.5):
        groups: dict = {}
        for i, (pair, _, turns, t, *_) in enumerate(QUESTIONS):
            if t == heat:
                groups.setdefault((pair, turns), []).append(i)
        asked = []
        for (pair, turns), members in groups.items():
            _, prompts, _, _, seeds, grammars = zip(*(QUESTIONS[i] for i in members), strict=True)
            asked.append(Request(*PAIRS[pair], prompts, seeds, grammars, turns))
        for members, answers in zip(groups.values(), model().stream(asked, heat), strict=True):
            found |= zip(members, answers, strict=True)
    return [found[i] for i in range(len(QUESTIONS))]


@pytest.fixture(scope="module")
def engine():
    with Engine(model(), SLOTS, pairs=2) as engine:
        yield engine


def begin(engine, number, **how):
    pair, prompt, turns, heat, seed, grammar = QUESTIONS[number]
    return engine.ask(*PAIRS[pair], prompt, turns, heat, seed, grammar, **how)


def test_the_questions_differ(expected):
    """Without which the other tests of this file would prove little."""
    texts = [answer.text for answer in expected]
    assert len(set(texts)) > len(texts) // 2
    assert len({len(text) for text in texts}) > 4


def test_each_answer_is_that_of_the_question_alone_whatever_runs_beside_it(engine, expected):
    """Four threads ask at random moments, in random order; some of them cancel what they asked."""
    failures, begun = [], threading.Barrier(4)

    def client(seed):
        rng = np.random.default_rng(seed)
        begun.wait()
        for number in rng.permutation(len(QUESTIONS))[:12]:
            reply = begin(engine, int(number))
            if rng.random() < 0.2:
                pieces = [next(iter(reply), "")]
                reply.cancel()
                same = expected[number].text.startswith(pieces[0])
            else:
                pieces, answer = list(reply), reply.answer(60)
                same = (answer.text, answer.notes) == (
                    expected[number].text,
                    expected[number].notes,
                )
                same &= "".join(pieces) == answer.text
                same &= np.allclose(answer.view.plan, expected[number].view.plan, atol=1e-5)
            if not same:
                failures.append((number, pieces))
            time.sleep(rng.exponential(0.005))

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert (engine.busy, engine.queued) == (0, 0)


def test_pairs_are_one_row_each_whatever_the_sampler_was_used_for_before(expected):
    """A sampler that had two pairs at a time pads one up to two."""
    sampler = Sampler(model().assembly, model().params, model().sampler.max_new)
    loaded = [load(sampler.assembly, Request(*PAIRS[0], SHORT[:1]))] * 2
    sampler.encode_and_align(
        np.stack([x.image for x in loaded]), np.stack([x.audio for x in loaded])
    )
    with Engine(types.SimpleNamespace(sampler=sampler), SLOTS) as engine:
        replies = [begin(engine, number) for number in (0, 6, 12)]
        assert [reply.answer(60).text for reply in replies] == [
            expected[number].text for number in (0, 6, 12)
        ]


def test_an_answer_can_be_kept_short(engine, expected):
    number = max(
        range(len(QUESTIONS)), key=lambda i: (QUESTIONS[i][5] is None, len(expected[i].text))
    )
    reply = begin(engine, number, max_new=3)
    answer = reply.answer(60)
    assert (reply.finish, reply.new_tokens) == ("length", 3)
    assert answer.text and expected[number].text.startswith(answer.text)
    assert "cut off after 3 tokens" in answer.notes[-1]
    question = model().assembly.prompt.question_ids(QUESTIONS[number][1])
    assert reply.prompt_tokens == model().assembly.model.prefix_length + len(question)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"prompt": " "}, "the prompt is ' '"),
        ({"image": b"no image"}, "not an image"),
        ({"image": None, "audio": None}, "neither an image nor an audio clip"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"grammar": "circles"}, "form 'circles' is unknown; expected one of boxes, segments"),
        ({"grammar": "boxes", "max_new": 2}, "form 'boxes' needs answers of"),
        ({"max_new": 0}, "max_new is 0; expected 1 to"),
        ({"max_new": 10**6}, "max_new is 1000000; expected 1 to"),
        ({"turns": [("Is it?", "yes")] * 400}, "the conversation has .* tokens .* begin a new one"),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(engine, how, message):
    asked = {"image": PAIRS[0][0], "audio": PAIRS[0][1], "prompt": SHORT[0]} | how
    with pytest.raises(UserError, match=message):
        engine.ask(**asked)


def test_a_full_queue_is_told_and_a_cancelled_question_leaves_it(monkeypatch, expected):
    with Engine(model(), SLOTS, waiting=2) as engine:
        go, step = threading.Event(), engine._slots.step
        monkeypatch.setattr(engine._slots, "step", lambda: go.wait() and step())
        asked = [0, 1, 2, 4, 5]
        replies = [begin(engine, number) for number in asked]
        with pytest.raises(Busy, match="2 questions wait already"):
            begin(engine, 3)
        replies[3].cancel()
        replies.append(begin(engine, 6))
        go.set()
        for reply, number in zip(replies, [*asked, 6], strict=True):
            text = reply.answer(60).text
            assert text == ("" if number == 4 else expected[number].text)
        assert replies[3].finish == "cancelled"


def test_a_failure_reaches_everyone_who_waits_and_the_next_question_is_answered(
    monkeypatch, expected
):
    with Engine(model(), SLOTS) as engine:
        go = threading.Event()

        def fail():
            go.wait()
            raise RuntimeError("out of memory")

        with monkeypatch.context() as broken:
            broken.setattr(engine._slots, "step", fail)
            replies = [begin(engine, number) for number in range(SLOTS + 2)]
            go.set()
            for reply in replies:
                with pytest.raises(RuntimeError, match="out of memory"):
                    reply.answer(60)
                with pytest.raises(RuntimeError, match="out of memory"):
                    list(reply)
        assert begin(engine, 3).answer(60).text == expected[3].text


def test_a_closed_engine_cancels_what_is_left_and_takes_no_more():
    engine = Engine(model(), SLOTS)
    replies = [begin(engine, 0) for _ in range(4 * SLOTS)]
    engine.close()
    assert {reply.finish for reply in replies} <= {"stop", "length", "cancelled"}
    assert replies[-1].finish == "cancelled" and list(replies[-1]) == []
    with pytest.raises(RuntimeError, match="closed"):
        begin(engine, 0)


def test_a_pair_is_looked_at_once_and_the_last_ones_are_kept(monkeypatch, expected):
    with Engine(model(), SLOTS, pairs=2) as engine:
        looked, encode_and_align = [], model().sampler.encode_and_align

        def counted(image, audio):
            looked.append(image)
            return encode_and_align(image, audio)

        monkeypatch.setattr(model().sampler, "encode_and_align", counted)
        for number, looks in ((0, 1), (1, 1), (6, 2), (0, 2), (12, 3), (0, 3), (6, 4)):
            assert begin(engine, number).answer(60).text == expected[number].text
            assert len(looked) == looks


def test_a_reply_waits_no_longer_than_it_is_told(engine, monkeypatch):
    monkeypatch.setattr(engine._slots, "step", lambda: time.sleep(0.3) or np.zeros(3, np.int32))
    reply = begin(engine, 0, max_new=2)
    with pytest.raises(TimeoutError, match="no answer within 0.01 s"):
        reply.answer(0.01)
    reply.answer(60)


def test_a_conversation_is_its_turns_in_the_prompt(expected):
    talk = model().converse(*PAIRS[0])
    talk.turns += TURNS
    assert talk.ask(SHORT[0]).text == expected[-1].text
    assert talk.turns == [*TURNS, (SHORT[0], expected[-1].text)]
    with pytest.raises(UserError, match="the prompt is ''"):
        talk.ask("")
    assert len(talk.turns) == 2
    talk.turns *= 200
    with pytest.raises(UserError, match="the conversation has .* tokens"):
        talk.ask(SHORT[0])


@pytest.mark.parametrize("name", ["slots", "waiting", "pairs"])
def test_an_engine_without_any_is_refused(name):
    with pytest.raises(UserError, match=f"{name} is 0; expected at least 1"):
        Engine(model(), **{name: 0})
