"""What is asked, made ready for the model, and what it wrote, read back for people.

An image is a path, encoded bytes, a PIL image or uint8[H, W, 3]; audio is a path, encoded bytes or
(samples [n] or [n, channels], sample rate). Either, not both, may be None: the model then gets a
grey image or silence. Of audio longer than the model's `seconds` only the beginning is used.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np
import soundfile
from PIL import Image

from meerkat_jax.build import Assembly
from meerkat_jax.core.errors import UserError
from meerkat_jax.data.audio import AudioInfo, load_audio
from meerkat_jax.data.image import load_image
from meerkat_jax.inference.answers import Answer, View, read_answer
from meerkat_jax.inference.media_cache import MediaCache
from meerkat_jax.inference.sampling import Generated

ImageLike = str | os.PathLike | bytes | np.ndarray | Image.Image | None
AudioLike = str | os.PathLike | bytes | tuple[np.ndarray, int] | None
Turns = Sequence[tuple[str, str]]  # earlier questions of a conversation with their answers

MAX_PROMPT = 1024  # tokens
MAX_TEXT = 64 * MAX_PROMPT  # characters; longer text is not even cut into tokens
GREY = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """Prompts about a pair of an image and an audio clip.

    One per prompt: `seeds` (default 0) and `grammars` that constrain answers (default None). Each
    prompt follows the `turns` of a conversation about the pair.
    """

    image: ImageLike
    audio: AudioLike
    prompts: Sequence[str]
    seeds: Sequence[int] | None = None
    grammars: Sequence[str | None] | None = None
    turns: Turns = ()


@dataclasses.dataclass(frozen=True, eq=False)
class ModelInputs:
    """Decoded: image uint8[H, W, 3], audio float32[samples], token ids of each prompt."""

    image: np.ndarray
    audio: np.ndarray
    questions: list[list[int]]
    seeds: Sequence[int]
    grammars: Sequence[str | None]
    notes: tuple[str, ...]


def load(assembly: Assembly, asked: Request, cache: MediaCache | None = None) -> ModelInputs:
    """Decode the media and spell the prompts; UserError for what cannot be read or is too long.

    Media that are given as bytes are looked for in `cache` first.
    """
    shapes, notes = assembly.shapes, []
    if asked.image is None and asked.audio is None:
        raise UserError("neither an image nor an audio clip is given; give one of them at least")
    if asked.image is None:
        image = np.full((shapes.image_size,) * 2 + (3,), GREY, np.uint8)
        notes.append("no image was given: the model saw plain grey")
    else:
        decode_image = functools.partial(load_image, size=shapes.image_size)
        image = _decoded("image", _image_source(asked.image), decode_image, cache)
    if asked.audio is None:
        audio = np.zeros(round(shapes.seconds * shapes.sample_rate), np.float32)
        notes.append("no audio was given: the model heard silence")
    else:
        decode_audio = functools.partial(
            load_audio, sample_rate=shapes.sample_rate, seconds=shapes.seconds
        )
        audio, info = _decoded("audio", _audio_source(asked.audio), decode_audio, cache)
        if info.truncated:
            notes.append(
                f"the audio is {info.seconds:.1f} s long: heard were its first {shapes.seconds:g} s"
            )
        notes += info.notes
        if info.silent:
            notes.append("the audio is silent")
    questions = [spell(assembly, prompt, asked.turns) for prompt in asked.prompts]
    seeds = asked.seeds or [0] * len(questions)
    grammars = asked.grammars or [None] * len(questions)
    return ModelInputs(image, audio, questions, seeds, grammars, tuple(notes))


def _decoded(
    kind: str,
    source: str | os.PathLike | bytes,
    decode: Callable[..., np.ndarray | tuple[np.ndarray, AudioInfo]],
    cache: MediaCache | None,
) -> np.ndarray | tuple[np.ndarray, AudioInfo]:
    """What `decode` makes of the file; a path is not looked for, as its file may change."""
    if cache is None or not isinstance(source, bytes):
        return decode(source)
    return cache.get(kind, source, decode)


def check_temperature(temperature: float) -> None:
    """Raises UserError for what is no temperature."""
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature is {temperature}; expected 0 (greedy) or above")


def spell(assembly: Assembly, prompt: str, turns: Turns = ()) -> list[int]:
    """Token ids of a prompt behind the `turns` before it; UserError if empty or too long."""
    said = [*(question for question, _ in turns), prompt]
    for one in said:
        if not isinstance(one, str) or not one.strip():
            raise UserError(f"the prompt is {one!r}; expected a question in words")
    answers = [answer for _, answer in turns]
    if not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"the turns are {turns!r:.80}; expected pairs of a question and an answer")
    if (size := sum(map(len, [*said, *answers]))) > MAX_TEXT:
        raise UserError(f"the prompt has {size} characters; expected at most {MAX_TEXT}")
    *before, last = (" ".join(one.split()) for one in said)
    ids = assembly.prompt.question_ids(last, list(zip(before, answers, strict=True)))
    if len(ids) > MAX_PROMPT and turns:
        raise UserError(
            f"the conversation has {len(ids)} tokens with this question; expected at most "
            f"{MAX_PROMPT}: begin a new one"
        )
    if len(ids) > MAX_PROMPT:
        raise UserError(f"the prompt has {len(ids)} tokens; expected at most {MAX_PROMPT}")
    return ids


def views(
    assembly: Assembly, pairs: Sequence[ModelInputs], aligned: dict[str, jax.Array]
) -> list[View]:
    """The view of each pair, of what `Sampler.encode_and_align` made of them."""
    model = assembly.model
    mel, attention, plan = jax.device_get([aligned[key] for key in ("mel", "attention", "plan")])
    return [
        View(
            image=pair.image,
            logmel=mel[b],
            attention=attention[b].reshape(model.image_grid),
            plan=plan[b],
            grid=(*model.image_grid, *model.audio_tower.grid),
            seconds=assembly.shapes.seconds,
        )
        for b, pair in enumerate(pairs)
    ]


def read(
    assembly: Assembly,
    question: Sequence[int],
    notes: tuple[str, ...],
    found: Generated,
    view: View | None,
) -> Answer:
    """The answer to a question (token ids) about a pair with `notes`, and more to note of it."""
    length = assembly.shapes.pack_length
    if len(question) >= length:
        notes += (
            f"the prompt has {len(question)} tokens, more than any in training ({length}): "
            "ask in fewer and plainer words",
        )
    if not found.ended:
        notes += (f"the answer was cut off after {len(found.ids)} tokens",)
    text = assembly.tokenizer.decode(found.ids).strip()
    return read_answer(text, assembly.shapes.seconds, notes, view)


def _image_source(image: ImageLike) -> str | os.PathLike | bytes:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(f"image array {image.dtype}{image.shape}; expected uint8[H, W, 3]")
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        return file.getvalue()
    if not isinstance(image, str | os.PathLike | bytes):
        raise UserError(f"image is a {type(image).__name__}; expected a path, bytes or an array")
    return image


def _audio_source(audio: AudioLike) -> str | os.PathLike | bytes:
    if isinstance(audio, tuple):
        try:
            samples, rate = np.asarray(audio[0]), int(audio[1])
            if samples.dtype.kind == "i":  # full scale is 1
                samples = samples / (np.iinfo(samples.dtype).max + 1)
            file = io.BytesIO()
            soundfile.write(file, samples.astype(np.float32), rate, "FLOAT", format="WAV")
            return file.getvalue()
        except (TypeError, ValueError, IndexError, soundfile.SoundFileError) as error:
            raise UserError(
                f"sound: not (samples, sample rate) ({error}); expected float[n] or "
                "float[n, channels], and Hz"
            ) from error
    if not isinstance(audio, str | os.PathLike | bytes):
        raise UserError(
            f"sound is a {type(audio).__name__}; expected a path, bytes or (samples, sample rate)"
        )
    return audio
