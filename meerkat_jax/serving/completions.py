"""Answers in the shape of OpenAI's chat completions, whole or in pieces as server-sent events.

Beside the text stands what was read in it, in a field of our own:

    "meerkat": {"boxes": [...], "segments": [...], "verdict": ..., "notes": [...]}
"""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from meerkat_jax.inference.answers import Answer
from meerkat_jax.inference.stream import Reply

DONE = b"data: [DONE]\n\n"


class Shape:
    """What all objects of one completion have in common."""

    def __init__(self, model: str):
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, reply: Reply, answer: Answer) -> dict[str, Any]:
        """The completion."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish}
        return self._object("chat.completion", [choice]) | {
            "usage": usage(reply),
            "meerkat": findings(answer),
        }

    def piece(self, text: str, first: bool = False) -> bytes:
        """An event with a piece of text."""
        delta = {"role": "assistant", "content": text} if first else {"content": text}
        return event(self._object(*_chunk(delta, None)))

    def last(self, reply: Reply, answer: Answer) -> bytes:
        """The event after the last piece."""
        chunk = self._object(*_chunk({}, reply.finish))
        return event(chunk | {"meerkat": findings(answer)})

    def usage(self, reply: Reply) -> bytes:
        """The event that counts, for those who ask for it."""
        return event(self._object("chat.completion.chunk", []) | {"usage": usage(reply)})

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head | {"object": kind, "choices": choices}


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def findings(answer: Answer) -> dict[str, Any]:
    """What can be read in an answer."""
    return {key: value for key, value in answer.to_json().items() if key != "text"}


def usage(reply: Reply) -> dict[str, int]:
    """Tokens read (of image, audio and words) and written."""
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.new_tokens,
        "total_tokens": reply.prompt_tokens + reply.new_tokens,
    }


def _chunk(delta: dict[str, str], finish: str | None) -> tuple[str, list[dict[str, Any]]]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return "chat.completion.chunk", [choice]
