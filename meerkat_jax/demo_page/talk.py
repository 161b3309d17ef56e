"""A conversation about one image and one sound, without the page around it."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterator
from pathlib import Path

from meerkat_jax.core.errors import UserError
from meerkat_jax.demo_page.drawing import draw_answer
from meerkat_jax.demo_page.limits import Limits
from meerkat_jax.demo_page.media import check_audio, check_image, read_audio_file, read_image_file
from meerkat_jax.inference.answers import Answer
from meerkat_jax.inference.engine import Engine
from meerkat_jax.inference.media_cache import MediaCache
from meerkat_jax.inference.stream import CANCELLED, Reply


@dataclasses.dataclass(frozen=True)
class Talk:
    """The files that are talked about, and the (question, answer) pairs so far."""

    image: str | None = None
    audio: str | None = None
    turns: tuple[tuple[str, str], ...] = ()


class Desk:
    """Answers the visitors of a page within its limits."""

    def __init__(self, engine: Engine, seconds: float, limits: Limits):
        """`seconds` of an audio clip are heard."""
        self.engine, self.seconds, self.limits = engine, seconds, limits
        self._shown = MediaCache()

    def ask(
        self,
        talk: Talk,
        image_path: str | None,
        audio_path: str | None,
        question: str,
        grammar: str | None = None,
        follow: bool = False,
    ) -> Iterator[tuple[Talk, str | None]]:
        """The talk as its newest answer grows, and with the last one the answer drawn (HTML).

        Another image or audio begins another talk. With `follow` the model reads the turns
        before. Raises UserError for what is over the limits or cannot be read, Busy when too many
        ask. Closing the iterator gives the place in the engine free.
        """
        self._check(image_path, audio_path, question)
        if (image_path, audio_path) != (talk.image, talk.audio):
            talk = Talk(image_path, audio_path)
        # As bytes, since a file may be swept meanwhile, and errors are not to name its folder.
        image, audio = (path and Path(path).read_bytes() for path in (image_path, audio_path))
        turns = talk.turns if follow else ()
        reply = self.engine.ask(image, audio, question, turns=turns, grammar=grammar)
        alarm = threading.Timer(self.limits.answer_seconds, reply.cancel)
        alarm.start()
        try:
            text = ""
            for piece in reply:
                text += piece
                yield _with(talk, question, text), None
            answer = self._finished(reply)
            shown = None if image is None else self._shown.get("image", image, read_image_file)
            decode = functools.partial(read_audio_file, seconds=self.seconds)
            heard = b"" if audio is None else self._shown.get("audio", audio, decode)
            drawn = draw_answer(answer, question, shown, heard)
            yield _with(talk, question, answer.text), drawn
        finally:
            alarm.cancel()
            reply.cancel()

    def _check(self, image: str | None, audio: str | None, question: str) -> None:
        if image is None and audio is None:
            raise UserError("give an image or an audio clip first, or choose an example")
        if not question.strip():
            raise UserError("ask something, in words or with one of the buttons")
        if len(question) > self.limits.characters:
            raise UserError(
                f"the question has {len(question)} characters; at most "
                f"{self.limits.characters} are read"
            )
        if image is not None:
            check_image(image, self.limits)
        if audio is not None:
            check_audio(audio, self.limits)

    def _finished(self, reply: Reply) -> Answer:
        answer = reply.answer()
        if reply.finish != CANCELLED:
            return answer
        late = f"stopped after {self.limits.answer_seconds:g} s, which is the limit"
        if answer.view is None:  # nothing was looked at yet
            raise UserError(f"no answer: {late}; ask again when there is less to do")
        return dataclasses.replace(answer, notes=(*answer.notes, late))


def _with(talk: Talk, question: str, text: str) -> Talk:
    return dataclasses.replace(talk, turns=(*talk.turns, (question, text)))
