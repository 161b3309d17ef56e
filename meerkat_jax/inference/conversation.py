"""A conversation: questions one after another about the same image and audio."""

from __future__ import annotations

from meerkat_jax.inference import inputs
from meerkat_jax.inference.answers import Answer
from meerkat_jax.inference.inputs import ModelInputs
from meerkat_jax.inference.sampling import Sampler


class Conversation:
    """Each question is read behind those before it and their answers, its `turns`.

    What the model sees and hears is made once. A conversation that has become too long is refused,
    not shortened: an answer must not depend on turns that were silently forgotten.
    """

    def __init__(self, sampler: Sampler, pair: ModelInputs):
        """Use `Meerkat.converse`."""
        self.turns: list[tuple[str, str]] = []
        self._sampler, self._pair = sampler, pair
        self._seen = sampler.encode_and_align(pair.image[None], pair.audio[None])
        self._seen["cache"] = sampler.prefill(self._seen)
        self._view = inputs.views(sampler.assembly, [pair], self._seen)[0]

    def ask(
        self, prompt: str, temperature: float = 0.0, seed: int = 0, grammar: str | None = None
    ) -> Answer:
        """The next answer, as `Meerkat.ask` gives the first; it becomes the last of the `turns`.

        Raises UserError for an empty prompt, an unknown form, and when all has become too long.
        """
        inputs.check_temperature(temperature)
        assembly = self._sampler.assembly
        ids = inputs.spell(assembly, prompt, self.turns)
        found = self._sampler.answer(self._seen, [0], [ids], temperature, [seed], [grammar])[0]
        answer = inputs.read(assembly, ids, self._pair.notes, found, self._view)
        self.turns.append((prompt, answer.text))
        return answer
