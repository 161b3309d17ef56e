"""The Python API: load a trained model, ask about an image and an audio clip.

    from meerkat_jax import Meerkat
    model = Meerkat.load("runs/mini")
    answer = model.ask("scene.jpg", "clip.wav", "Where is the object that makes this sound?")
    answer.text, answer.boxes, answer.segments

An image is a path, encoded bytes, a PIL image or uint8[H, W, 3]; audio is a path, encoded bytes or
(samples [n] or [n, channels], sample rate). Either, not both, may be None: the model then gets a
grey image or silence. Of audio longer than the model's `seconds` only the beginning is used.
An answer's `notes` say so.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from meerkat_jax.build import Assembly
from meerkat_jax.core.errors import UserError
from meerkat_jax.from_config import build_model
from meerkat_jax.inference import inputs
from meerkat_jax.inference.answers import Answer, View
from meerkat_jax.inference.conversation import Conversation
from meerkat_jax.inference.decoder_weights import prepare_decoder
from meerkat_jax.inference.inputs import AudioLike, ImageLike, ModelInputs, Request
from meerkat_jax.inference.sampling import Generated, Sampler
from meerkat_jax.parallel.devices import check_x64
from meerkat_jax.parallel.quantise import KINDS, check_kind
from meerkat_jax.weights.restore import read_run
from meerkat_jax.weights.store import FILE as STORE

ROWS = 64  # questions that are answered side by side


class Meerkat:
    """A trained model that answers questions about an image and an audio clip."""

    def __init__(
        self,
        assembly: Assembly,
        params: dict[str, Any],
        config: Mapping[str, Any],
        quantise: str = "none",
        unstack_layers: bool = False,
    ):
        """Use `load` unless you have the parameters at hand."""
        llama, own = prepare_decoder(
            assembly.model.llama, params["llama"], quantise, unstack_layers
        )
        self.assembly = dataclasses.replace(assembly, model=assembly.model.clone(llama=llama))
        self.params, self.config = {**params, "llama": own}, config
        self.sampler = Sampler(self.assembly, self.params, assembly.shapes.max_answer_tokens)
        self.meta: dict[str, Any] = {}  # the checkpoint's metadata

    @classmethod
    def load(
        cls, path: str | os.PathLike, quantise: str = "none", unstack_layers: bool = False
    ) -> Meerkat:
        """The model of the newest checkpoint in a work directory of `train`.

        With `quantise` "int8" or "nf4" the decoder's kernels take a quarter or an eighth of
        float32's memory; answers may differ. `unstack_layers` is for large models on a GPU: tokens
        are generated faster, compilation is slower.

        Raises UserError when the folder is not there, is not a work directory, or cannot be read,
        for another `quantise`, and where JAX computes in 64 bits.
        """
        path = Path(path)
        check_kind(quantise)
        check_x64()
        if (path / STORE).is_file():
            raise UserError(
                f"{path} holds published weights, which no training has taught to see and hear; "
                f"train from them (--config.base={path}), or ask them in words: "
                f"python -m meerkat_jax.generate --checkpoint={path} --prompt=TEXT"
            )
        run = read_run(path, build_model)
        model = cls(run.assembly, run.params(), run.config, quantise, unstack_layers)
        model.meta = run.meta
        return model

    @property
    def step(self) -> int | None:
        """Steps of training behind the parameters; None when they are not from a checkpoint."""
        return self.meta.get("step")

    @property
    def seconds(self) -> float:
        """Seconds of audio that the model takes."""
        return self.assembly.shapes.seconds

    def ask(
        self,
        image: ImageLike,
        audio: AudioLike,
        prompt: str,
        temperature: float = 0.0,
        seed: int = 0,
        grammar: str | None = None,
    ) -> Answer:
        """One answer. `temperature` 0 is the likeliest text; above it, text drawn with `seed`.

        With `grammar` "boxes" or "segments" the answer always ends in well-formed ones
        (inference/grammar.py).

        Raises UserError for media that cannot be read, for an empty or endless prompt and for an
        unknown form.
        """
        return next(self.stream([Request(image, audio, [prompt], [seed], [grammar])], temperature))[
            0
        ]

    def converse(self, image: ImageLike, audio: AudioLike) -> Conversation:
        """Begin a conversation; its `ask` takes what this `ask` does, without image and audio.

        Raises UserError for media that cannot be read.
        """
        return Conversation(self.sampler, inputs.load(self.assembly, Request(image, audio, [])))

    def ask_batch(
        self,
        questions: Sequence[Mapping[str, Any] | tuple[ImageLike, AudioLike, str]],
        temperature: float = 0.0,
        seed: int = 0,
        batch: int = 16,
        grammar: str | None = None,
    ) -> list[Answer]:
        """Answers to (image, audio, prompt) or {"image", "audio", "prompt"}, in their order.

        Consecutive questions about the same pair share its encoding.
        Question i is drawn with seed + i, so that `ask(..., seed=seed + i)` gives the same answer.
        All are held to `grammar`, as in `ask`.
        """
        rows = [_question(question, i) for i, question in enumerate(questions)]
        asked = []
        for _, group in itertools.groupby(enumerate(rows), key=lambda row: _same(row[1])):
            numbers, members = zip(*group, strict=True)
            prompts, seeds = [prompt for _, _, prompt in members], [seed + i for i in numbers]
            asked.append(Request(*members[0][:2], prompts, seeds, [grammar] * len(prompts)))
        return [answer for found in self.stream(asked, temperature, batch) for answer in found]

    def stream(
        self,
        asked: Iterable[Request],
        temperature: float = 0.0,
        batch: int = 16,
        views: bool = True,
    ) -> Iterator[list[Answer]]:
        """The answers about each of `asked`, one list per pair, in order; `batch` pairs at a time.

        The media of the next batch are decoded meanwhile. Without `views`, answers carry none.
        """
        inputs.check_temperature(temperature)
        for pairs in self._ahead(asked, batch):
            aligned = self._encode_and_align(pairs)
            found = iter(self._answer(pairs, aligned, temperature))
            seen = inputs.views(self.assembly, pairs, aligned) if views else [None] * len(pairs)
            for pair, view in zip(pairs, seen, strict=True):
                yield [
                    inputs.read(self.assembly, ids, pair.notes, next(found), view)
                    for ids in pair.questions
                ]

    def look(self, asked: Iterable[Request], batch: int = 16) -> Iterator[View]:
        """The view of each pair (attention, transport plan), without answering."""
        for pairs in self._ahead(asked, batch):
            yield from inputs.views(self.assembly, pairs, self._encode_and_align(pairs))

    def _ahead(self, asked: Iterable[Request], batch: int) -> Iterator[list[ModelInputs]]:
        """Decoded batches; the next one is decoded while one is processed."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = None
            for chunk in itertools.chain(_chunks(asked, batch), [None]):
                loading = chunk and pool.submit(self._load, chunk)
                if waiting is not None:
                    yield waiting.result()
                waiting = loading

    def _load(self, chunk: list[Request]) -> list[ModelInputs]:
        return [inputs.load(self.assembly, asked) for asked in chunk]

    def _encode_and_align(self, pairs: list[ModelInputs]) -> dict[str, jax.Array]:
        images, audio_clips = [pair.image for pair in pairs], [pair.audio for pair in pairs]
        return self.sampler.encode_and_align(np.stack(images), np.stack(audio_clips))

    def _answer(
        self, pairs: list[ModelInputs], aligned: dict[str, jax.Array], temperature: float
    ) -> list[Generated]:
        """The pairs' questions in their order.

        Questions that end alike ask for one form of answer, of one length: answered side by side,
        no row waits long for another.
        """
        rows = [
            (b, *row)
            for b, pair in enumerate(pairs)
            for row in zip(pair.questions, pair.seeds, pair.grammars, strict=True)
        ]
        order = sorted(range(len(rows)), key=lambda row: rows[row][1][::-1])
        found: dict[int, Generated] = {}
        parts = -(-len(rows) // ROWS)  # of equal size, so that one compiled program serves them all
        for some in _chunks(order, -(-len(rows) // max(parts, 1))):
            pair_ids, questions, *others = zip(*(rows[row] for row in some), strict=True)
            answers = self.sampler.answer(aligned, pair_ids, questions, temperature, *others)
            found |= zip(some, answers, strict=True)
        return [found[row] for row in range(len(rows))]


def define_storage_flags() -> None:
    """The flags for the decoder's weights, as in `Meerkat.load`."""
    flags.DEFINE_enum("quantise", "none", KINDS, "Bits of the language model's weights.")
    flags.DEFINE_bool(
        "unstack_layers", False, "Layers by themselves: faster on a GPU, slow to compile."
    )


def cache_programs(folder: Path) -> None:
    """Keep compiled programs in `folder`/compiled, unless a place for them is set already."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while chunk := [*itertools.islice(items, size)]:
        yield chunk


def _question(question: Any, index: int) -> tuple[ImageLike, AudioLike, str]:
    if isinstance(question, Mapping):
        unknown = set(question) - {"image", "audio", "prompt"}
        if unknown or "prompt" not in question:
            keys = ", ".join(map(str, question))
            raise UserError(f"question {index} has the keys {keys}; expected image, audio, prompt")
        return question.get("image"), question.get("audio"), question["prompt"]
    if not isinstance(question, tuple | list) or len(question) != 3:
        raise UserError(f"question {index} is {question!r:.80}; expected (image, audio, prompt)")
    return tuple(question)


def _same(row: tuple[ImageLike, AudioLike, str]) -> tuple:
    """Equal for questions about the same media: by value where that is cheap, else by identity."""
    plain = (str, os.PathLike, bytes, type(None))
    return tuple(source if isinstance(source, plain) else id(source) for source in row[:2])
