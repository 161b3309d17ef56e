"""Answers held to a form: always well formed, never cut off; what may be said is not refused."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from meerkat_jax.api import Request
from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box, Segment
from meerkat_jax.data.prompt import make_prompt
from meerkat_jax.data.text import parse_boxes, parse_segments, write_box, write_segment
from meerkat_jax.data.tokenizer import SPECIALS, Tokenizer
from meerkat_jax.generate import answer_manifest
from meerkat_jax.inference.automaton import ListFormat
from meerkat_jax.inference.grammar import (
    GRAMMARS,
    advance,
    allowed,
    compile_grammars,
)
from meerkat_jax.inference.sampling import choose, decode_loop, strip_eos, suppress_mask
from meerkat_jax.mini import compose
from meerkat_jax.mini.questions import ask
from meerkat_jax.mini.templates import PHRASES
from meerkat_jax.mini.tokenizer import build_mini_tokenizer
from meerkat_jax.weights.pretrained import pretrained_tokenizer
from tests.inference.made import fast_compilation, make_image, model, tone
from tests.weights.vocabularies import (
    CHATML,
    LLAMA3,
    sentencepiece_model,
    write_bytes,
    write_sentencepiece,
)

SECONDS = 10.0
ASCII = "".join(map(chr, range(33, 127)))
KINDS = ("mini", "llama2", "smollm2", "llama3")
SCENES = 40
PROMPT = "Find the object that makes the audio. Give [object, x_left, y_top, x_right, y_bottom]."


@pytest.fixture(scope="module", autouse=True)
def quick():
    with fast_compilation():
        yield


@pytest.fixture(scope="module")
def asked():
    """The questions of scenes that are planned, not rendered; one in two has boxes off the grid."""
    names, found = ("dog", "acoustic guitar", "bee", "hi-hat", "reddisc", "drum"), []
    for index in range(SCENES):
        rng = compose.scene_generator(3, "train", index)
        plan = compose.plan_scene(rng, names, dict.fromkeys(names, 1.0), "train")
        grid = (1000, 200)[index % 2]
        corners = [np.array((b.x0, b.y0, b.x1, b.y1)) for b in plan.objects]
        corners = [(np.round(c * grid) / grid).tolist() for c in corners]
        boxes = tuple(Box(b.label, *c) for b, c in zip(plan.objects, corners, strict=True))
        found += ask(rng, plan, boxes, names, "train")
    return names, found


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory, asked):
    """kind -> the mini tokenizer, or a small one that is spelled as a published one is."""

    @functools.cache
    def of(kind: str) -> Tokenizer:
        folder = tmp_path_factory.mktemp(kind)
        if kind == "mini":
            texts = [text for q in asked[1] for text in (q.instruction, q.response)]
            return build_mini_tokenizer(texts, asked[0], PHRASES)
        if kind == "llama2":
            return pretrained_tokenizer(
                write_sentencepiece(folder, sentencepiece_model(required_chars=ASCII))
            )
        template = CHATML if kind == "smollm2" else LLAMA3
        return pretrained_tokenizer(write_bytes(folder, template))

    return of


@pytest.fixture(scope="module")
def compiled_for(tokenizer_of):
    return functools.cache(lambda kind: compile_grammars(tokenizer_of(kind), SECONDS))


def well_formed(text: str, grammar: str | None, seconds: float = SECONDS) -> bool:
    """Whether a text holds items of one form only, in order and in range, none of them mended."""
    boxes, times = parse_boxes(text), parse_segments(text, seconds)
    assert (len(boxes.items) > 0, len(times.items) > 0) == (
        grammar == "boxes",
        grammar == "segments",
    )
    assert boxes.mended == times.mended == 0
    for box in boxes.items:
        assert 0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1
    for time in times.items:
        assert 0 <= time.start < time.end <= seconds
    labels = [item.label for item in (*boxes.items, *times.items)]
    assert text.count("[") == text.count("]") == len(labels) and all(labels)
    return True


# Random answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "more"), [("mini", 0), ("mini", 50), ("llama2", 0), ("smollm2", 50)]
)
def test_whatever_the_logits_are_answers_are_well_formed_and_whole(
    kind, more, tokenizer_of, compiled_for
):
    """The real loop; instead of a model random logits, half of the rows drawn to two items.

    There is room for just one item, or for `more` tokens.
    """
    tokenizer, compiled, rows = tokenizer_of(kind), compiled_for(kind), 32
    need = max(int(compiled.tables.need[start]) for start in compiled.starts.values())
    wanted, found = (
        [GRAMMARS[row % 2] for row in range(rows)],
        {grammar: [] for grammar in GRAMMARS},
    )
    texts, ended = random_answers(tokenizer, compiled, wanted, need + more)
    assert ended.all()
    for grammar, ids in zip(wanted, texts, strict=True):
        text = tokenizer.decode(strip_eos(ids, tokenizer.eos_id)).strip()
        assert well_formed(text, grammar), text
        found[grammar].append(text)
    for grammar in GRAMMARS:  # neither always alike nor only what is forced
        assert len(set(found[grammar])) > rows // 4
        if more:
            assert any(text.count("[") > 1 for text in found[grammar])
            assert any(not text.startswith("[") for text in found[grammar])


def random_answers(tokenizer, compiled, wanted, room):
    """`go_on` with logits drawn anew for each row and turn; half of the rows mostly follow a text.

    What they would then say is out of order, and off the grid of the mini tokenizer's numbers.
    """
    rows, table = len(wanted), suppress_mask(tokenizer)
    said = {"boxes": "[a, 0.501, 0.250, 0.502, 0.100] [b, ", "segments": "[a, 9.9, 2.0] [b, 0.1, "}
    plan = np.full((room, rows), tokenizer.eos_id)
    for row, grammar in enumerate(wanted[: rows // 2]):
        ids = tokenizer.encode(said[grammar])[:room]
        plan[: len(ids), row] = ids

    rng = np.random.default_rng(0)
    logits = rng.standard_normal((room, rows, tokenizer.padded_vocab_size), np.float32)
    logits[np.arange(room)[:, None], np.arange(rows), plan] += 6

    @jax.jit
    def answers(tables, grammar_state, logits):
        def extend(tokens, positions, valid, cache, slot, last):
            return logits[slot], cache  # the slot is the turn

        state = {
            "tokens": jnp.zeros((rows, 1), jnp.int32),
            "lengths": jnp.ones(rows, jnp.int32),
            "idle": jnp.zeros(rows, bool),
        }
        pick = functools.partial(choose, False, table, 1.0, None)
        return decode_loop(
            extend, pick, {}, 0, state, room, tokenizer.eos_id, tables, grammar_state
        )

    return jax.device_get(answers(compiled.tables, compiled.begin(wanted, room), logits))


# What may be said --------------------------------------------------------------------------------


def refused(tokenizer, compiled, answers) -> list[str]:
    """Of answers (form, text) those that do not pass, up to the refused token."""
    prompt = make_prompt(tokenizer)
    grammars, answers = (
        [grammar for grammar, _ in answers],
        [prompt.answer_ids(t) for _, t in answers],
    )
    length, room = max(map(len, answers)), 400
    tokens = np.full((length, len(answers)), tokenizer.eos_id, np.int32)
    for row, ids in enumerate(answers):
        tokens[: len(ids), row] = ids

    @jax.jit
    def passes(tables, grammar_state, tokens):
        def turn(grammar_state, step):
            left, token = step
            may = allowed(tables, grammar_state, left)[jnp.arange(len(token)), token]
            return advance(tables, grammar_state, token), may

        return jax.lax.scan(turn, grammar_state, (room - jnp.arange(length), tokens))[1]

    may = np.array(passes(compiled.tables, compiled.begin(grammars, room), tokens))
    stops = [may[: len(ids), row].argmin() for row, ids in enumerate(answers)]
    return [
        tokenizer.decode(ids[: stop + 1])
        for row, (ids, stop) in enumerate(zip(answers, stops, strict=True))
        if not may[: len(ids), row].all()
    ]


@pytest.fixture(scope="module")
def recorded(asked):
    """The recorded answers of mini scenes by form."""
    found = {grammar: [] for grammar in GRAMMARS}
    for question in asked[1]:
        if question.task in ("arig", "igatl"):
            found["boxes" if question.task == "arig" else "segments"].append(question.response)
    assert all(len(texts) > 9 and any(t.count("[") > 1 for t in texts) for texts in found.values())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_answers_and_any_that_can_be_written_pass(
    kind, tokenizer_of, compiled_for, recorded
):
    tokenizer, compiled, rng = tokenizer_of(kind), compiled_for(kind), np.random.default_rng(0)
    labels = ("dog", "Boeing 747", "Male speech, man speaking", "T-34", "mp3 player", "caf\u00e9")
    labels += ("dog (small)", "child's toy", "St. Bernard", "18-wheeler", "R&B", "\u72ac")
    texts = {grammar: list(found) for grammar, found in recorded.items()}
    for label in labels:
        x0, y0 = rng.integers(0, 1000, 2)
        x1, y1 = rng.integers(x0 + 1, 1001), rng.integers(y0 + 1, 1001)
        texts["boxes"].append(write_box(Box(label, x0 / 1000, y0 / 1000, x1 / 1000, y1 / 1000)))
        start = rng.integers(0, 100)
        end = rng.integers(start + 1, 101)
        texts["segments"].append(f"At: {write_segment(Segment(label, start / 10, end / 10))}")
    texts["boxes"] += [write_box(Box("a", 0, 0, 1, 1)), write_box(Box("a", 0.999, 0.5, 1, 0.501))]
    texts["segments"] += [write_segment(Segment("a", 0, 10)), write_segment(Segment("a", 9.9, 10))]
    answers = [(grammar, text) for grammar, written in texts.items() for text in written]
    assert refused(tokenizer, compiled, answers) == []


NO_PLACES = (
    "[dog, 0.500, 0.500, 0.500, 0.900]", "[dog, 0.100, 0.500, 0.900, 0.400]", "[[dog", "a]", "",
    "[dog, 0.100, 0.200, 1.300, 1.400]", "[dog, 0.100, 0.200, 0.300, 1.001]", "I see 3 dogs.",
    "[, 0.100, 0.200, 0.300, 0.400]", "[dog, 0.100, 0.200, 0.300, 0.400", "no box",
    "[dog, 1.000, 0.200, 1.000, 0.400]", "[dog,0.100, 0.200, 0.300, 0.400]", "[dog, 9.9, 10.0]",
    "[dog, 0.600, 0.200, 0.599, 0.400]", "[dog, 0.100, 0.200, 0.3000, 0.400]", "[dog, 0.5, 0.6",
    "[dog, 0.100, 0.200, 0.300, 0.400] 0.5", "[dog, 0.100, 0.200, 0.300]",
)  # fmt: skip
TIMES = ("[dog, 9.5, 10.0]", "[dog, 9.5, 9.6]", "[dog, 9.9, 10.0] [cat, 0.0, 0.1]")
NO_TIMES = (
    "[dog, 9.5, 10.1]", "[dog, 9.5, 9.5]", "[dog, 9.5, 9.4]", "[dog, 10.0, 10.0]", "[dog, 2, 3]",
    "[dog, 02.0, 3.0]", "[dog, 2.00, 3.00]", "[dog, 11.0, 12.0]", "[dog, 9.5, 100.0]",
    "[dog, 0.100, 0.200, 0.300, 0.400]",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["mini", "smollm2"])
def test_what_is_no_place_or_no_time_is_refused(kind, tokenizer_of, compiled_for):
    wrong = [("boxes", text) for text in NO_PLACES] + [("segments", text) for text in NO_TIMES]
    right = [("segments", text) for text in TIMES]
    found = refused(tokenizer_of(kind), compiled_for(kind), right + wrong)
    assert len(found) == len(wrong) and not set(found) & set(TIMES)


@pytest.mark.parametrize(("seconds", "start"), [(10.0, 0), (12.55, 98), (123.4, 99)])
def test_every_later_end_and_no_other_can_be_written_digit_by_digit(seconds, start, tokenizer_of):
    tokenizer = tokenizer_of("smollm2")
    compiled, rows, top = compile_grammars(tokenizer, seconds), 1300, int(seconds * 10 + 1e-6)
    digits = np.array([tokenizer.encode_part(c)[0] for c in "0123456789."])
    tables = jax.device_put(compiled.tables)
    may_come = jax.jit(lambda grammar_state: allowed(tables, grammar_state, 99))
    go = jax.jit(lambda grammar_state, tokens: advance(tables, grammar_state, tokens))
    grammar_state = compiled.begin(["segments"] * rows, 99)
    for token in tokenizer.encode_part(f"[a, {start // 10}.{start % 10}, "):
        grammar_state = go(grammar_state, np.full(rows, token))
    texts, ended = [""], set()
    for _ in range(6):
        may = np.array(may_come(grammar_state))[: len(texts), digits]
        pairs = np.argwhere(may)
        ended |= {text for text, any_ in zip(texts, may.any(1), strict=True) if not any_}
        texts = [texts[row] + "0123456789."[digit] for row, digit in pairs]
        source = np.resize(pairs[:, 0], rows) if len(pairs) else np.zeros(rows, int)
        tokens = digits[np.resize(pairs[:, 1], rows)] if len(pairs) else np.full(rows, digits[0])
        grammar_state = go(
            jax.tree.map(lambda leaf, take=source: np.array(leaf)[take], grammar_state), tokens
        )
    assert ended == {f"{n // 10}.{n % 10}" for n in range(start + 1, top + 1)}


LABELS = st.lists(
    st.sampled_from(
        [
            *"ab_19. ,;:-+'\"(/&?",
            "to",
            "\u00e9",
            "\u00a0",
            "\u2003",
            "\u2013",
            "\u72ac",
            "]",
            "[",
            "\t",
        ]
    ),
    min_size=1,
    max_size=9,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(LABELS)
def test_a_label_that_may_be_written_reads_back_as_it_is(label):
    """For both forms; and plain words are never refused."""
    box, time = Box(label, 0.1, 0.2, 0.3, 0.4), Segment(label, 0.1, 0.2)
    for grammar, item, write, tail in (
        (ListFormat(4, 3, 1000), box, write_box, ", 0.100, 0.200, 0.300, 0.400]"),
        (ListFormat(2, 1, 100), time, write_segment, ", 0.1, 0.2]"),
    ):
        state = ("text",)
        for byte in f"I hear it: [{label}{tail}".encode():
            state = None if state is None else grammar.step(state, byte)
        accepted = state == ("closed",)
        if accepted:
            assert write(item) == f"[{label}{tail}"
            assert well_formed(f"I: [{label}{tail}", "boxes" if write is write_box else "segments")
        elif all(word.isalpha() and word.isascii() for word in label.split(" ")):
            raise AssertionError(f"{label!r} is refused")


# The model ---------------------------------------------------------------------------------------


def test_rows_of_different_forms_stand_in_one_batch(tokenizer_of, compiled_for):
    """Those without a form say, bit for bit, what they say in a batch without any.

    Instead of a model a table: what comes next depends on the row and on the last token.
    """
    tokenizer, compiled, rows, room = tokenizer_of("mini"), compiled_for("mini"), 6, 24
    rng, table = np.random.default_rng(0), suppress_mask(tokenizer)
    follows = rng.standard_normal((len(table), len(table)), np.float32)
    given = {
        "tokens": rng.integers(20, 300, (rows, 3)).astype(np.int32),
        "lengths": np.array([3, 2, 1, 3, 2, 1]),
        "idle": np.arange(rows) == rows - 1,
    }

    @jax.jit
    def answers(tables, grammar_state, follows, given):
        def extend(tokens, positions, valid, cache, slot, last):
            return follows[tokens[jnp.arange(rows), last]], cache

        pick = functools.partial(choose, False, table, 1.0, None)
        return decode_loop(
            extend, pick, {}, 0, given, room, tokenizer.eos_id, tables, grammar_state
        )

    grammars = ["boxes", None, "segments", None, "boxes", "boxes"]
    free, _ = jax.device_get(answers(None, None, follows, given))
    held, ended = jax.device_get(
        answers(compiled.tables, compiled.begin(grammars, room), follows, given)
    )
    assert ended[[0, 2, 4]].all() and not (free[1] == free[3]).all()
    assert (held[[1, 3, 5]] == free[[1, 3, 5]]).all()
    said = [tokenizer.decode(strip_eos(ids, tokenizer.eos_id)).strip() for ids in held]
    for row in (0, 2, 4):
        assert well_formed(said[row], grammars[row])
    assert said[0] != said[4]


@pytest.mark.slow
def test_the_ways_to_ask_for_a_form(tmp_path):
    loaded, media = model(), (make_image(0), (tone(300), 16000))
    free = loaded.ask(*media, PROMPT)
    programs = loaded.sampler._answer._cache_size()
    box = loaded.ask(*media, PROMPT, grammar="boxes")
    assert box.boxes and not box.segments and not box.mended and not box.notes
    assert loaded.ask(*media, PROMPT).text == free.text
    assert loaded.sampler._answer._cache_size() == programs + 1
    (also,) = loaded.ask_batch([(*media, PROMPT)], grammar="boxes")
    three = Request(*media, [PROMPT] * 3, grammars=["segments", None, "boxes"])
    ((first, second, third),) = loaded.stream([three])
    assert also.text == third.text == box.text and second.text == free.text
    assert first.segments and not first.boxes
    make_image(0).save(tmp_path / "a.png")
    manifest, out = tmp_path / "ask.jsonl", tmp_path / "out.jsonl"
    manifest.write_text(json.dumps({"image": "a.png", "prompt": PROMPT}) + "\n")
    answer_manifest(lambda: loaded, manifest, out, say=lambda line: None, grammar="segments")
    assert json.loads(out.read_text())["segments"]
    with pytest.raises(UserError, match="form 'circles' is unknown; expected one of boxes, segm"):
        loaded.ask(*media, PROMPT, grammar="circles")


def test_forms_that_cannot_be_had_are_refused(tokenizer_of, compiled_for):
    compiled = compiled_for("mini")
    with pytest.raises(UserError, match="needs answers of 7 tokens, but this model's have 6"):
        compiled.begin(["boxes"], 6)
    with pytest.raises(UserError, match="form 'circles' is unknown; expected one of boxes, segm"):
        compiled.begin([None, "circles"], 6)
    with pytest.raises(UserError, match="too short"):
        compile_grammars(tokenizer_of("mini"), 0.05)
    letters = {piece: i for i, piece in enumerate([*SPECIALS, *"abc[],.012345678"])}
    raw = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[]))
    raw.decoder = tokenizers.decoders.ByteLevel()
    raw.add_special_tokens(list(SPECIALS))
    with pytest.raises(UserError, match="each digit"):
        compile_grammars(Tokenizer(raw), SECONDS)
