"""The tokenizer of the mini model: one token for each number, word, class name and phrase.

It keeps sequences short, which is what a small model's time goes to: a word with the space before
it, a class name, a phrase that many instructions share are one token each. The space before a class
name belongs to the word before that, so that a name is the same token wherever it stands ("[dog,"
and "a dog"). A number is one token together with the marks around it:

    [dog, 0.125, 0.250, 0.500, 0.750]  ->  "["  "dog"  ", 0.125"  ", 0.250,"  " 0.500"  ", 0.750]"

so each place of a box or a segment has numbers of its own, and the token says which comes next.
Coordinates have tokens on a grid of 0.005, which is that of the mini data's images. Everything
else falls back to single characters (bytes outside ASCII), so that any text comes back unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.split import open_split
from meerkat_jax.data.text import BOX_DECIMALS, TIME_DECIMALS
from meerkat_jax.data.tokenizer import BYTES, SPECIALS, Tokenizer, spelled
from meerkat_jax.mini import templates

MAX_SECONDS = 10
ARTICLES = ("a", "an", "the", "A", "An", "The")
GRID = 200  # steps of a coordinate from 0 to 1
_NUMBERS = {
    "coordinate": [f"{i / GRID:.{BOX_DECIMALS}f}" for i in range(GRID + 1)],
    "seconds": [
        f"{i / 10**TIME_DECIMALS:.{TIME_DECIMALS}f}"
        for i in range(MAX_SECONDS * 10**TIME_DECIMALS + 1)
    ],
}
_PATTERNS = {
    "coordinate": r"(?:0\.[0-9]{2}[05]|1\.000)(?![0-9])",
    "seconds": r"(?:10|[0-9])\.[0-9](?![0-9])",
}
# place of a number -> its kind, the text around it, and what must follow (N: another such number)
_PLACES = {
    "first": ("coordinate", " [{}", ", N, N, N]"),  # of a box without a label
    "x0": ("coordinate", ", {}", ", N, N, N]"),
    "y0": ("coordinate", ", {},", " N, N]"),
    "x1": ("coordinate", " {}", ", N]"),
    "y1": ("coordinate", ", {}]", ""),
    "start": ("seconds", ", {}", ", N]"),
    "end": ("seconds", ", {}]", ""),
    "said": ("seconds", " {}", ""),  # in a sentence
}

TEXT_RECORDS = 1000  # records whose words the tokenizer learns; each has about ten questions


def build_mini_tokenizer(
    texts: Iterable[str], names: Sequence[str], phrases: Sequence[str] = ()
) -> Tokenizer:
    """A tokenizer with one token for each number, word of `texts`, class name and phrase.

    The result depends on the sets of words, names and phrases only, not on their order.

    Args:
        texts: instructions and answers to be written in few tokens.
        names: class names, several words allowed; one token each, the same everywhere.
        phrases: longer pieces of text, with the space before them; one token each.

    Raises:
        UserError: a name is empty or holds a special token.
    """
    for name in names:
        if not name.strip() or any(special in name for special in SPECIALS):
            raise UserError(f"class name {name!r} cannot be a token; expected plain words")
    split = _splitter(names, phrases)
    pieces = {piece for text in set(texts) for piece, _ in split.pre_tokenize_str(text)}
    bare = {piece.strip() for piece in pieces}
    # Single marks and words; numbers with a point are listed already, without a space before.
    words = {piece for piece in bare if len(piece) == 1 or piece.replace("_", "").isalnum()}
    words -= set(names)
    before_names = {piece for piece in pieces if piece.endswith(" ")}
    before_names |= {space + word + " " for word in ARTICLES for space in ("", " ")}
    spaced = {space + word for word in words for space in ("", " ")}
    vocabulary = [
        *SPECIALS,
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *(spelled(form.format(n)) for kind, form, _ in _PLACES.values() for n in _NUMBERS[kind]),
        *map(spelled, sorted(spaced | before_names | set(names) | set(phrases))),
    ]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    # No merges: a piece is one token when it is in the vocabulary, single characters when not.
    raw = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=[], ignore_merges=True))
    raw.pre_tokenizer = pre_tokenizers.Sequence([split, BYTES])
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(SPECIALS))
    return Tokenizer(raw)


def _splitter(names: Sequence[str], phrases: Sequence[str]) -> pre_tokenizers.PreTokenizer:
    """Cuts text into the pieces that may be one token; first alternative that fits wins."""
    name = rf"(?:{_any_of(names)})(?![\p{{L}}_0-9])"
    pieces = [
        _any_of(phrases),
        *(_number_piece(*place) for place in _PLACES.values()),
        rf"(?<![\p{{L}}_0-9]){name}",
        rf" ?(?:[\p{{L}}_]+|[^\s\p{{L}}_0-9]) (?={name})",
        r" ?[\p{L}_]+",
        r" ?[0-9]+(?![0-9]|\.[0-9])",
        r" ?[^\s\p{L}_0-9]",
    ]
    return pre_tokenizers.Split(Regex("|".join(pieces)), behavior="isolated")


def _any_of(texts: Sequence[str]) -> str:
    """A pattern for any of the texts, the longest that fits; for none of them it fits nothing."""
    longest_first = sorted(set(texts), key=lambda text: (-len(text), text))
    return "|".join(map(re.escape, longest_first)) or "(?!)"


def _number_piece(kind: str, form: str, then: str) -> str:
    """A pattern for a number with the marks around it, where `then` follows."""
    number = _PATTERNS[kind]
    ahead = re.escape(then).replace("N", number)
    return re.escape(form).replace(r"\{\}", number) + f"(?={ahead})"


def words(folder: Path) -> Iterator[str]:
    """Texts with every word in use: templates, and the text of evenly spaced train records."""
    for paraphrases in templates.TEMPLATES.values():
        for text in (text for split in paraphrases.values() for text in split):
            yield re.sub(r"\{\w+\}", "", text)
    records = open_split(folder, "train")
    for index in range(0, len(records), max(1, len(records) // TEXT_RECORDS)):
        for question in records[index].questions:
            yield question.instruction
            yield question.response


def token_values(tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """The number that each id stands for, NaN elsewhere.

    Returns:
        float32[C] by "kind/place": "coordinate/x0" in 0..1, "seconds/start" in 0..10, and so on;
        C = `padded_vocab_size`. All NaN for a tokenizer that splits numbers.
    """
    return {
        f"{kind}/{place}": _values(tokenizer, form, _NUMBERS[kind])
        for place, (kind, form, _) in _PLACES.items()
    }


def _values(tokenizer: Tokenizer, form: str, numbers: Sequence[str]) -> np.ndarray:
    values = np.full(tokenizer.padded_vocab_size, np.nan, np.float32)
    for number in numbers:
        token = tokenizer.token_id(form.format(number))
        if token is not None:
            values[token] = float(number)
    return values
