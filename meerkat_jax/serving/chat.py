"""A request for a chat completion, read strictly: what this model cannot do is refused by name.

Fields are those of OpenAI's reference. One that would change nothing may be there with the value
that changes nothing ("n": 1). Of our own there is `meerkat_form`, "boxes" or "segments".

A conversation is about one picture and one sound, which stand in its first user message as data,
never as an address: the server opens no file and no connection for anyone.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from meerkat_jax.serving.refusals import Refused, bad

DATA = re.compile(r"data:image/[\w.+-]+;base64,")
SHOWN = 40  # characters of an address in a message


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


class ImageUrl(_Strict):
    """A picture as a data: URL."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class Picture(_Strict):
    """A part that is a picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Audio(_Strict):
    """A sound file in base64."""

    data: str
    format: Literal["wav", "mp3", "flac", "ogg", "opus", "m4a", "aac", "mp4", "webm"]


class Sound(_Strict):
    """A part that is a sound."""

    type: Literal["input_audio"]
    input_audio: Audio


def _parts(content: Any) -> Any:
    """Words alone are one part."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Part = Annotated[Text | Picture | Sound, Field(discriminator="type")]
Content = Annotated[list[Part], BeforeValidator(_parts)]


class Message(_Strict):
    """What one of the two said."""

    role: Literal["user", "assistant"]
    content: Content
    name: str | None = None


class StreamOptions(_Strict):
    """What a stream tells besides."""

    include_usage: bool = False


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
    meerkat_form: Literal["boxes", "segments"] | None = None
    # What changes nothing.
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] = False
    n: Literal[1] = 1
    top_p: float = Field(1.0, ge=1, le=1)
    presence_penalty: float = Field(0.0, ge=0, le=0)
    frequency_penalty: float = Field(0.0, ge=0, le=0)
    logprobs: Literal[False] = False
    modalities: list[Literal["text"]] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Wanted:
    """A request as `Engine.ask` takes it, and how its answer is to come."""

    image: bytes | None
    audio: bytes | None
    prompt: str
    turns: list[tuple[str, str]]
    temperature: float
    seed: int | None
    form: str | None
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
        message = f"the model {chat.model[:SHOWN]!r} is not here; expected {model!r}"
        raise Refused(404, message, "model", "model_not_found")
    if chat.stream_options is not None and not chat.stream:
        raise bad("stream_options has no meaning without stream", "stream_options")
    limits = chat.max_tokens, chat.max_completion_tokens
    if None not in limits:
        message = "max_tokens is the old name of max_completion_tokens; give one of them"
        raise bad(message, "max_tokens")
    image, audio = _media(chat.messages)
    *before, prompt = _texts(chat.messages)
    return Wanted(
        image=image,
        audio=audio,
        prompt=prompt,
        turns=list(zip(before[::2], before[1::2], strict=True)),
        temperature=chat.temperature,
        seed=chat.seed,
        form=chat.meerkat_form,
        most=next((limit for limit in limits if limit is not None), None),
        stream=chat.stream,
        usage=chat.stream_options is not None and chat.stream_options.include_usage,
    )


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
    if len(messages) % 2 == 0:
        raise bad("messages: the last is of assistant, expected a question of user", "messages")
    parts = [[p.text for p in message.content if p.type == "text"] for message in messages]
    return ["\n".join(texts) for texts in parts]


def _media(messages: list[Message]) -> tuple[bytes | None, bytes | None]:
    """The picture and the sound of the first message; any others are refused."""
    found: dict[str, bytes] = {}
    for i, message in enumerate(messages):
        for j, part in enumerate(message.content):
            where = f"messages.{i}.content.{j}"
            if part.type == "text":
                continue
            if i > 0:
                raise bad(
                    f"{where}: a conversation is about one picture and one sound; give them in its "
                    "first message",
                    where,
                )
            if part.type in found:
                raise bad(f"{where}: a second {part.type}; expected one at most", where)
            found[part.type] = _data(part, where)
    return found.get("image_url"), found.get("input_audio")


def _data(part: Picture | Sound, where: str) -> bytes:
    """The file in a part of a message."""
    if part.type == "input_audio":
        return _decoded(part.input_audio.data, f"{where}.input_audio.data")
    url, field = part.image_url.url, f"{where}.image_url.url"
    begin = DATA.match(url)
    if not begin:
        shown = url[:SHOWN].split(",")[0]
        message = f"{shown!r} is opened by nobody here; expected data:image/png;base64,..."
        raise bad(f"{field}: {message}", field, "invalid_image_url")
    return _decoded(url[begin.end() :], field)


def _decoded(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise bad(f"{field}: not base64", field, "invalid_base64") from None


def _tag(loc: tuple[str | int, ...], i: int) -> bool:
    """Whether this step of pydantic's way to a field only tells which kind of part it is."""
    return i >= 2 and loc[i - 2] == "content" and isinstance(loc[i - 1], int)


def _refused(error: ValidationError) -> Refused:
    """The first complaint, in words of ours where pydantic's do not help."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(str(part) for i, part in enumerate(first["loc"]) if not _tag(first["loc"], i))
    if first["type"] == "extra_forbidden":
        return bad(f"{field} is no field of this server", field, "unsupported_parameter")
    if first["type"] == "json_invalid":
        return bad(f"the body is not JSON ({first['msg']})", None, "invalid_json")
    message = first["msg"]
    if field.endswith(".role"):
        message = "expected user or assistant; the model has its own system message"
    return bad(f"{field or 'the body'}: {message}", field or None, first["type"])
