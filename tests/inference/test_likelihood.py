"""Likelihoods of given answers against the probabilities of one token after the other."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from meerkat_jax.inference.likelihood import Scorer
from meerkat_jax.inference.sampling import suppress_mask
from tests.inference.made import fast_compilation, make_image, model, tone

ASKED = ("What makes this sound?", "Count the things that you see.", "Describe the clip.")
SAID = ("The dog makes the audio.", "I see two: True.", "I see nothing. I hear a bee in sight.")
OWNERS = (1, 0, 1)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with fast_compilation():
        yield


@pytest.fixture(scope="module")
def aligned():
    side = model().assembly.shapes.image_size
    image = np.stack([np.asarray(make_image(seed, side)) for seed in (0, 1)])
    audio = np.stack([tone(hertz, 10.0) for hertz in (300, 2000)])
    return model().sampler.encode_and_align(image, audio) | {"pixels": image, "samples": audio}


@pytest.fixture(scope="module")
def texts():
    """Token ids of the questions and of the answers."""
    prompt = model().assembly.prompt
    return [*map(prompt.question_ids, ASKED)], [*map(prompt.answer_ids, SAID)]


@pytest.fixture(scope="module")
def scorer():
    """One for all tests: each compiles its programs anew."""
    return Scorer(model().sampler)


def test_they_are_the_probabilities_of_each_token_after_those_before_it(aligned, texts, scorer):
    assembly, table = model().assembly, suppress_mask(model().assembly.tokenizer)

    @jax.jit
    def forward(image, audio, tokens):
        pixels, mel = assembly.inputs({"image": image, "audio": audio})
        return assembly.model.apply({"params": model().params}, pixels, mel, tokens)["logits"]

    longest = max(len(q) + len(a) for q, a in zip(*texts, strict=True))
    scored = scorer.score(aligned, OWNERS, *texts)
    for pair_id, question, answer, found in zip(OWNERS, *texts, scored, strict=True):
        assert found.shape == (len(answer),)
        for place, token in enumerate(answer):
            known = [*question, *answer[:place]]  # the plain pass never sees what comes later
            tokens = np.full((1, 1, longest), assembly.tokenizer.pad_id, np.int32)
            tokens[0, 0, : len(known)] = known
            media = aligned["pixels"][pair_id, None], aligned["samples"][pair_id, None]
            logits = np.array(forward(*media, tokens)[0, 0, len(known) - 1], np.float64)
            logits[table] = -np.inf
            expected = logits[token] - np.logaddexp.reduce(logits)
            assert found[place] == pytest.approx(expected, abs=2e-4)


def test_an_answer_s_likelihood_does_not_depend_on_its_neighbours(aligned, texts, scorer):
    scored = scorer.score(aligned, OWNERS, *texts)
    turned = [some[::-1] for some in (OWNERS, *texts)]
    for values, again in zip(scored, scorer.score(aligned, *turned)[::-1], strict=True):
        np.testing.assert_allclose(again, values, atol=1e-4)
    asked, said = texts
    shorter = scorer.score(aligned, OWNERS, asked, [said[0], said[1], said[2][:2]])
    np.testing.assert_allclose(shorter[2], scored[2][:2], atol=1e-4)


def test_what_is_never_written_has_no_share(aligned, texts, scorer):
    pad = model().assembly.tokenizer.pad_id
    found = scorer.score(aligned, OWNERS, texts[0], [[pad], [pad, pad], [pad]])
    assert all((values < -1e6).all() for values in found)
    assert scorer.score(aligned, [], [], []) == []


@pytest.mark.slow
def test_what_the_model_says_first_is_the_likeliest_first_token(aligned, texts, scorer):
    sampler, (question, *_) = model().sampler, texts[0]
    (said,) = sampler.answer(aligned, [0], [question])
    first = said.ids[0] if said.ids else model().assembly.tokenizer.eos_id
    tokens = [first, *(i for i in range(model().assembly.tokenizer.vocab_size) if i != first)]
    scores = scorer.score(
        aligned, [0] * len(tokens), [question] * len(tokens), [[i] for i in tokens]
    )
    assert np.argmax([values[0] for values in scores]) == 0
    assert np.exp([values[0] for values in scores]).sum() == pytest.approx(1, abs=1e-4)
