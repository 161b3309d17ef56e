"""A request for a chat completion, read strictly: what this model cannot do is refused by name.

Fields are those of OpenAI's reference, and those that vLLM adds. One that this server does not have
may be there with its documented default, or empty ("n": 1, "tools": []), as that changes nothing;
the default of `temperature` alone is ours, 0. Of our own there is `meerkat_grammar`, "boxes" or
"segments".

A conversation is about one image and one sound, which stand in its first user message as data,
never as an address: the server opens no file and no connection for anyone.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from meerkat_jax.serving.refusals import Refused, bad

DATA = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)  # the file itself tells its type
SHOWN = 40  # characters of an address, or of a value, in a message


def only(*values: Any) -> Any:
    """The type of a field that this server does not have: these values of it change nothing."""

    def check(value: Any) -> Any:
        same = (value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)
        if not any(same):
            expected = " or ".join(json.dumps(one) for one in values)
            shown = f"{json.dumps(value):.{SHOWN}}"
            message = f"{shown} is not done here; expected {expected}, or leave it out"
            # In a context, as braces in a message mean one.
            raise PydanticCustomError("unsupported_value", "{message}", {"message": message})
        return value

    return Annotated[Any, AfterValidator(check)]


class _Strict(BaseModel):
    """Known fields of their own types only; null is as good as nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


class Text(_Strict):
    """Words."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = None


class ImageUrl(_Strict):
    """An image as a data: URL."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(_Strict):
    """A part that is an image."""

    type: Literal["image_url"]
    image_url: ImageUrl
    prompt_cache_breakpoint: dict[str, Any] | None = None


class Audio(_Strict):
    """An audio clip file in base64, or as a data: URL."""

    data: str
    format: Literal["wav", "mp3", "flac", "ogg", "opus", "m4a", "aac", "mp4", "webm"]


class AudioPart(_Strict):
    """A part that is an audio clip."""

    type: Literal["input_audio"]
    input_audio: Audio
    prompt_cache_breakpoint: dict[str, Any] | None = None


def _parts(content: Any) -> Any:
    """Words alone are one part."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Part = Annotated[Text | ImagePart | AudioPart, Field(discriminator="type")]
Content = Annotated[list[Part], BeforeValidator(_parts)]


class Message(_Strict):
    """What one of the two said."""

    role: Literal["user", "assistant"]
    content: Content | None = None  # of an assistant; of a user it has to be there
    name: str | None = None
    # As the client writes an answer of this server back.
    refusal: only("") = None
    annotations: only([]) = None
    tool_calls: only([]) = None


class StreamOptions(_Strict):
    """What a stream tells besides."""

    include_usage: bool = False
    include_obfuscation: bool = False  # there is none, either way


class Chat(_Strict):
    """The request."""

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = Field(0.0, ge=0, le=2)
    seed: int | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    meerkat_grammar: Literal["boxes", "segments"] | None = None
    # Told for others; an answer does not depend on them.
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    # What this server does not have.
    n: only(1) = None
    top_p: only(1) = None
    presence_penalty: only(0) = None
    frequency_penalty: only(0) = None
    logit_bias: only({}) = None
    logprobs: only(False) = None
    top_logprobs: only(0) = None
    stop: only([]) = None
    tools: only([]) = None
    tool_choice: only("none", "auto") = None
    parallel_tool_calls: only(True, False) = None
    functions: only([]) = None
    function_call: only("none", "auto") = None
    modalities: only(["text"], []) = None
    response_format: only({"type": "text"}) = None
    reasoning_effort: only("none", "medium") = None
    verbosity: only("medium") = None
    service_tier: only("auto", "default") = None
    store: only(False) = None
    # And what vLLM has besides.
    top_k: only(-1, 0) = None
    min_p: only(0) = None
    min_tokens: only(0) = None
    repetition_penalty: only(1) = None
    length_penalty: only(1) = None
    use_beam_search: only(False) = None
    ignore_eos: only(False) = None
    bad_words: only([]) = None
    stop_token_ids: only([]) = None
    include_stop_str_in_output: only(False) = None
    skip_special_tokens: only(True) = None
    spaces_between_special_tokens: only(True) = None
    echo: only(False) = None
    add_generation_prompt: only(True) = None
    continue_final_message: only(False) = None
    add_special_tokens: only(False) = None
    chat_template_kwargs: only({}) = None
    documents: only([]) = None
    media_io_kwargs: only({}) = None
    mm_processor_kwargs: only({}) = None
    vllm_xargs: only({}) = None
    include_reasoning: only(True, False) = None  # there is none, either way
    return_token_ids: only(False) = None
    return_tokens_as_token_ids: only(False) = None
    return_prompt_text: only(False) = None
    priority: only(0) = None


@dataclasses.dataclass(frozen=True, eq=False)
class Wanted:
    """A request as `Engine.ask` takes it, and how its answer is to come."""

    image: bytes | None
    audio: bytes | None
    prompt: str
    turns: list[tuple[str, str]]
    temperature: float
    seed: int | None
    grammar: str | None
    most: int | None
    stream: bool
    usage: bool


def read_chat(body: bytes, model: str) -> Wanted:
    """Read a request to the model named `model`.

    Raises Refused, which names the first field at fault.
    """
    try:
        chat = Chat.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error) from None
    if chat.model != model:
        raise unknown_model(chat.model, model)
    usage = chat.stream_options is not None and chat.stream_options.include_usage
    if usage and not chat.stream:
        message = "stream_options.include_usage is true, which has no meaning without stream"
        raise bad(message, "stream_options")
    limits = {chat.max_tokens, chat.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise bad(
            f"max_tokens is {chat.max_tokens}, and max_completion_tokens, its new name, "
            f"{chat.max_completion_tokens}; give one of them",
            "max_tokens",
        )
    image, audio = _media(chat.messages)
    *before, prompt = _texts(chat.messages)
    return Wanted(
        image=image,
        audio=audio,
        prompt=prompt,
        turns=list(zip(before[::2], before[1::2], strict=True)),
        temperature=chat.temperature,
        seed=chat.seed,
        grammar=chat.meerkat_grammar,
        most=min(limits, default=None),
        stream=chat.stream,
        usage=usage,
    )


def unknown_model(name: str, model: str) -> Refused:
    """The refusal of a request to another model than `model`."""
    message = f"the model {name[:SHOWN]!r} is not here; expected {model!r}"
    return Refused(404, message, "model", "model_not_found")


def _texts(messages: list[Message]) -> list[str]:
    """What was said, by turns; the user begins and ends."""
    for i, message in enumerate(messages):
        expected = ("user", "assistant")[i % 2]
        if message.role != expected:
            raise bad(
                f"messages.{i}: of {message.role}, expected {expected}: they take turns, and the "
                "user begins",
                f"messages.{i}.role",
            )
        if message.content is None and expected == "user":
            where = f"messages.{i}.content"
            raise bad(f"{where}: there is none; expected a question of user", where)
    if len(messages) % 2 == 0:
        raise bad("messages: the last is of assistant, expected a question of user", "messages")
    parts = [[p.text for p in message.content or () if p.type == "text"] for message in messages]
    return ["\n".join(texts) for texts in parts]


def _media(messages: list[Message]) -> tuple[bytes | None, bytes | None]:
    """The image and the sound of the first message; any others are refused."""
    found: dict[str, bytes] = {}
    for i, message in enumerate(messages):
        for j, part in enumerate(message.content or ()):
            where = f"messages.{i}.content.{j}"
            if part.type == "text":
                continue
            if i > 0:
                raise bad(
                    f"{where}: a conversation is about one image and one sound; give them in its "
                    "first message",
                    where,
                )
            if part.type in found:
                raise bad(f"{where}: a second {part.type}; expected one at most", where)
            found[part.type] = _data(part, where)
    return found.get("image_url"), found.get("input_audio")


def _data(part: ImagePart | AudioPart, where: str) -> bytes:
    """The file in a part of a message."""
    if part.type == "input_audio":
        data, field = part.input_audio.data, f"{where}.input_audio.data"
        begin = DATA.match(data)
        return _decoded(data[begin.end() :] if begin else data, field)
    url, field = part.image_url.url, f"{where}.image_url.url"
    begin = DATA.match(url)
    if not begin:
        shown = url[:SHOWN].split(",")[0]
        message = f"{shown!r} is opened by nobody here; expected data:image/png;base64,..."
        raise bad(f"{field}: {message}", field, "invalid_image_url")
    return _decoded(url[begin.end() :], field)


def _decoded(text: str, field: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # lines may be broken
    except (binascii.Error, ValueError):
        raise bad(f"{field}: not base64", field, "invalid_base64") from None


def _tag(loc: tuple[str | int, ...], i: int) -> bool:
    """Whether this step of pydantic's way to a field only tells which kind of part it is."""
    return i >= 2 and loc[i - 2] == "content" and isinstance(loc[i - 1], int)


def _refused(error: ValidationError) -> Refused:
    """The first complaint, in words of ours where pydantic's do not help."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for i, part in enumerate(first["loc"]) if not _tag(first["loc"], i))
    if first["type"] == "extra_forbidden":
        shown = f"{json.dumps(first['input'], default=str):.{SHOWN}}"
        message = f"{field}: {shown} is not done here, whatever it is; leave it out"
        return bad(message, field, "unsupported_parameter")
    if first["type"] == "json_invalid":
        return bad(f"the body is not JSON ({first['msg']})", None, "invalid_json")
    message = first["msg"]
    if field.endswith(".role"):
        message = "expected user or assistant; the model has its own system message"
    return bad(f"{field or 'the body'}: {message}", field or None, first["type"])
