"""Every field of OpenAI's reference: defaults and empty values change nothing, others are told."""

from __future__ import annotations

import base64
import json

import pytest
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming

from meerkat_jax.serving.chat import read_chat
from meerkat_jax.serving.refusals import Refused
from tests.serving.running import (
    NAME,
    PROMPT,
    body,
    data_url,
    image_part,
    pair_of,
    user,
)

# What this server has; here other values have a meaning, null has not.
HAS = {
    "messages": None, "model": None, "stream": [False, None], "stream_options": [None, {}],
    "temperature": [0, 0.0, None], "seed": [None], "max_tokens": [None],
    "max_completion_tokens": [None],
}  # fmt: skip
# By field: the documented defaults and empty values, and one that means something.
HAS_NOT = {
    "audio": ([None], {"voice": "alloy", "format": "wav"}),
    "frequency_penalty": ([0, 0.0, None], 0.5),
    "function_call": (["none", "auto", None], {"name": "f"}),
    "functions": ([[], None], [{"name": "f"}]),
    "logit_bias": ([{}, None], {"50256": -100}),
    "logprobs": ([False, None], True),
    "metadata": ([{}, None, {"a": "b"}], {"a": 1}),
    "modalities": ([["text"], [], None], ["text", "audio"]),
    "moderation": ([None], {"model": "m"}),
    "n": ([1, None], 2),
    "parallel_tool_calls": ([True, False, None], "yes"),
    "prediction": ([None], {"type": "content", "content": "A dog."}),
    "presence_penalty": ([0, 0.0, None], -1),
    "prompt_cache_key": (["", "a", None], 1),
    "prompt_cache_options": ([{}, {"mode": "explicit"}, None], "explicit"),
    "prompt_cache_retention": (["in_memory", "24h", None], "1h"),
    "reasoning_effort": (["none", "medium", None], "high"),
    "response_format": ([{"type": "text"}, None], {"type": "json_object"}),
    "safety_identifier": (["", "a", None], 1),
    "service_tier": (["auto", "default", None], "flex"),
    "stop": ([[], None], ["."]),
    "store": ([False, None], True),
    "tool_choice": (["none", "auto", None], "required"),
    "tools": ([[], None], [{"type": "function", "function": {"name": "f"}}]),
    "top_logprobs": ([0, None], 5),
    "top_p": ([1, 1.0, None], 0.5),
    "user": (["", "a", None], 1),
    "verbosity": (["medium", None], "high"),
    "web_search_options": ([None], {}),
    # of vLLM
    "top_k": ([-1, 0, None], 40),
    "min_p": ([0, 0.0, None], 0.1),
    "min_tokens": ([0, None], 3),
    "repetition_penalty": ([1, 1.0, None], 1.1),
    "ignore_eos": ([False, None], True),
    "stop_token_ids": ([[], None], [2]),
    "skip_special_tokens": ([True, None], False),
    "add_special_tokens": ([False, None], True),
    "chat_template_kwargs": ([{}, None], {"enable_thinking": False}),
    "documents": ([[], None], [{"text": "a"}]),
    "media_io_kwargs": ([{}, None], {"image": {}}),
    "mm_processor_kwargs": ([{}, None], {"fps": 1}),
    "vllm_xargs": ([{}, None], {"a": 1}),
    "include_reasoning": ([True, False, None], "yes"),
    "return_token_ids": ([False, None], True),
    "return_tokens_as_token_ids": ([False, None], True),
    "return_prompt_text": ([False, None], True),
}


def wanted(**fields):
    read = vars(read_chat(body(**fields), NAME))
    return {**read, "image": bytes(read["image"]), "audio": bytes(read["audio"])}


def test_the_tables_hold_each_field_of_the_reference():
    reference = set(CompletionCreateParamsStreaming.__annotations__)
    assert len(reference) > 30 and reference <= {*HAS, *HAS_NOT}


@pytest.mark.parametrize("field", [*HAS, *HAS_NOT])
def test_a_default_or_empty_value_is_as_good_as_none(field):
    values = HAS[field] if field in HAS else HAS_NOT[field][0]
    for value in values or ():
        assert wanted(**{field: value}) == wanted(), value


@pytest.mark.parametrize("field", HAS_NOT)
def test_another_value_is_refused_with_the_field_and_the_value(field):
    value = HAS_NOT[field][1]
    with pytest.raises(Refused, match=f"^{field}") as caught:
        read_chat(body(**{field: value}), NAME)
    assert (caught.value.status, caught.value.param.split(".")[0]) == (400, field)
    told = json.dumps(value)[:20] in str(caught.value)
    assert told or "should be" in str(caught.value)


@pytest.mark.parametrize("field", ["n", "top_p", "repetition_penalty", "logprobs", "top_logprobs"])
def test_true_and_false_are_no_numbers(field):
    one = HAS_NOT[field][0][0]
    with pytest.raises(Refused, match=f"^{field}"):
        read_chat(body(**{field: int(one) if isinstance(one, bool) else bool(one)}), NAME)


def test_equal_limits_of_tokens_are_one():
    assert wanted(max_tokens=5, max_completion_tokens=5) == wanted(max_tokens=5)


def test_an_answer_may_be_given_back_as_the_client_writes_it():
    """With the nulls of `model_dump`, and content null as good as empty."""
    said = ChatCompletionMessage(role="assistant", content="A dog.", annotations=[], tool_calls=[])
    for content, expected in (("A dog.", "A dog."), (None, ""), ("", "")):
        turn = said.model_dump() | {"content": content}
        sent = {"model": NAME, "messages": [user(PROMPT, 0), turn, user("Where?")]}
        assert read_chat(json.dumps(sent).encode(), NAME).turns == [(PROMPT, expected)]
    with pytest.raises(Refused, match=r"messages.0.content: there is none"):
        read_chat(json.dumps({"model": NAME, "messages": [{"role": "user"}]}).encode(), NAME)


def test_a_file_may_come_in_any_spelling_of_base64():
    image, audio = pair_of(0)
    lines = base64.encodebytes(audio).decode()
    assert lines.count("\n") > 10
    for data in (lines, data_url(audio, "audio/wav"), data_url(audio, "audio/ogg; codecs=opus"),
                 "data:audio/wav;base64," + lines):  # fmt: skip
        for kind in ("image/png", "application/octet-stream", "IMAGE/PNG;charset=utf-8", ""):
            part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
            parts = [image_part(data_url(image, kind)), part, {"type": "text", "text": PROMPT}]
            sent = {"model": NAME, "messages": [{"role": "user", "content": parts}]}
            read = read_chat(json.dumps(sent).encode(), NAME)
            assert (read.image, read.audio) == (image, audio)
