"""The tokenizer: short sequences, lossless text, no special token from user text."""

from __future__ import annotations

import hashlib
import math
import pickle

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.tokenizer import SPECIALS, Tokenizer
from meerkat_jax.mini import templates
from meerkat_jax.mini.tokenizer import build_mini_tokenizer, token_values

NAMES = ["dog", "acoustic guitar", "hi-hat"]
TEXTS = ["Where is the dog that barks?", "It's the dog's bark: True.", "Give [object, x_left]. yes"]
BOX = "[dog, 0.125, 0.250, 0.500, 0.750]"
MINI = build_mini_tokenizer(TEXTS, NAMES)


@given(st.one_of(st.text(), st.text("[],:'? .0123456789dogGive_\n", max_size=60)))
def test_decoding_gives_the_text_back(text):
    assert MINI.decode(MINI.encode(text)) == text


def test_every_template_comes_back_in_few_tokens():
    texts = [t for splits in templates.TEMPLATES.values() for ts in splits.values() for t in ts]
    mini = build_mini_tokenizer(texts, NAMES)
    for text in texts:
        ids = mini.encode(text)
        assert mini.decode(ids) == text
        # a word, a mark, and a separate space before a number: no template spells words out
        assert len(ids) <= len(text) / 2


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (BOX, 6),
        (f"{BOX} {BOX}", 12),
        ("the [0.125, 0.250, 0.500, 1.000]", 5),  # a box without a label, in a question
        ("[dog, 1.2, 10.0]", 4),
        ("the 1.2 the 10.0.", 5),
        ("acoustic guitar", 1),
        ("the acoustic guitar", 2),
        ("hi-hat", 1),
        ("Where is the dog?", 5),
        ("cow", 3),
    ],
)
def test_tokens_per_text(text, count):
    mini = build_mini_tokenizer([*TEXTS, "the", f"{BOX} {BOX}"], NAMES)
    assert len(mini.encode(text)) == count


def test_phrases_are_one_token():
    mini = build_mini_tokenizer(TEXTS, NAMES, [" Give [object, x_left]."])
    text = "Where is it? Give [object, x_left]."
    assert mini.decode(mini.encode(text)) == text
    assert len(mini.encode(text)) == len(mini.encode("Where is it?")) + 1


def test_each_place_of_a_box_has_numbers_of_its_own():
    """So the token tells the place: the same number four times is four tokens, in order."""
    values = token_values(MINI)
    ids = MINI.encode("[dog, 0.500, 0.500, 0.500, 0.500]")[2:]
    assert len(set(ids)) == 4
    for place, token in zip(("x0", "y0", "x1", "y1"), ids, strict=True):
        assert values[f"coordinate/{place}"][token] == 0.5
    for place, token in zip(("start", "end"), MINI.encode("[dog, 7.3, 7.3]")[2:], strict=True):
        assert math.isclose(values[f"seconds/{place}"][token], 7.3, rel_tol=1e-6)


def test_token_values():
    values = token_values(MINI)
    known = np.stack([~np.isnan(value) for value in values.values()])
    assert known.shape[1] == MINI.padded_vocab_size and known.sum(axis=0).max() == 1
    for key, value in values.items():
        steps = np.arange(201) / 200 if key.startswith("coordinate/") else np.arange(101) / 10
        np.testing.assert_allclose(np.unique(value[~np.isnan(value)]), steps, rtol=1e-6)


def test_numbers_in_the_given_texts_add_no_tokens():
    more = build_mini_tokenizer([*TEXTS, f"{BOX} 1.2"], NAMES)
    assert more.vocab_size < MINI.vocab_size + 9


def test_numbers_off_the_grid_are_spelled():
    text = "[dog, 0.123, 0.250, 0.500, 0.750]"
    assert MINI.decode(MINI.encode(text)) == text
    assert len(MINI.encode(text)) > 6


@pytest.mark.parametrize("special", SPECIALS)
def test_typed_specials_stay_plain_text(special):
    ids = MINI.encode(f"a {special}b")
    marker = MINI.token_id(special)
    assert marker < len(SPECIALS) <= min(ids)
    assert MINI.decode(ids) == f"a {special}b"


def test_typed_specials_stay_plain_text_after_loading_and_in_batches(tmp_path):
    MINI.save(tmp_path)
    for copy in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(MINI))):
        assert copy.encode_batch(["</s>", BOX]) == [MINI.encode("</s>"), MINI.encode(BOX)]
        assert copy.eos_id not in copy.encode("</s>")


def test_decoding_skips_specials_and_vocabulary_padding():
    ids = [MINI.bos_id, *MINI.encode("the dog"), MINI.eos_id, MINI.pad_id]
    assert MINI.decode(np.array([*ids, MINI.padded_vocab_size - 1])) == "the dog"


def test_padded_vocab_size():
    assert MINI.padded_vocab_size % 64 == 0
    assert 0 <= MINI.padded_vocab_size - MINI.vocab_size < 64


def test_saved_file_is_what_the_hash_names_and_loads_back(tmp_path):
    MINI.save(tmp_path)
    content = (tmp_path / "tokenizer.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == MINI.sha256 == Tokenizer.load(tmp_path).sha256


def test_the_order_of_texts_and_names_is_of_no_account():
    assert build_mini_tokenizer(reversed(TEXTS), NAMES[::-1]).sha256 == MINI.sha256
    assert build_mini_tokenizer(TEXTS, ["cat"]).sha256 != MINI.sha256


@pytest.mark.parametrize("content", [None, "", "{}", "not json"])
def test_a_missing_or_foreign_file_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_without_our_markers_is_refused(tmp_path):
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="no token <s>"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["", " ", "a</s>"])
def test_impossible_names_are_refused(name):
    with pytest.raises(UserError, match="class name"):
        build_mini_tokenizer(TEXTS, [name])
