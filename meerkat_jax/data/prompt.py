"""The layout of a sequence: image, audio, instruction and answer, as plain data.

A sequence is a prefix, which all questions about a pair share, then the instruction,
then the answer. `llama2` is the chat form of Llama-2 with the image first; `release` is the order
of the authors' code: audio first and no chat markers. All styles: data/styles.py.

    llama2:  <s> [INST] <image> V </image> <audio> A </audio>   instruction [/INST]   answer </s>
    release: <s> <audio> A </audio> <image> V </image>          instruction           answer </s>
             prefix                                             question              answer

With "image" and "audio" in place of the V and A tokens of the towers, and markers as ids,
`make_prompt(tokenizer).prefix` of the mini tokenizer is
`((<s>, [INST], <image>), "image", (</image>, <audio>), "audio", (</audio>,))`.
`pack` of the pairs ("Is it a dog?", "yes") and ("Is it?", "no") into one pack of 14 then gives

    tokens       Is  it  a  dog  ?  [/INST]  yes  </s>  Is  it  ?  [/INST]  no  </s>
    loss_mask    0   0   0  0    0  0        1    1     0   0   0  0        1   1
    segment_ids  0   0   0  0    0  0        0    0     1   1   1  1        1   1

The mini tokenizer has a token for [INST], with no space about it; Llama-2's spells it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.styles import STYLES, Style
from meerkat_jax.data.tokenizer import Tokenizer

Part = tuple[int, ...] | Literal["image", "audio"]
Piece = int | str  # a special token's id, or text with fields to be filled in

STORE = "store"  # the name of the language model's own style, whichever it is
MODALITY = re.compile(r"\{(image|audio)\}")
ROLES = ("user", "assistant")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Static layout: token ids, and where the image and audio tokens go between them."""

    prefix: tuple[Part, ...]
    question: tuple[Piece, ...]
    again: tuple[Piece, ...]  # a later question of a conversation
    answer: tuple[Piece, ...]
    style: Style
    system: str
    tokenizer: Tokenizer = dataclasses.field(compare=False, repr=False)

    def prefix_length(self, image_tokens: int, audio_tokens: int) -> int:
        """P = V + A + markers."""
        places = {"image": image_tokens, "audio": audio_tokens}
        return sum(places[part] if isinstance(part, str) else len(part) for part in self.prefix)

    def question_ids(self, instruction: str, turns: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Ids of the instruction and of what follows it, up to where the answer begins.

        turns: earlier (instruction, response) of a conversation, which stand before it.
        """
        first, *later = [*(asked for asked, _ in turns), instruction]
        said = self._said(self._inner(self.system) + first)
        ids = _filled(self.tokenizer, self.question, {"instruction": said})
        for (_, response), asked in zip(turns, later, strict=True):
            ids += self.answer_ids(response)
            ids += _filled(self.tokenizer, self.again, {"instruction": self._said(asked)})
        return ids

    def answer_ids(self, response: str) -> list[int]:
        """Ids of the answer and the end token."""
        return _filled(self.tokenizer, self.answer, {"response": self._said(response)})

    def text_ids(self, messages: str | Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation without image and audio, as the published template has them.

        messages: an instruction, or {"role": ..., "content": ...} each: "system" (may be left out),
        then "user" and "assistant" in turn. After a question the answer is to begin.

        Raises:
            UserError: roles in another order.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        turns, system = list(messages), self.system
        if turns and turns[0]["role"] == "system":
            system = turns.pop(0)["content"]
            if self.style.system:  # Llama-2's stands within what is stripped
                system = self._said(system)
        text = self.style.first + (self.style.system if system else "")
        said = {"system": system}
        for i, turn in enumerate(turns):
            if turn["role"] != ROLES[i % 2]:
                raise UserError(
                    f"message {i} is of {turn['role']!r}, expected {ROLES[i % 2]!r}: user and "
                    "assistant take turns, after one system message at most"
                )
            said[f"turn{i}"] = self._said((self._inner(system) if i == 0 else "") + turn["content"])
            turned = MODALITY.sub("", self.style.user), self.style.answer + self.style.after
            text += re.sub(r"\{(instruction|response)\}", f"{{turn{i}}}", turned[i % 2])
        return _filled(self.tokenizer, _pieces(self.tokenizer, text), said)

    def _inner(self, system: str) -> str:
        return self.style.inner.format(system=system) if system else ""

    def _said(self, text: str) -> str:
        # The mini tokenizer's recipe was trained without.
        return text.strip() if self.style.strips and self.tokenizer.pretrained else text


def make_prompt(tokenizer: Tokenizer, style: str | None = None) -> Prompt:
    """The layout of `style` (a key of STYLES), by default and for "store" that which it was taught.

    Raises UserError for another name, and for a style whose tokens the tokenizer has not.
    """
    name = tokenizer.style if style in (None, STORE) else style
    if name not in STYLES:
        known = f"expected one of {', '.join(STYLES)}"
        if name is None:
            raise UserError(
                "the language model has no chat template that is known here; name a prompt style "
                f"by --config.prompt: {known}"
            )
        raise UserError(f"prompt style {name!r} is unknown; {known}")
    layout = STYLES[name]
    absent = set(re.findall(r"<\|\w+\|>", "".join(map(str, layout)))) - set(tokenizer.specials)
    if absent:
        raise UserError(
            f"prompt style {name!r} needs the tokens {', '.join(sorted(absent))}, which the "
            f"tokenizer has not; its own style is {tokenizer.style!r}"
        )
    system = tokenizer.system if name == tokenizer.style else ""
    cut = [match.end() for match in MODALITY.finditer(layout.user)][-1]
    before = layout.first + (layout.system if system else "") + layout.user[:cut]
    return Prompt(
        prefix=_prefix(tokenizer, _pieces(tokenizer, before), system),
        question=_pieces(tokenizer, layout.user[cut:]),
        again=_pieces(tokenizer, layout.after + MODALITY.sub("", layout.user)),
        answer=_pieces(tokenizer, layout.answer),
        style=layout,
        system=system,
        tokenizer=tokenizer,
    )


def style_note(tokenizer: Tokenizer, style: str | None) -> str | None:
    """A line that tells that `style` is not the language model's own; None where it is."""
    if style in (None, STORE, tokenizer.style):
        return None
    own = f"has the chat template {tokenizer.style!r}"
    if tokenizer.style is None:
        own = "has no chat template that is known here"
    return f"prompt: config.prompt is {style!r}, the language model {own}"


def _pieces(tokenizer: Tokenizer, text: str) -> tuple[Piece, ...]:
    """Text of a style, cut at special tokens and at the places of image and audio."""
    ids = tokenizer.specials
    named = {"{begin}": tokenizer.bos_id, "{end}": tokenizer.eos_id}
    for modality in ("image", "audio"):
        first, last = map(tokenizer.roles.marker, (f"<{modality}>", f"</{modality}>"))
        text = text.replace(f"{{{modality}}}", f"{first}{{{modality}}}{last}")
    cuts = [*ids, *named, "{image}", "{audio}"]
    found: list[Piece | None] = []
    for piece in re.split(f"({'|'.join(map(re.escape, cuts))})", text):
        if piece in named or piece in ids:
            found.append(named[piece] if piece in named else ids[piece])
        else:
            piece = piece.replace("▁", " " if tokenizer.spaces_first else "")
            # Beside the mini tokenizer's own special tokens stands no space.
            found.append(piece if tokenizer.pretrained else piece.strip(" "))
    return tuple(piece for piece in found if piece not in (None, ""))


def _filled(tokenizer: Tokenizer, pieces: Iterable[Piece], said: Mapping[str, str]) -> list[int]:
    """Ids of pieces without places, what is said put in."""
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, int):
            ids.append(piece)
        else:
            ids += tokenizer.encode_part(piece.format(**said))
    return ids


def _prefix(tokenizer: Tokenizer, pieces: Sequence[Piece], system: str) -> tuple[Part, ...]:
    """Runs of ids, and the places between them by name."""
    parts: list[Part] = []
    for place, run in itertools.groupby(pieces, lambda piece: MODALITY.fullmatch(str(piece))):
        parts.append(place[1] if place else tuple(_filled(tokenizer, run, {"system": system})))
    return tuple(parts)


class Packed(NamedTuple):
    """Questions with their answers, one after another in R packs of T tokens."""

    tokens: np.ndarray  # int32[R, T]
    loss_mask: np.ndarray  # float32[R, T], 1 on tokens of answers and their end tokens
    segment_ids: np.ndarray  # int32[R, T], which pair the token is of; -1 on padding


def pack(
    prompt: Prompt,
    qa_pairs: Sequence[tuple[str, str]],
    num_packs: int,
    pack_length: int,
    max_target_tokens: int,
) -> Packed:
    """As many of the pairs as fit, each in the first pack with room for it (module's example).

    Args:
        prompt: the layout; its prefix is not part of the result.
        qa_pairs: pairs (instruction, response), the first ones first.
        num_packs: R.
        pack_length: T.
        max_target_tokens: the most answer tokens of a pack.

    Raises:
        UserError: a pair does not even fit an empty pack.
    """
    tokens = np.full((num_packs, pack_length), prompt.tokenizer.pad_id, np.int32)
    loss_mask = np.zeros((num_packs, pack_length), np.float32)
    segment_ids = np.full((num_packs, pack_length), -1, np.int32)
    used, answered = [0] * num_packs, [0] * num_packs
    for number, (instruction, response) in enumerate(qa_pairs):
        question, answer = prompt.question_ids(instruction), prompt.answer_ids(response)
        size, said = len(question) + len(answer), len(answer)
        if size > pack_length or said > max_target_tokens:
            raise UserError(
                f"question {number} ({instruction!r} -> {response!r}) needs {size} tokens, {said} "
                f"of them for the answer; a pack has {pack_length} and {max_target_tokens}: raise "
                "data.pack_length or data.max_target_tokens"
            )
        for row in range(num_packs):
            if used[row] + size > pack_length or answered[row] + said > max_target_tokens:
                continue
            start, end = used[row], used[row] + size
            tokens[row, start:end], segment_ids[row, start:end] = question + answer, number
            loss_mask[row, end - said : end] = 1.0
            used[row], answered[row] = end, answered[row] + said
            break
    return Packed(tokens, loss_mask, segment_ids)
