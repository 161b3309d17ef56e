"""A streamed answer: written by the engine's thread, read by the caller's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from meerkat_jax.inference.answers import Answer, View
from meerkat_jax.inference.sampling import Generated

STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"
UNFINISHED = "\ufffd"  # the replacement for an incomplete character


class Reply:
    """Iterate over pieces of text as they are generated, or wait for the whole `answer`.

    `prompt_tokens` counts image, audio and question; `finish` says why it is over: "stop" (the
    model ended it), "length" (it was cut off) or "cancelled"; None before that.
    """

    def __init__(
        self,
        prompt_tokens: int,
        decode: Callable[[Sequence[int]], str],
        read: Callable[[Generated, View | None], Answer],
    ):
        """`decode`: token ids to text; `read`: the generated tokens to an answer."""
        self.prompt_tokens, self.finish = prompt_tokens, None
        self._decode, self._read = decode, read
        self._ids: list[int] = []
        self._view: View | None = None
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._watch: Callable[[], None] = lambda: None

    @property
    def new_tokens(self) -> int:
        """Tokens of the answer so far, without the end token."""
        return len(self._ids)

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.finish is not None or self._error is not None

    def __iter__(self) -> Iterator[str]:
        """Pieces of whole characters; joined, they are the answer's text.

        Raises what made the engine fail.
        """
        sent, seen, over = "", 0, False
        while not over:
            with self._changed:
                self._changed.wait_for(lambda: self.over or self.new_tokens > seen)  # noqa: B023
                seen = self.new_tokens
            text, over = self.so_far(sent)
            if text != sent:
                yield text[len(sent) :]
                sent = text

    def so_far(self, sent: str = "") -> tuple[str, bool]:
        """The text so far, at least `sent`, and whether it is complete.

        Raises what made the engine fail.
        """
        with self._changed:
            ids, over = self._ids[:], self.over
        if self._error is not None:
            raise self._error
        text = self._decode(ids)
        # White space at the end, and bytes of half a character, wait for what follows them.
        text = text.strip() if over else text.lstrip().rstrip(UNFINISHED).rstrip()
        return text if text.startswith(sent) else sent, over

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` in the engine's thread whenever there is more text or the answer ends."""
        self._watch = changed

    def answer(self, timeout: float | None = None) -> Answer:
        """Wait for the whole answer; of a cancelled reply, its text so far.

        Raises TimeoutError after `timeout` seconds, or what made the engine fail.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.over, timeout):
                raise TimeoutError(f"no answer within {timeout} s")
        if self._error is not None:
            raise self._error
        return self._read(Generated(tuple(self._ids), self.finish == STOP), self._view)

    def cancel(self) -> None:
        """Stop generation; the engine gives the row to another question."""
        with self._changed:
            if not self.over:
                self.finish = CANCELLED
                self._tell()

    # For the engine ------------------------------------------------------------------------------

    def see(self, view: View) -> None:
        """Set the view of the pair."""
        self._view = view

    def write(self, token: int, end: int, most: int) -> bool:
        """One more token, unless it is the `end`; whether the reply is over then."""
        with self._changed:
            if not self.over:
                if token != end:
                    self._ids.append(token)
                if token == end or len(self._ids) == most:
                    self.finish = STOP if token == end else LENGTH
                self._tell()
            return self.over

    def fail(self, error: Exception) -> None:
        """End with an error, unless it is over."""
        with self._changed:
            if not self.over:
                self._error = error
                self._tell()

    def _tell(self) -> None:
        self._changed.notify_all()
        self._watch()
