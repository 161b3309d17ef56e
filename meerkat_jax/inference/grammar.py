"""Answers that can only be places or times: a finite automaton over tokens, run in the decode loop.

With the form "boxes" an answer is free text, then one place or several, `[label, x0, y0, x1, y1]`
as `data.text.write_box` writes them, with x0 < x1 and y0 < y1 in 0..1; with "segments" times,
`[label, start, end]`, start < end within the clip. Reading finds in it what was written, and mends
nothing. inference/forms.py says what text that allows.

How. A form is an automaton over bytes, lifted to tokens: a token leads from state to state as its
bytes do one after another, so that a whole number, a single digit and a mark between numbers are
all one step. Tokens that do the same in every state are one class; tables have a row per state and
a column per class. What must be remembered of the numbers stands in a register each, as a whole
number of its last decimals. A number's digits so far, say 0.4, leave it between 0.400 and 0.499: a
token is allowed if what it leaves holds a number above the one that must be smaller, and up to the
form's largest. The largest can follow any other, so that no answer runs into a dead end.

`need` says in how many tokens an answer can be closed from each state, whatever its registers hold;
a token that would need more than the room that is left is not allowed, so none is cut off.

Letters: R rows, C tokens, S states, K classes, Q numbers of an item.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import decoders

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.text import BOX_DECIMALS, TIME_DECIMALS
from meerkat_jax.data.tokenizer import Tokenizer
from meerkat_jax.inference.forms import (
    ANY,
    NUMERIC,
    OVER,
    WHITE,
    Automaton,
    Form,
    coming,
    more,
    unit,
    written,
)
from meerkat_jax.weights.bpe import SPACE, spelled_bytes

FORMS = ("boxes", "segments")
NEVER = 1 << 20  # tokens
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Rules(NamedTuple):
    """The tables, on the device; int32 unless said otherwise.

    classes[C], the class of a token; next[S, K], -1 for what is not allowed. Of the digits that a
    token writes: scale[S, K] and add[S, K], so that a register becomes `scale * register + add`;
    unit[S, K], the decimals that are then to come, as a power of ten (0: it writes none);
    more[S, K], how many digits may come before those. Of the number that is being written or comes
    next: number[S], which it is; begun bool[S]; below[S], which must be smaller (-1: none); top[S],
    its largest value. need[S]: tokens to the end. tens: 1, 10, ... up to the largest `more`.
    """

    classes: Any
    next: Any
    scale: Any
    add: Any
    unit: Any
    more: Any
    number: Any
    begun: Any
    below: Any
    top: Any
    need: Any
    tens: Any


class Marks(NamedTuple):
    """How far each row has got: state int32[R], registers int32[R, Q]."""

    state: jax.Array
    values: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Grammar:
    """The rules of all forms for one tokenizer and one length of clips; `starts` by form."""

    rules: Rules
    starts: dict[str, int]

    def begin(self, forms: Sequence[str | None], room: int) -> Marks:
        """Marks (numpy) before an answer of at most `room` tokens in each of `forms`.

        Raises UserError for a form that is not there or does not fit.
        """
        states = np.array([self._start(form, room) for form in forms], np.int32)
        return Marks(states, np.zeros((len(forms), 4), np.int32))

    def _start(self, form: str | None, room: int) -> int:
        if form is None:
            return ANY
        if form not in self.starts:
            raise UserError(f"form {form!r} is unknown; expected one of {', '.join(FORMS)}")
        need = int(self.rules.need[self.starts[form]])
        if need > room:
            raise UserError(
                f"form {form!r} needs answers of {need} tokens, but this model's have {room} at "
                "most (config.data.max_answer_tokens); ask without a form"
            )
        return self.starts[form]


# On the device -----------------------------------------------------------------------------------


def allowed(rules: Rules, marks: Marks, left: jax.Array) -> jax.Array:
    """bool[R, C]: the tokens that may come next, if `left` tokens can still be written."""
    state = marks.state
    value = _base(rules, marks)[:, None] * rules.scale[state] + rules.add[state]
    below = rules.below[state]
    least = jnp.where(below < 0, 0, _register(marks, below) + 1)[:, None]
    unit, most = rules.unit[state], rules.top[state][:, None]
    fits = _fits(value, unit, rules.more[state], least, most, rules.tens)
    after = rules.next[state]
    ends = rules.need[jnp.maximum(after, 0)] < left
    return jnp.take((after >= 0) & ends & (fits | (unit == 0)), rules.classes, axis=1)


def constrain(rules: Rules, marks: Marks, logits: jax.Array, left: jax.Array) -> jax.Array:
    """logits float[R, C], -inf for the tokens that are not allowed."""
    return jnp.where(allowed(rules, marks, left), logits, -jnp.inf)


def advance(rules: Rules, marks: Marks, tokens: jax.Array) -> Marks:
    """The marks after tokens int32[R], each of which was allowed or comes after the end."""
    state, kind = marks.state, rules.classes[tokens]
    value = _base(rules, marks) * rules.scale[state, kind] + rules.add[state, kind]
    places = jnp.arange(marks.values.shape[1]) == rules.number[state][:, None]
    written = places & (rules.unit[state, kind] > 0)[:, None]
    after = jnp.maximum(rules.next[state, kind], 0)
    return Marks(after, jnp.where(written, value[:, None], marks.values))


def _base(rules: Rules, marks: Marks) -> jax.Array:
    """int32[R]: what is written of the number that has begun, 0 if none has."""
    state = marks.state
    return jnp.where(rules.begun[state], _register(marks, rules.number[state]), 0)


def _register(marks: Marks, which: jax.Array) -> jax.Array:
    return jnp.take_along_axis(marks.values, jnp.maximum(which, 0)[:, None], axis=1)[:, 0]


def _fits(value, unit, more, least, most, tens):
    """Whether digits of this `value` can still become a number in `least`..`most`.

    With j more digits before the decimals it lies in value * 10^j * unit and the `10^j * unit - 1`
    above; a number that begins with 0 has none. Works on arrays of numpy and of jax.
    """
    found = False
    for j in range(tens.shape[0]):
        width = unit * tens[j]
        within = (value * width <= most) & (value * width + width - 1 >= least)
        found = found | (within & ((j == 0) | ((more >= j) & (value > 0))))
    return found


# Tokens ------------------------------------------------------------------------------------------


def compile_grammar(tokenizer: Tokenizer, seconds: float) -> Grammar:
    """The rules of every form, for clips of `seconds`.

    Raises UserError when the tokenizer cannot write a form: it must have each digit and the point
    as tokens by themselves.
    """
    longest = int(seconds * 10**TIME_DECIMALS + 1e-6)
    if longest < 1:
        raise UserError(f"clips of {seconds} s are too short to name a time within them")
    forms = [Form(4, BOX_DECIMALS, 10**BOX_DECIMALS), Form(2, TIME_DECIMALS, longest)]
    automaton, texts = Automaton(forms), token_texts(tokenizer)
    classes, tables = _lifted(automaton, texts, tokenizer.eos_id)
    # x0 must be below x1, y0 below y1, start below end: half of the numbers before
    tables |= {
        "number": automaton.each(coming),
        "begun": automaton.each(lambda f, s: unit(f, s) > 0 and s[0] != "done") > 0,
        "below": automaton.each(lambda f, s: max(coming(f, s) - f.count // 2, -1)),
        "top": automaton.each(lambda f, s: f.top - (coming(f, s) < f.count // 2)),
    }
    tables = {name: table[: automaton.size] for name, table in tables.items()}
    tens = 10 ** np.arange(tables["more"].max() + 1, dtype=np.int32)
    rules = Rules(classes=classes, **tables, need=np.zeros(automaton.size, np.int32), tens=tens)
    rules = rules._replace(need=_needs(automaton, rules, texts))
    starts = dict(zip(FORMS, automaton.starts, strict=True))
    for form, start in starts.items():
        if rules.need[start] >= NEVER:
            raise UserError(
                f"form {form!r} cannot be written with this tokenizer; expected each digit, the "
                "point, the comma, the space and the square brackets as tokens by themselves"
            )
    return Grammar(rules, starts)


def token_texts(tokenizer: Tokenizer) -> list[bytes | None]:
    """What each of the C tokens adds to a text; None for special tokens and padding.

    Of sentencepiece's tokens for single bytes, only white space and what is beyond ASCII: another
    byte among such that are no character would be lost.
    """
    raw, texts = tokenizer._raw, [None] * tokenizer.padded_vocab_size
    added, bytewise = raw.get_added_tokens_decoder(), isinstance(raw.decoder, decoders.ByteLevel)
    values = {character: byte for byte, character in spelled_bytes().items()}
    for token in range(tokenizer.vocab_size):
        piece = raw.id_to_token(token)
        if token in added or not piece:
            continue
        if bytewise:
            known = all(character in values for character in piece)
            texts[token] = bytes(values[character] for character in piece) if known else None
        elif single := _BYTE.fullmatch(piece):
            byte = int(single[1], 16)
            texts[token] = bytes([byte]) if byte in WHITE or byte >= 0x80 else None
        else:
            texts[token] = piece.replace(SPACE, " ").encode()
    return texts


def _lifted(
    automaton: Automaton, texts: Sequence[bytes | None], end: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Classes int32[C] and tables int32[S + 1, K] by name, as in `Rules`, of what tokens do."""
    alike = automaton.alike()
    keys = [None if text is None else text.translate(alike) for text in texts]
    closed = automaton.each(lambda _, state: state == ("closed",)) > 0
    closed[[ANY, OVER]] = True
    free = np.arange(automaton.size + 1) == ANY
    columns = {key: None for key in keys if key is not None}
    found = dict(zip(columns, _columns(automaton, list(columns)), strict=True))
    found[None] = _without_digits(np.where(free, ANY, -1))
    found["end"], keys[end] = _without_digits(np.where(closed, OVER, -1)), "end"
    numbers: dict[bytes, int] = {}
    classes = {key: numbers.setdefault(found[key].tobytes(), len(numbers)) for key in found}
    kept = {number: found[key] for key, number in classes.items()}
    stacked = np.stack([kept[number] for number in range(len(kept))], axis=-1).astype(np.int32)
    tables = dict(zip(("next", "scale", "add", "unit", "more"), stacked, strict=True))
    return np.array([classes[key] for key in keys], np.int32), tables


def _without_digits(after: np.ndarray) -> np.ndarray:
    """A column of `_columns` for a token that writes none."""
    return np.stack([after, *np.zeros((4, len(after)), np.int64)])


def _columns(automaton: Automaton, texts: Sequence[bytes]) -> Iterator[np.ndarray]:
    """int[5, S + 1] of each text: next (-1: no way on), scale, add, unit, more."""
    units, mores, numbers = automaton.each(unit), automaton.each(more), automaton.each(written)
    nowhere = automaton.size
    for text in texts:
        state = np.arange(nowhere + 1)
        scale, add, last = np.ones_like(state), np.zeros_like(state), np.full_like(state, nowhere)
        for byte in text:
            state = automaton.next[state, byte]
            if byte not in NUMERIC:
                continue
            writes = units[state] > 0
            # Digits of two numbers: there is one register to be changed a turn.
            second = writes & (last < nowhere) & (numbers[last] != numbers[state])
            state = np.where(second, nowhere, state)
            last = np.where(writes, state, last)
            if byte != ord("."):
                scale = np.where(writes, scale * 10, scale)
                add = np.where(writes, add * 10 + byte - ord("0"), add)
        found = np.stack([state, scale, add, units[last], mores[last]])
        found[:, state == nowhere] = 0
        found[0, state == nowhere] = -1
        yield found


def _needs(automaton: Automaton, rules: Rules, texts: Sequence[bytes | None]) -> np.ndarray:
    """int32[S]: in how many tokens an answer can be closed, whatever the registers hold.

    Between numbers by tokens that are always allowed: those without digits, and digits that leave
    the largest number possible. Within a number by single digits, the longest way.
    """
    below, top = rules.below[:, None], rules.top[:, None]
    least = np.where(below < 0, 0, top)
    fits = _fits(rules.add, rules.unit, rules.more, least, top, rules.tens)
    safe = (rules.next >= 0) & ((rules.unit == 0) | fits) & ~rules.begun[:, None]
    single = {text for text in texts if text is not None and len(text) == 1}
    ways = automaton.next[: automaton.size, list(NUMERIC)]
    spelled = all(bytes([byte]) in single for byte in NUMERIC)
    need = np.full(automaton.size + 1, NEVER)
    need[[ANY, OVER]] = 0
    for _ in range(automaton.size):
        after = np.where(safe, need[rules.next], NEVER).min(1)
        within = np.where(ways < automaton.size, need[ways], -1).max(1)
        within = within if spelled else np.full_like(within, NEVER)
        new = np.minimum(np.where(rules.begun, within, after) + 1, NEVER)
        new[[ANY, OVER]] = 0
        if (new == need[:-1]).all():
            break
        need[:-1] = new
    return need[:-1].astype(np.int32)
