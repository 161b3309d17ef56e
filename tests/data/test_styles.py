"""Prompts of published models: the ids of their chat templates, and where markers stand in them."""

from __future__ import annotations

import dataclasses
import re

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.prompt import make_prompt, style_note
from meerkat_jax.data.tokenizer import Tokenizer
from meerkat_jax.weights.pretrained import pretrained_tokenizer
from tests.weights.vocabularies import CHATML, LLAMA2, LLAMA3, write_bytes, write_sentencepiece

TEMPLATES = {"llama2": LLAMA2, "chatml": CHATML, "llama3": LLAMA3}
LETTERS = " abcdehilnorstw.,?[]<>/\n0123456789éд"
# A typed "<s>" is text to us and a token to the template: see the test of what is typed.
SAID = st.text(LETTERS, max_size=40).filter(lambda text: not re.search("</?s>", text))
WORDS = SAID.map(lambda text: f"a{text}a")  # nothing to strip
CONVERSATIONS = [
    [("user", "Where is the dog?")],
    [("user", "  Where   is\n\nthe dog? ")],
    [("user", "Where is the dog?"), ("assistant", "On the left.")],
    [("user", "a"), ("assistant", " b\n"), ("user", "\n c"), ("assistant", "d"), ("user", "e")],
    [("system", " Be  brief.\n"), ("user", " a b")],
    [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")],
    [("user", "<s> </s> <|im_end|> <|eot_id|> [/INST] <image>")],
]


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    folders = {kind: write_bytes(root / kind, TEMPLATES[kind]) for kind in ("chatml", "llama3")}
    folders["llama2"] = write_sentencepiece(root / "llama2")
    return {kind: pretrained_tokenizer(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def templates(ours):
    """Ids of a conversation by transformers' `apply_chat_template`."""

    def by(kind):
        raw = tokenizers.Tokenizer.from_str(ours[kind]._raw.to_str())
        roles = ours[kind].roles
        theirs = transformers.PreTrainedTokenizerFast(
            tokenizer_object=raw, bos_token=roles.begin, eos_token=roles.end
        )
        theirs.chat_template = TEMPLATES[kind]

        def ids(turns):
            return theirs.apply_chat_template(
                messages(turns), add_generation_prompt=turns[-1][0] == "user", return_dict=False
            )

        return ids

    return {kind: by(kind) for kind in TEMPLATES}


def messages(turns):
    return [{"role": role, "content": content} for role, content in turns]


def without_places(prompt):
    """The ids of a prefix, images, audio and their markers left out."""
    markers = set(map(prompt.tokenizer.token_id, _MARKERS))
    runs = (part for part in prompt.prefix if not isinstance(part, str))
    return [i for run in runs for i in run if i not in markers]


_MARKERS = ("<image>", "</image>", "<audio>", "</audio>")


# ---- the published templates ----


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("turns", CONVERSATIONS[:-1])
def test_a_conversation_has_the_ids_of_the_chat_template(kind, turns, ours, templates):
    assert make_prompt(ours[kind]).text_ids(messages(turns)) == templates[kind](turns)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_one_question_has_the_ids_of_the_chat_template(kind, ours, templates):
    prompt = make_prompt(ours[kind])

    @settings(max_examples=60, deadline=None)
    @given(SAID)
    def check(text):
        assert prompt.text_ids(text) == templates[kind]([("user", text)])

    check()


@pytest.mark.parametrize("kind", TEMPLATES)
def test_what_is_typed_is_never_special(kind, ours):
    prompt, text = make_prompt(ours[kind]), CONVERSATIONS[-1][0][1]
    special = set(ours[kind].specials.values())
    plain = sum(i in special for i in prompt.text_ids("a"))
    assert sum(i in special for i in prompt.text_ids(text)) == plain
    asked = prompt.question_ids(text)
    assert sum(i in special for i in asked) == sum(i in special for i in prompt.question_ids("a"))
    assert [i for i in prompt.answer_ids(text) if i in special] == [ours[kind].eos_id]


def test_llama2s_spaces(ours):
    """Begin, "▁[INST]", the instruction, "▁[/INST]", the answer, "▁", end."""
    prompt, encode = make_prompt(ours["llama2"]), ours["llama2"].encode
    begin, end = ours["llama2"].bos_id, ours["llama2"].eos_id
    assert prompt.text_ids("Is it?") == [begin, *encode("[INST] Is it? [/INST]")]
    markers = [ours["llama2"].token_id(name) for name in _MARKERS]
    assert prompt.prefix == (
        (begin, *encode("[INST]"), markers[0]), "image", (markers[1], markers[2]), "audio",
        (markers[3],),
    )  # fmt: skip
    assert prompt.question_ids("Is it?") == encode("Is it? [/INST]")
    assert prompt.answer_ids("yes") == [*encode("yes "), end]


# ---- with image and audio ----


@pytest.mark.parametrize("kind", TEMPLATES)
def test_without_markers_the_ids_are_those_of_the_template(kind, ours, templates):
    prompt = make_prompt(ours[kind])
    assert [part for part in prompt.prefix if isinstance(part, str)] == ["image", "audio"]
    after = {"chatml": prompt.tokenizer.encode("\n")}.get(kind, [])

    @settings(max_examples=60, deadline=None)
    @given(WORDS, WORDS)
    def check(question, answer):
        asked = [*without_places(prompt), *prompt.question_ids(question)]
        assert asked == prompt.text_ids(question)
        turns = [("user", question), ("assistant", answer)]
        assert [*asked, *prompt.answer_ids(answer), *after] == templates[kind](turns)

    check()


@pytest.mark.parametrize("kind", TEMPLATES)
def test_earlier_turns_stand_before_the_question_as_the_template_has_them(kind, ours, templates):
    prompt = make_prompt(ours[kind])
    turns = [("Where is it?", "On the left."), ("a  b", "c\nd")]
    said = [text for turn in turns for text in turn] + ["Is it?"]
    roles = ("user", "assistant", "user", "assistant", "user")
    ids = [*without_places(prompt), *prompt.question_ids("Is it?", turns)]
    assert ids == templates[kind](list(zip(roles, said, strict=True)))


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_release(kind, ours):
    """Sound first, no chat form: the text follows as a text of its own."""
    prompt, tokenizer = make_prompt(ours[kind], "release"), ours[kind]
    assert [part for part in prompt.prefix if isinstance(part, str)] == ["audio", "image"]
    assert without_places(prompt) == [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    assert prompt.question_ids("Is it?") == tokenizer.encode("Is it?")
    assert prompt.answer_ids("yes") == [*tokenizer.encode_part(" yes"), tokenizer.eos_id]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_alpaca(kind, ours):
    """Cut where the answer begins, as the release cuts when it generates."""
    prompt, tokenizer = make_prompt(ours[kind], "alpaca"), ours[kind]
    asked = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n a  b\n\n### Response:"
    )
    assert prompt.question_ids(" a  b") == tokenizer.encode(asked)
    assert prompt.answer_ids("c") == [*tokenizer.encode_part("\n c \n\n"), tokenizer.eos_id]
    assert prompt.prefix == make_prompt(ours[kind], "release").prefix


def test_a_default_system_message_stands_in_the_prefix(ours):
    tokenizer = ours["chatml"]
    prompt = make_prompt(tokenizer)
    said = tokenizer.decode(without_places(prompt))
    assert said == f"system\n{tokenizer.system}\nuser\n"
    silent = dataclasses.replace(tokenizer.roles, system="")
    assert (
        tokenizer.decode(without_places(make_prompt(Tokenizer(tokenizer._raw, silent)))) == "user\n"
    )
    assert tokenizer.decode(without_places(make_prompt(tokenizer, "llama2"))) == "[INST]"


def test_a_default_system_message_of_llama2_stands_before_the_instruction(ours):
    tokenizer = ours["llama2"]
    roles = dataclasses.replace(tokenizer.roles, system="Be brief.")
    prompt = make_prompt(Tokenizer(tokenizer._raw, roles))
    asked = "<<SYS>>\nBe brief.\n<</SYS>>\n\na [/INST]"
    assert prompt.question_ids("a ") == tokenizer.encode(asked)
    assert prompt.text_ids("a ") == [tokenizer.bos_id, *tokenizer.encode(f"[INST] {asked}")]


# ---- refusing ----


def test_a_style_that_is_not_the_models_own_is_told(ours):
    own = ours["chatml"]
    assert style_note(own, "store") is None and style_note(own, "chatml") is None
    told = style_note(own, "alpaca")
    assert "config.prompt is 'alpaca'" in told and "chat template 'chatml'" in told
    unknown = Tokenizer(own._raw, dataclasses.replace(own.roles, style=None))
    assert "no chat template that is known" in style_note(unknown, "chatml")
    with pytest.raises(UserError, match=r"--config.prompt: expected one of .*llama2"):
        make_prompt(unknown, "store")
    assert make_prompt(own, "store") == make_prompt(own)


def test_a_style_whose_tokens_the_tokenizer_has_not(ours):
    with pytest.raises(
        UserError, match=r"'llama3' needs the tokens <\|end_header_id\|>, .*'chatml'"
    ):
        make_prompt(ours["chatml"], "llama3")


def test_a_tokenizer_that_does_not_tell_its_style(ours):
    roles = dataclasses.replace(ours["llama2"].roles, style=None)
    with pytest.raises(UserError, match="no chat template that is known here; name a prompt style"):
        make_prompt(Tokenizer(ours["llama2"]._raw, roles))


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (["assistant"], "message 0 is of 'assistant', expected 'user'"),
        (["user", "user"], "message 1 is of 'user', expected 'assistant'"),
        (["system", "system"], "message 0 is of 'system', expected 'user'"),
    ],
)
def test_roles_out_of_turn(roles, message, ours):
    turns = messages([(role, "a") for role in roles])
    with pytest.raises(UserError, match=message):
        make_prompt(ours["llama2"]).text_ids(turns)
