"""A store of published weights, asked in words, says what the reference implementation says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.prompt import make_prompt
from meerkat_jax.inference.text import Speaker
from meerkat_jax.weights.convert import convert
from meerkat_jax.weights.fetch import fetch_smollm2
from tests.weights import published

PROMPTS = (
    "What is the capital of France?",
    "Write a haiku about rain.",
    "Explain why the sky is blue.",
    "What is 17 times 3?",
    "Name three animals that live in the sea.",
    "Who wrote Hamlet?",
    "Translate 'good morning' into Spanish.",
    "Give me a recipe for pancakes.",
    "What does a violin sound like?",
    "Describe a dog that barks at night.",
    "How do bees make honey?",
    "List the planets of the solar system.",
    "What is a transformer in machine learning?",
    "Tell me a short story about a lighthouse.",
    "Why do cats purr?",
    "Write a function in Python that adds two numbers.",
    "What is the opposite of loud?",
    "Summarise the plot of Romeo and Juliet.",
    "How many legs does a spider have?",
    "Is the statement 'a drum is a wind instrument' true or false?",
    "  What is   hidden between odd  spaces?\n\nSay.",
)
NEW = 64


def store_of(source, folder):
    return convert({"llama": source}, folder, "float32", say=lambda line: None).folder


def reference(model, ids: list[int], end: int, never: list[int] | None = None) -> list[int]:
    """What transformers' greedy generation adds to `ids`, up to the end token."""
    with torch.no_grad():
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, pad_token_id=end,
            eos_token_id=end, use_cache=True, suppress_tokens=never,
        )  # fmt: skip
    new = out[0, len(ids) :].tolist()
    return new[: new.index(end)] if end in new else new


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(a speaker of random weights, transformers' model of the same)."""
    home = tmp_path_factory.mktemp("tiny")
    model = published.llama(home / "llama")
    return Speaker.load(store_of(home / "llama", home / "store"), max_new=NEW), model


def test_rows_of_any_length_say_what_the_reference_says(tiny):
    speaker, model = tiny
    prompt = make_prompt(speaker.tokenizer)
    texts = [prompt.text_ids(text) for text in ("Where is the dog?", "The", "The dog barks left.")]
    assert len({len(ids) for ids in texts}) == 3
    never = [i for i in np.flatnonzero(speaker._suppress).tolist() if i < model.config.vocab_size]
    said = speaker.answer(texts)
    for ids, one in zip(texts, said, strict=True):
        assert list(one.ids) == reference(model, ids, speaker.tokenizer.eos_id, never)


def test_a_store_without_a_language_model_cannot_speak(tmp_path):
    published.clip(tmp_path / "clip")
    convert({"clip": tmp_path / "clip"}, tmp_path / "store", say=lambda line: None)
    with pytest.raises(UserError, match="no language model"):
        Speaker.load(tmp_path / "store")


@pytest.mark.slow
def test_smollm2_says_what_the_reference_says(cache, tmp_path):
    try:
        file = fetch_smollm2(cache)
    except UserError as error:
        pytest.skip(str(error))
    speaker = Speaker.load(store_of(file, tmp_path / "store"), max_new=NEW)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    prompt = make_prompt(speaker.tokenizer)
    texts = [prompt.text_ids(text) for text in PROMPTS]
    said = [list(one.ids) for one in speaker.answer(texts)]
    wanted = [reference(model, ids, speaker.tokenizer.eos_id) for ids in texts]
    assert said == wanted
    assert sum(map(len, wanted)) > 10 * NEW and "Paris" in speaker.tokenizer.decode(said[0])
