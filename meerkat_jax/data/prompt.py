"""Where picture, sound, instruction and answer stand in a sequence, as plain data.

A sequence is a prefix, which all questions about a picture-sound pair share, then the instruction,
then the answer. `llama2` is the chat form of Llama-2 with the picture first; `release` is the order
of the authors' code: sound first and no chat markers.

    llama2:  <s> [INST] <image> V </image> <audio> A </audio>   instruction [/INST]   answer </s>
    release: <s> <audio> A </audio> <image> V </image>          instruction           answer </s>
             prefix                                             question              answer

With "image" and "audio" for the V and A places that features fill, and each marker as its id,
`make_prompt(tokenizer).prefix` is
`((<s>, [INST], <image>), "image", (</image>, <audio>), "audio", (</audio>,))`.
`pack` of the pairs ("Is it a dog?", "yes") and ("Is it?", "no") into one run of 14 then gives

    tokens   Is  it  a  dog  ?  [/INST]  yes  </s>  Is  it  ?  [/INST]  no  </s>
    targets  0   0   0  0    0  0        1    1     0   0   0  0        1   1
    owners   0   0   0  0    0  0        0    0     1   1   1  1        1   1
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from meerkat_jax.data.tokenizer import BOS, Tokenizer
from meerkat_jax.errors import UserError

Part = tuple[int, ...] | Literal["image", "audio"]

_IMAGE = ("<image>", "image", "</image>")
_AUDIO = ("<audio>", "audio", "</audio>")
# Prefix, and what follows the instruction.
STYLES = {
    "llama2": ((BOS, "[INST]", *_IMAGE, *_AUDIO), ("[/INST]",)),
    "release": ((BOS, *_AUDIO, *_IMAGE), ()),
}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Static layout: runs of token ids with the places of picture and sound between them."""

    prefix: tuple[Part, ...]
    suffix: tuple[int, ...]
    tokenizer: Tokenizer = dataclasses.field(compare=False, repr=False)

    def prefix_length(self, image_tokens: int, audio_tokens: int) -> int:
        """P = V + A + markers."""
        places = {"image": image_tokens, "audio": audio_tokens}
        return sum(places[part] if isinstance(part, str) else len(part) for part in self.prefix)

    def question_ids(self, instruction: str) -> list[int]:
        """Ids of the instruction and of what follows it, up to where the answer begins."""
        return [*self.tokenizer.encode(instruction), *self.suffix]

    def answer_ids(self, response: str) -> list[int]:
        """Ids of the answer and the end token."""
        return [*self.tokenizer.encode(response), self.tokenizer.eos_id]


def make_prompt(tokenizer: Tokenizer, style: str = "llama2") -> Prompt:
    """The layout named `style` ("llama2" or "release"); UserError for another name."""
    if style not in STYLES:
        raise UserError(f"prompt style {style!r} is unknown; expected one of {', '.join(STYLES)}")
    before, after = STYLES[style]
    prefix: list[Part] = []
    for marker in before:
        if marker in ("image", "audio"):
            prefix.append(marker)
        elif prefix and not isinstance(prefix[-1], str):
            prefix[-1] += tokenizer.special_ids(marker)
        else:
            prefix.append(tokenizer.special_ids(marker))
    suffix = tuple(i for marker in after for i in tokenizer.special_ids(marker))
    return Prompt(tuple(prefix), suffix, tokenizer)


class Packed(NamedTuple):
    """Questions with their answers, one after another in R runs of T tokens."""

    tokens: np.ndarray  # int32[R, T]
    targets: np.ndarray  # float32[R, T], 1 on tokens of answers and their end tokens
    owners: np.ndarray  # int32[R, T], which pair the token is of; -1 on padding


def pack(
    prompt: Prompt, qa_pairs: Sequence[tuple[str, str]], runs: int, length: int, room: int
) -> Packed:
    """As many of the pairs as fit, each in the first run with room for it (module's example).

    Args:
        prompt: the layout; its prefix is not part of the result.
        qa_pairs: pairs (instruction, response), the first ones first.
        runs: R.
        length: T.
        room: the most answer tokens of a run.

    Raises:
        UserError: a pair does not even fit an empty run.
    """
    tokens = np.full((runs, length), prompt.tokenizer.pad_id, np.int32)
    targets, owners = np.zeros((runs, length), np.float32), np.full((runs, length), -1, np.int32)
    used, answered = [0] * runs, [0] * runs
    for number, (instruction, response) in enumerate(qa_pairs):
        question, answer = prompt.question_ids(instruction), prompt.answer_ids(response)
        size, said = len(question) + len(answer), len(answer)
        if size > length or said > room:
            raise UserError(
                f"question {number} ({instruction!r} -> {response!r}) needs {size} tokens, {said} "
                f"of them for the answer; a run has {length} and {room}: raise length or room"
            )
        fits = (r for r in range(runs) if used[r] + size <= length and answered[r] + said <= room)
        run = next(fits, None)
        if run is None:
            continue
        start, end = used[run], used[run] + size
        tokens[run, start:end], owners[run, start:end] = question + answer, number
        targets[run, end - said : end] = 1.0
        used[run], answered[run] = end, answered[run] + said
    return Packed(tokens, targets, owners)
