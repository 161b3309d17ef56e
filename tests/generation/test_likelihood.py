"""Likelihoods of given answers against the probabilities of one token after the other."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from meerkat_jax.generation.likelihood import Scorer
from meerkat_jax.generation.sampling import Sampler, banned
from tests.generation.made import fast_compilation, made, model, picture, tone

ASKED = ("What makes this sound?", "Count the things that you see.", "Describe the clip.")
SAID = ("The dog makes the sound.", "I see two: True.", "I see nothing. I hear a bee in sight.")
OWNERS = (1, 0, 1)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with fast_compilation():
        yield


@pytest.fixture(scope="module")
def sampler():
    return Sampler(model().assembly, model().params, 6)


@pytest.fixture(scope="module")
def perceived(sampler):
    side = sampler.assembly.shapes.image_size
    image = np.stack([np.asarray(picture(seed, side)) for seed in (0, 1)])
    audio = np.stack([tone(hertz, 10.0) for hertz in (300, 2000)])
    return sampler.perceive(image, audio) | {"pixels": image, "samples": audio}


@pytest.fixture(scope="module")
def texts(sampler):
    """Token ids of the questions and of the answers."""
    prompt = sampler.assembly.prompt
    return [*map(prompt.question_ids, ASKED)], [*map(prompt.answer_ids, SAID)]


@pytest.fixture(scope="module")
def scored(sampler, perceived, texts):
    return Scorer(sampler).score(perceived, OWNERS, *texts)


def test_they_are_the_probabilities_of_each_token_after_those_before_it(
    sampler, perceived, texts, scored
):
    assembly, table = sampler.assembly, banned(sampler.assembly.tokenizer)

    @jax.jit
    def forward(image, audio, tokens):
        pixels, mel = assembly.inputs({"image": image, "audio": audio})
        return assembly.model.apply({"params": sampler.params}, pixels, mel, tokens)["logits"]

    longest = max(len(q) + len(a) for q, a in zip(*texts, strict=True))
    for owner, question, answer, found in zip(OWNERS, *texts, scored, strict=True):
        assert found.shape == (len(answer),)
        for place, token in enumerate(answer):
            known = [*question, *answer[:place]]  # the plain pass never sees what comes later
            tokens = np.full((1, 1, longest), assembly.tokenizer.pad_id, np.int32)
            tokens[0, 0, : len(known)] = known
            media = perceived["pixels"][owner, None], perceived["samples"][owner, None]
            logits = np.array(forward(*media, tokens)[0, 0, len(known) - 1], np.float64)
            logits[table] = -np.inf
            expected = logits[token] - np.logaddexp.reduce(logits)
            assert found[place] == pytest.approx(expected, abs=2e-4)


def test_an_answer_s_likelihood_does_not_depend_on_its_neighbours(
    sampler, perceived, texts, scored
):
    questions, answers = texts
    alone = Scorer(sampler).score(perceived, OWNERS[:1], questions[:1], answers[:1])
    np.testing.assert_allclose(alone[0], scored[0], atol=1e-4)


def test_what_the_model_says_is_likelier_than_any_other_first_token(sampler, perceived, texts):
    (said,) = sampler.answer(perceived, [0], texts[0][:1])
    others = [i for i in range(5, 60, 6) if i != said.ids[0]]
    scores = Scorer(sampler).score(
        perceived, [0] * 11, texts[0][:1] * 11, [said.ids[:1], *[(i,) for i in others]][:11]
    )
    assert scores[0][0] == max(values[0] for values in scores)


def test_what_is_never_written_has_no_share(sampler, perceived, texts):
    tokenizer = made().data.tokenizer
    (found,) = Scorer(sampler).score(perceived, [0], texts[0][:1], [[tokenizer.pad_id]])
    assert found[0] < -1e6
    assert Scorer(sampler).score(perceived, [], [], []) == []
