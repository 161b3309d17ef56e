"""Generation with a cache against the plain forward pass, and independence of the neighbours."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from meerkat_jax.data.tokenizer import MARKERS, Tokenizer
from meerkat_jax.inference.sampling import Sampler, bucket, suppress_mask
from tests.inference.made import fast_compilation, made, make_image, model, tone

N = 6
PROMPTS = (
    "What makes this sound?",
    "Count the things that you see.",
    "Find the object that makes the audio. Give [object, x_left, y_top, x_right, y_bottom].",
    "Describe the clip.",
    "Is what you hear on the left, in the middle or on the right?",
)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with fast_compilation():
        yield


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(model().assembly, model().params, N)


@pytest.fixture(scope="module")
def aligned(sampler):
    side = sampler.assembly.shapes.image_size
    image = np.stack([np.asarray(make_image(seed, side)) for seed in (0, 1)])
    audio = np.stack([tone(hertz, 10.0) for hertz in (300, 2000)])
    return sampler.encode_and_align(image, audio) | {"pixels": image, "samples": audio}


@pytest.fixture(scope="module")
def questions(sampler):
    return [sampler.assembly.prompt.question_ids(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def next_logits(sampler, aligned, questions):
    """(pair, token ids) -> float[C], the logits of the plain forward pass; one compiled program."""
    assembly, length = sampler.assembly, max(map(len, questions)) + N

    @jax.jit
    def forward(image, audio, tokens):
        pixels, mel = assembly.inputs({"image": image, "audio": audio})
        return assembly.model.apply({"params": sampler.params}, pixels, mel, tokens)["logits"]

    def logits(pair_id: int, ids: list[int]) -> np.ndarray:
        tokens = np.full((1, 1, length), assembly.tokenizer.pad_id, np.int32)
        tokens[0, 0, : len(ids)] = ids
        media = aligned["pixels"][pair_id, None], aligned["samples"][pair_id, None]
        found = np.array(forward(*media, tokens)[0, 0, len(ids) - 1], np.float64)
        found[suppress_mask(assembly.tokenizer)] = -np.inf
        return found

    return logits


@pytest.fixture(scope="module")
def greedy(sampler, aligned, questions):
    """All questions about both pairs: rows 0 to 4 about the first."""
    pair_ids = [pair_id for pair_id in (0, 1) for _ in questions]
    return sampler.answer(aligned, pair_ids, questions * 2)


@pytest.mark.parametrize(
    ("count", "size"),
    [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 8), (9, 12), (13, 16), (16, 16), (176, 192)],
)
def test_buckets_are_few_and_hold_what_they_must(count, size):
    assert bucket(count) == size


def test_cached_generation_equals_the_full_forward_pass_token_by_token(
    sampler, next_logits, questions, greedy
):
    end = sampler.assembly.tokenizer.eos_id
    for row, found in enumerate(greedy):
        pair_id, which = divmod(row, len(questions))
        question, answer = list(questions[which]), []
        while len(answer) < N and end not in answer:
            answer.append(int(next_logits(pair_id, question + answer).argmax()))
        assert found.ended == (end in answer)
        assert list(found.ids) == [i for i in answer if i != end]


def test_answers_depend_on_picture_sound_and_question(greedy):
    """Without which the other tests of this file would prove little."""
    texts = [found.ids for found in greedy]
    assert len(set(texts[:5])) > 2
    assert sum(a != b for a, b in zip(texts[:5], texts[5:], strict=True)) > 2
    assert max(len(set(ids)) for ids in texts) > 2


@pytest.mark.parametrize("rows", [[0], [2], [4, 0], [8, 2, 0, 3, 9]])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_row_does_not_depend_on_its_neighbours_or_on_padding(
    sampler, aligned, questions, rows, temperature
):
    """Other neighbours, another order, other buckets of rows and of question lengths."""

    def ask(rows):
        pair_ids, which = zip(*(divmod(row, len(questions)) for row in rows), strict=True)
        seeds = [100 + row for row in rows]
        return sampler.answer(aligned, pair_ids, [questions[q] for q in which], temperature, seeds)

    everything = ask(range(10))
    assert ask(rows) == [everything[row] for row in rows]


def test_a_pair_does_not_depend_on_the_other_pairs(sampler, aligned, questions, greedy):
    alone = sampler.encode_and_align(aligned["pixels"][1:], aligned["samples"][1:])
    assert sampler.answer(alone, [0] * len(questions), questions) == greedy[len(questions) :]


def test_an_answer_ends_at_the_end_token(sampler, aligned, questions, greedy):
    """A token in the middle of an answer, declared to be the end, cuts answers there."""
    tokenizer = Tokenizer.from_json(sampler.assembly.tokenizer._raw.to_str())
    place, row = next(
        (place, row) for place in range(2, N) for row, found in enumerate(greedy)
        if found.ids[place] not in found.ids[:place]
    )  # fmt: skip
    tokenizer.eos_id = greedy[row].ids[place]
    assembly = dataclasses.replace(sampler.assembly, tokenizer=tokenizer)
    ending = Sampler(assembly, sampler.params, N)
    pair_ids = [pair_id for pair_id in (0, 1) for _ in questions]
    for before, after in zip(greedy, ending.answer(aligned, pair_ids, questions * 2), strict=True):
        ended = tokenizer.eos_id in before.ids
        cut = before.ids.index(tokenizer.eos_id) if ended else N
        assert (after.ids, after.ended) == (before.ids[:cut], ended)


def test_what_is_drawn_follows_the_seed(sampler, aligned, questions):
    def ask(seeds, temperature=2.0):
        return sampler.answer(aligned, [0] * 8, questions[:1] * 8, temperature, seeds)

    assert ask(range(8)) == ask(range(8))
    assert len({found.ids for found in ask(range(8))}) > 4
    assert len({found.ids for found in ask([3] * 8)}) == 1


def test_nearly_no_temperature_is_greedy(sampler, aligned, questions, greedy):
    pair_ids = [pair_id for pair_id in (0, 1) for _ in questions]
    seeds = range(len(pair_ids))
    assert sampler.answer(aligned, pair_ids, questions * 2, 1e-4, seeds) == greedy


def test_draws_follow_the_softmax_and_never_give_a_marker(aligned, questions, next_logits):
    """First tokens of 512 rows: frequencies within four standard errors, markers never."""
    sampler, rows, temperature = Sampler(model().assembly, model().params, 1), 512, 1.0
    found = sampler.answer(aligned, [0] * rows, questions[:1] * rows, temperature, range(rows))
    drawn = [row.ids[0] if row.ids else sampler.assembly.tokenizer.eos_id for row in found]
    logits = next_logits(0, list(questions[0])) / temperature
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    assert chances.max() < 0.9
    counts = np.bincount(drawn, minlength=len(chances))
    errors = np.sqrt(rows * chances * (1 - chances))
    likely = chances * rows > 5
    assert likely.sum() > 2
    assert (np.abs(counts - rows * chances) <= 4 * errors + 1e-9)[likely].all()
    assert not counts[chances == 0].any()


def test_what_is_no_part_of_an_answer():
    tokenizer = made().data.tokenizer
    table = suppress_mask(tokenizer)
    assert table.shape == (tokenizer.padded_vocab_size,)
    assert table[[tokenizer.pad_id, tokenizer.bos_id]].all() and not table[tokenizer.eos_id]
    assert table[list(map(tokenizer.token_id, MARKERS))].all()
    assert table[tokenizer.vocab_size :].all()
    assert not table[tokenizer.encode("True. [dog, 0.123, 1.2]")].any()


def test_no_questions_no_answers(sampler, aligned):
    assert sampler.answer(aligned, [], []) == []
