"""The inference engine: concurrent questions share S rows of one device and one thread.

    with Engine(model) as engine:
        reply = engine.ask("scene.jpg", "clip.wav", "What makes this sound?")
        for piece in reply:
            print(piece, end="", flush=True)

A question waits for a free row of `Slots`, its pair is looked at and listened to unless that was
done lately, and then every step of the rows brings it a token. Any thread may ask; media are
decoded there. In float32 an answer equals that of `Meerkat.ask`, whatever the other rows hold.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import threading
from collections.abc import Sequence
from typing import Protocol

from meerkat_jax.core.errors import UserError
from meerkat_jax.inference import inputs
from meerkat_jax.inference.answers import View
from meerkat_jax.inference.inputs import AudioLike, ImageLike, ModelInputs, Request
from meerkat_jax.inference.media_cache import MediaCache
from meerkat_jax.inference.sampling import Sampler
from meerkat_jax.inference.slots import Question, Slots
from meerkat_jax.inference.stream import Reply
from meerkat_jax.models.llama import Cache

SEEDS = 2**32


class Busy(UserError):
    """The queue is full; ask again later."""


class Model(Protocol):
    """What answers, as `meerkat_jax.Meerkat`."""

    sampler: Sampler


@dataclasses.dataclass(frozen=True, eq=False)
class _Queued:
    """A question in the queue."""

    pair: ModelInputs
    question: Question
    reply: Reply


class Engine:
    """Answers the questions of many threads; close it, or use it in a `with`."""

    def __init__(self, model: Model, slots: int = 8, waiting: int = 64, pairs: int = 16):
        """`slots` questions are answered at a time and at most `waiting` more wait.

        What the model made of the last `pairs` images and audio clips is kept on the device.
        """
        for name, value in (("slots", slots), ("waiting", waiting), ("pairs", pairs)):
            if value < 1:
                raise UserError(f"{name} is {value}; expected at least 1")
        self._assembly, self._waiting, self._pairs = model.sampler.assembly, waiting, pairs
        self._slots, self._media = Slots(model.sampler, slots), MediaCache()
        self._queue: collections.deque[_Queued] = collections.deque()
        self._rows: list[_Queued | None] = [None] * slots
        self._seen: collections.OrderedDict[bytes, tuple[Cache, View]] = collections.OrderedDict()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def max_new(self) -> int:
        """N, the most tokens of an answer."""
        return self._slots.sampler.max_new

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    @property
    def slots(self) -> int:
        """S, the rows."""
        return len(self._rows)

    @property
    def queued(self) -> int:
        """Questions that wait for a row."""
        with self._changed:
            return sum(not queued.reply.over for queued in self._queue)

    @property
    def busy(self) -> int:
        """Rows in use."""
        return sum(queued is not None for queued in self._rows)

    def ask(
        self,
        image: ImageLike,
        audio: AudioLike,
        prompt: str,
        turns: Sequence[tuple[str, str]] = (),
        temperature: float = 0.0,
        seed: int = 0,
        grammar: str | None = None,
        max_new: int | None = None,
    ) -> Reply:
        """Begin an answer, as `Meerkat.ask` gives it.

        turns: earlier (question, answer) pairs of a conversation about the same image and audio;
        max_new: the most tokens (default and at most: N).

        Raises:
            UserError: as of `Meerkat.ask`, at once.
            Busy: too many questions wait.
        """
        most = self.max_new if max_new is None else max_new
        if not 1 <= most <= self.max_new:
            raise UserError(f"max_new is {max_new}; expected 1 to {self.max_new}")
        inputs.check_temperature(temperature)
        if not 0 <= seed < SEEDS:
            raise UserError(f"seed is {seed}; expected 0 to {SEEDS - 1}")
        grammar_state = self._slots.begin(grammar, most)
        self._check_room()
        request = Request(image, audio, [prompt], turns=turns)
        pair = inputs.load(self._assembly, request, self._media)
        ids = pair.questions[0]
        read = functools.partial(inputs.read, self._assembly, ids, pair.notes)
        length = self._assembly.model.prefix_length + len(ids)
        reply = Reply(length, self._assembly.tokenizer.decode, read)
        question = Question(ids, most, temperature, seed, grammar_state)
        with self._changed:
            self._check_room()
            self._queue.append(_Queued(pair, question, reply))
            self._changed.notify_all()
        return reply

    def close(self) -> None:
        """Cancel all that is not answered, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_room(self) -> None:
        if self._closed:
            raise RuntimeError("the engine is closed")
        if self.queued + self.busy >= self._waiting + len(self._rows):
            raise Busy(f"{self._waiting} questions wait already; ask again later")

    # In the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._wait():
            try:
                self._fill()
                self._step()
            except Exception as error:  # any error of the device goes to all waiting replies
                for queued in self._drain():
                    queued.reply.fail(error)
                self._slots.clear()
        for queued in self._drain():
            queued.reply.cancel()

    def _wait(self) -> bool:
        """Wait for work; False when the engine is closed."""
        with self._changed:
            if not self.busy and not self._queue:
                self._slots.rest()
            self._changed.wait_for(lambda: self._closed or self._queue or self.busy)
            return not self._closed

    def _fill(self) -> None:
        """Assign free rows to the questions that have waited longest."""
        for row, queued in enumerate(self._rows):
            if queued is not None and queued.reply.over:
                self._rows[row] = None
            while self._rows[row] is None and (new := self._next()) is not None:
                if new.reply.over:
                    continue
                self._rows[row] = new  # first, so that an error from here on reaches its reply
                prefix, view = self._look(new.pair)
                new.reply.see(view)
                self._slots.seat(row, prefix, new.question)

    def _next(self) -> _Queued | None:
        with self._changed:
            return self._queue.popleft() if self._queue else None

    def _look(self, pair: ModelInputs) -> tuple[Cache, View]:
        """The prefix and the view of a pair, cached for further questions about it."""
        key = hashlib.blake2b(pair.image.tobytes() + pair.audio.tobytes()).digest()
        if key not in self._seen:
            sampler = self._slots.sampler
            aligned = sampler.encode_and_align(pair.image[None], pair.audio[None])
            view = inputs.views(self._assembly, [pair], aligned)[0]
            # The sampler may pad one pair to a larger batch; a row takes one prefix.
            own = {name: aligned[name][:1] for name in ("image", "audio")}
            self._seen[key] = sampler.prefill(own), view
        self._seen.move_to_end(key)
        while len(self._seen) > self._pairs:
            self._seen.popitem(last=False)
        return self._seen[key]

    def _step(self) -> None:
        """Generate one token per row."""
        if not self.busy:
            return
        tokens, end = self._slots.step(), self._assembly.tokenizer.eos_id
        for row, queued in enumerate(self._rows):
            if queued is not None and queued.reply.write(
                int(tokens[row]), end, queued.question.most
            ):
                self._rows[row] = None

    def _drain(self) -> list[_Queued]:
        """Remove and return all unanswered questions."""
        with self._changed:
            left = [queued for queued in (*self._rows, *self._queue) if queued is not None]
            self._queue.clear()
        self._rows = [None] * len(self._rows)
        return left
