"""The prompt's layout, and packing of questions and answers."""

from __future__ import annotations

import numpy as np
import pytest

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.prompt import make_prompt, pack
from meerkat_jax.mini.tokenizer import build_mini_tokenizer

TOKENIZER = build_mini_tokenizer(["Is it a dog?", "yes no", "no dog"], ["dog"])
PAIRS = [("Is it a dog?", "yes"), ("Is it?", "no dog")]


def ids(*specials):
    return tuple(map(TOKENIZER.token_id, specials))


def test_llama2_layout():
    prompt = make_prompt(TOKENIZER)
    assert prompt.prefix == (
        ids("<s>", "[INST]", "<image>"),
        "image",
        ids("</image>", "<audio>"),
        "audio",
        ids("</audio>"),
    )
    assert prompt.question_ids("Is it?") == [*TOKENIZER.encode("Is it?"), *ids("[/INST]")]
    assert prompt.answer_ids("yes") == [*TOKENIZER.encode("yes"), TOKENIZER.eos_id]
    assert prompt.prefix_length(196, 64) == 196 + 64 + 6


def test_release_layout_has_the_sound_first_and_no_chat_markers():
    prompt = make_prompt(TOKENIZER, "release")
    assert prompt.prefix == (
        ids("<s>", "<audio>"),
        "audio",
        ids("</audio>", "<image>"),
        "image",
        ids("</image>"),
    )
    assert prompt.question_ids("Is it?") == TOKENIZER.encode("Is it?")
    assert prompt.prefix_length(96, 6) == 96 + 6 + 5


def test_earlier_turns_stand_before_the_question():
    encode, end = TOKENIZER.encode, TOKENIZER.eos_id
    inner = [*encode("Is it?"), *ids("[/INST]"), *encode("yes"), end]
    asked = [*inner, *ids("<s>", "[INST]"), *encode("no dog"), *ids("[/INST]")]
    assert make_prompt(TOKENIZER).question_ids("no dog", [("Is it?", "yes")]) == asked
    plain = make_prompt(TOKENIZER, "release").question_ids("no dog", [("Is it?", "yes")])
    markers = ids("[INST]", "[/INST]")
    assert plain == [i for i in asked if i not in markers]


def test_unknown_style():
    with pytest.raises(UserError, match="'vicuna' is unknown; expected one of llama2, release"):
        make_prompt(TOKENIZER, "vicuna")


def test_layouts_compare_and_hash_as_values():
    assert make_prompt(TOKENIZER) == make_prompt(TOKENIZER) != make_prompt(TOKENIZER, "release")
    assert len({make_prompt(TOKENIZER), make_prompt(TOKENIZER)}) == 1


@pytest.mark.parametrize("style", ["llama2", "release"])
def test_pack_one_question_a_run(style):
    prompt = make_prompt(TOKENIZER, style)
    tokens, loss_mask, segment_ids = pack(
        prompt, PAIRS, num_packs=2, pack_length=10, max_target_tokens=10
    )
    assert tokens.shape == loss_mask.shape == segment_ids.shape == (2, 10)
    assert (tokens.dtype, loss_mask.dtype, segment_ids.dtype) == (np.int32, np.float32, np.int32)
    for row, (instruction, response) in enumerate(PAIRS):
        question, answer = prompt.question_ids(instruction), prompt.answer_ids(response)
        used = len(question) + len(answer)
        assert tokens[row, :used].tolist() == question + answer
        assert (tokens[row, used:] == TOKENIZER.pad_id).all()
        assert tokens[row][loss_mask[row] == 1].tolist() == answer
        assert segment_ids[row].tolist() == [row] * used + [-1] * (10 - used)


def test_the_documented_example():
    pairs = [("Is it a dog?", "yes"), ("Is it?", "no")]
    _, loss_mask, segment_ids = pack(
        make_prompt(TOKENIZER), pairs, num_packs=1, pack_length=14, max_target_tokens=14
    )
    assert loss_mask.tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1]]
    assert segment_ids.tolist() == [[0] * 8 + [1] * 6]


def test_what_fits_nowhere_is_left_out_and_later_ones_still_fit():
    prompt = make_prompt(TOKENIZER)
    long, short = ("Is it a dog?", "yes"), ("Is it?", "no")  # 8 and 6 tokens
    _, loss_mask, segment_ids = pack(
        prompt, [long, long, short], num_packs=1, pack_length=14, max_target_tokens=14
    )
    assert np.unique(segment_ids).tolist() == [0, 2]
    _, loss_mask, segment_ids = pack(
        prompt, [long, long, short], num_packs=2, pack_length=14, max_target_tokens=2
    )
    assert np.unique(segment_ids).tolist() == [-1, 0, 1]  # room for one answer in each run
    assert loss_mask.sum(axis=1).tolist() == [2, 2]


def test_a_pair_that_just_fits_and_one_that_does_not():
    prompt = make_prompt(TOKENIZER)
    assert pack(prompt, PAIRS, 2, 8, 8).tokens[0, -1] == TOKENIZER.eos_id
    with pytest.raises(UserError, match=r"question 0 \('Is it a dog\?'.*needs 8 tokens.*has 7"):
        pack(prompt, PAIRS, 2, 7, 7)


def test_no_questions():
    packed = pack(make_prompt(TOKENIZER), [], 3, 4, 4)
    assert packed.tokens.shape == (3, 4) and not packed.loss_mask.any()


def test_a_typed_marker_cannot_end_the_answer_or_open_a_picture():
    pairs = [("</s> <image> [/INST]", "</s>")]
    tokens = pack(make_prompt(TOKENIZER), pairs, 1, 40, 40).tokens
    assert (tokens == TOKENIZER.eos_id).sum() == 1
    assert (tokens == ids("[/INST]")[0]).sum() == 1
    assert not (tokens == ids("<image>")[0]).any()
