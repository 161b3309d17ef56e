"""Ask a trained model: one question, or a manifest of questions.

    python -m meerkat_jax.generate --checkpoint=runs/mini --image=scene.jpg --audio=clip.wav
        --prompt="Where is the object that makes this sound?" [--annotate=out.png] [--json]
    python -m meerkat_jax.generate --checkpoint=runs/mini --manifest=ask.jsonl --out=answers.jsonl
    python -m meerkat_jax.generate --checkpoint=weights/smollm2 --prompt="What is the capital ..."

The last one asks a store of published weights: its language model answers, in words alone.
Several --prompt are the turns of one conversation about the same image and audio. With
--grammar=boxes (or segments) answers always end in well-formed places (or times).
With --quantise=int8 the language model's weights take a quarter of the memory; answers may differ.
A manifest has one JSON object per line: `{"image": "scene.jpg", "audio": "clip.wav", "prompt":
"Is it a dog?", "id": "a1"}`. Paths are relative to the manifest; `instruction` may stand for
`prompt`; `id` (default: the line's number) comes back with the answer; of image and audio one may
be missing. All lines and all their media are checked before the model is loaded.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from PIL import Image

from meerkat_jax.api import Meerkat, Request, cache_programs, define_storage_flags
from meerkat_jax.core.cli import run_command
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.files import default_cache
from meerkat_jax.core.progress import Progress
from meerkat_jax.data.audio import load_audio
from meerkat_jax.data.image import load_image, read_size
from meerkat_jax.inference.annotate import annotate
from meerkat_jax.inference.answers import Answer
from meerkat_jax.inference.grammar import GRAMMARS
from meerkat_jax.inference.text import Speaker
from meerkat_jax.parallel.devices import find_devices
from meerkat_jax.weights.store import FILE as STORE

KEYS = ("id", "image", "audio", "prompt", "instruction")
FAULTS_SHOWN = 50
DRAWN_SIZE = 640  # pixels


@dataclasses.dataclass(frozen=True)
class Line:
    """One question of a manifest."""

    id: str | int
    image: Path | None
    audio: Path | None
    prompt: str


def answer_one(
    model: Meerkat,
    image: str | None,
    audio: str | None,
    prompt: str,
    temperature: float = 0.0,
    seed: int = 0,
    annotated: str | Path | None = None,
    grammar: str | None = None,
) -> Answer:
    """One answer, drawn into the file `annotated` (PNG) if that is given."""
    if annotated is not None and not os.access(Path(annotated).absolute().parent, os.W_OK):
        raise UserError(f"--annotate={annotated}: its folder is not there or not writable")
    answer = model.ask(image, audio, prompt, temperature, seed, grammar)
    if annotated is not None:
        _draw(Path(annotated), image, answer, prompt)
    return answer


def answer_manifest(
    model: Callable[[], Meerkat],
    manifest: str | Path,
    out: str | Path,
    temperature: float = 0.0,
    seed: int = 0,
    batch: int = 16,
    overwrite: bool = False,
    say: Callable[[str], Any] = print,
    grammar: str | None = None,
) -> int:
    """Answer the questions of `manifest` into `out`, a JSON object per line; returns their number.

    `model` is called when all is checked. `out` appears under its name when it is whole; until then
    the answers so far are in `out`.part. Raises UserError if a line has a fault, after telling them
    all, or if `out` is there and not to be overwritten.
    """
    out = Path(out)
    _check_out(out, overwrite)
    lines = read_manifest(manifest, say)
    loaded = model()
    asked, numbers = _pairs(lines, seed, grammar)
    progress, rest = Progress(f"{Path(manifest).name}: questions", len(lines), say=say), iter(lines)
    part = out.with_name(out.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        stream = loaded.stream(asked, temperature, batch, views=False)
        for number, answers in zip(numbers, stream, strict=True):
            for answer in answers:
                row = {"id": next(rest).id, **answer.to_json()}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            progress.report(number)
    os.replace(part, out)
    say(f"{len(lines)} answers: {out}")
    return len(lines)


# The manifest ------------------------------------------------------------------------------------


def read_manifest(path: str | Path, say: Callable[[str], Any] = print) -> list[Line]:
    """The checked lines of a manifest; tells every fault, then raises UserError."""
    path = Path(path)
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--manifest={path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--manifest={path}: not a text in UTF-8 ({error})") from None
    numbered = [(number, text) for number, text in enumerate(texts, 1) if text.strip()]
    if not numbered:
        raise UserError(f"--manifest={path} holds no questions; expected a JSON object per line")
    lines, faults = [], []
    for number, text in numbered:
        try:
            lines.append(_line(text, number, path.parent))
        except UserError as error:
            faults.append(f"line {number}: {error}")
    ids = [line.id for line in lines]
    faults += [f"id {name!r} is there twice" for name in {i for i in ids if ids.count(i) > 1}]
    if faults:
        for fault in faults[:FAULTS_SHOWN]:
            say(" ".join(fault.split()))
        more = "" if len(faults) <= FAULTS_SHOWN else f" (the first {FAULTS_SHOWN} of them)"
        raise UserError(
            f"--manifest={path}: {len(faults)} faults{more}, told above; mend them, nothing was "
            "answered yet"
        )
    return lines


def _line(text: str, number: int, folder: Path) -> Line:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise UserError(f"not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise UserError(f"a {type(fields).__name__}; expected an object with image, audio, prompt")
    for key in fields:
        if key not in KEYS:
            raise UserError(f"unknown key {key!r}; expected {', '.join(KEYS)}")
    prompts = [fields[key] for key in ("prompt", "instruction") if key in fields]
    if len(prompts) != 1:
        raise UserError("expected one of prompt and instruction")
    if not isinstance(prompts[0], str) or not prompts[0].strip():
        raise UserError(f"prompt {prompts[0]!r}; expected a question in words")
    given = {key: fields[key] for key in ("image", "audio") if fields.get(key) is not None}
    if not given:
        raise UserError("neither image nor audio is given; give one of them at least")
    for key, source in given.items():
        if not isinstance(source, str) or not source:
            raise UserError(f"{key} {source!r}; expected the path of a file")
    media = {key: folder / source for key, source in given.items()}
    faults = [fault for key, path in media.items() if (fault := _fault(path, key))]
    if faults:
        raise UserError("; and ".join(faults))
    name = fields.get("id", number)
    if not isinstance(name, str | int):
        raise UserError(f"id {name!r}; expected text or a whole number")
    return Line(name, media.get("image"), media.get("audio"), prompts[0])


@functools.cache
def _fault(path: Path, key: str) -> str | None:
    """What is wrong with the file; a file in many lines is decoded once."""
    try:
        if key == "image":
            load_image(path, 16)
        else:
            load_audio(path, 16000, 10.0)
    except UserError as error:
        return str(error)
    return None


def _pairs(
    lines: list[Line], seed: int, grammar: str | None = None
) -> tuple[Iterator[Request], Iterator[int]]:
    """Neighbouring lines about the same media as one pair, and the lines done after each pair."""
    groups, start = [], 0
    for (image, audio), group in itertools.groupby(lines, key=lambda x: (x.image, x.audio)):
        prompts = [line.prompt for line in group]
        first, start = seed + start, start + len(prompts)
        seeds = range(first, first + len(prompts))
        groups.append(Request(image, audio, prompts, seeds, [grammar] * len(prompts)))
    return iter(groups), itertools.accumulate(len(asked.prompts) for asked in groups)


def _check_out(out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise UserError(f"--out={out} is a folder; name a file")
    if out.exists() and not overwrite:
        raise UserError(f"--out={out} is there already; --overwrite replaces it")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise UserError(f"--out={out}: its folder is not there or not writable")


def _draw(path: Path, image: str | None, answer: Answer, prompt: str) -> None:
    # The original proportions; the squashed image of the tower would show them distorted.
    pixels = answer.view.image if image is None else load_image(image, DRAWN_SIZE)
    drawn = Image.fromarray(pixels)
    if image is not None:
        width, height = read_size(image)
        drawn = drawn.resize((DRAWN_SIZE, max(1, round(DRAWN_SIZE * height / width))))
    page = annotate(drawn, answer, prompt)
    try:
        page.save(path, "PNG")
    except OSError as error:
        raise UserError(f"--annotate={path} cannot be written: {error.strerror}") from None


# The command --------------------------------------------------------------------------------------


def define_flags() -> None:
    """The flags of the command line."""
    flags.DEFINE_string("checkpoint", None, "Work directory of training, or a store of weights.")
    flags.DEFINE_string("image", None, "Image.")
    flags.DEFINE_string("audio", None, "Sound.")
    flags.DEFINE_multi_string("prompt", None, "Question, in words; several: a conversation.")
    flags.DEFINE_string("annotate", None, "Draw the answer into this PNG file.")
    flags.DEFINE_bool("json", False, "Print the answer as JSON.")
    flags.DEFINE_float("temperature", 0.0, "0: the likeliest text; above: drawn.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Seed of what is drawn.")
    define_storage_flags()
    flags.DEFINE_enum("grammar", None, GRAMMARS, "What answers are held to; default: nothing.")
    flags.DEFINE_string("manifest", None, "Questions, a JSON object per line.")
    flags.DEFINE_string("out", None, "Answers to the manifest, a JSON object per line.")
    flags.DEFINE_bool("overwrite", False, "Replace --out when it is there.")
    flags.DEFINE_integer("batch", 16, "Pairs answered at a time.", lower_bound=1)
    flags.DEFINE_string("data_dir", None, "Cache of compiled programs; else $MEERKAT_CACHE.")


def main(_: list[str]) -> None:
    """Read the flags and answer."""
    given = flags.FLAGS
    find_devices()
    cache_programs(Path(given.data_dir).expanduser() if given.data_dir else default_cache())
    if (Path(given.checkpoint) / STORE).is_file():
        _say_published(given)
        return
    load = functools.partial(Meerkat.load, given.checkpoint, given.quantise, given.unstack_layers)
    if given.manifest is not None:
        _check_flags(("image", "audio", "prompt", "annotate"), "with --manifest")
        if given.out is None:
            raise UserError("--manifest needs --out=FILE.jsonl for the answers")
        answer_manifest(
            load, given.manifest, given.out, given.temperature, given.seed, given.batch,
            given.overwrite, say=lambda line: print(line, flush=True), grammar=given.grammar,
        )  # fmt: skip
        return
    _check_flags(("out",), "without --manifest")
    if given.prompt is None:
        raise UserError("missing --prompt (or --manifest); see generate --help")
    if len(given.prompt) > 1:
        _check_flags(("annotate",), "with several --prompt")
    for key, source in (("image", given.image), ("audio", given.audio)):
        if source is not None and (fault := _fault(Path(source), key)):
            raise UserError(fault)
    media = given.image, given.audio
    if len(given.prompt) == 1:
        how = given.temperature, given.seed, given.annotate, given.grammar
        _tell(answer_one(load(), *media, *given.prompt, *how), given.json)
    else:
        conversation = load().converse(*media)
        for prompt in given.prompt:
            how = given.temperature, given.seed, given.grammar
            _tell(conversation.ask(prompt, *how), given.json)
    if given.annotate:
        print(f"drawn: {given.annotate}", file=sys.stderr)


def _tell(answer: Answer, as_json: bool) -> None:
    """Print an answer; notes are for people, beside it."""
    if as_json:
        print(json.dumps(answer.to_json(), ensure_ascii=False), flush=True)
        return
    print(answer.text, flush=True)
    for note in answer.notes:
        print(f"note: {note}", file=sys.stderr)


def _say_published(given: flags.FlagValues) -> None:
    """Ask the language model of a store, which knows nothing of images and audio clips yet."""
    names = ("image", "audio", "annotate", "manifest", "out", "grammar")
    _check_flags(names, "with weights as published")
    if given.prompt is None or len(given.prompt) > 1:
        raise UserError("published weights are asked by one --prompt; see generate --help")
    if given.temperature:
        raise UserError("--temperature has no meaning with weights as published; leave it out")
    storage = {"quantise": given.quantise, "unstack_layers": given.unstack_layers}
    text = Speaker.load(given.checkpoint, **storage).ask(given.prompt)[0]
    print(json.dumps({"text": text}, ensure_ascii=False) if given.json else text)


def _check_flags(names: tuple[str, ...], where: str) -> None:
    for name in names:
        if flags.FLAGS[name].value is not None:
            raise UserError(f"--{name} has no meaning {where}; leave it out")


if __name__ == "__main__":
    define_flags()
    run_command(main, required=("checkpoint",))
