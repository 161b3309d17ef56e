"""Text to token ids and back, and the tokenizer of the mini preset.

`Tokenizer` is a thin class over `tokenizers.Tokenizer`. Text from a user or a data set can never
become a special token: those enter by id only (`meerkat_jax.data.prompt`). What a tokenizer calls
its begin, end and padding tokens is told by `Roles`; those of published models are made in
`meerkat_jax.weights.pretrained`.

The mini tokenizer keeps sequences short, which is what a small model's time goes to: a word with
the space before it, a class name, a phrase that many instructions share are one token each. The
space before a class name belongs to the word before that, so that a name is the same token wherever
it stands ("[dog," and "a dog"). A number is one token together with the marks around it:

    [dog, 0.125, 0.250, 0.500, 0.750]  ->  "["  "dog"  ", 0.125"  ", 0.250,"  " 0.500"  ", 0.750]"

so each place of a box or a segment has numbers of its own, and the token says which comes next.
Coordinates have tokens on a grid of 0.005, which is that of the mini data's pictures. Everything
else falls back to single characters (bytes outside ASCII), so that any text comes back unchanged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from meerkat_jax.data.text import BOX_DECIMALS, TIME_DECIMALS
from meerkat_jax.errors import UserError

FILE = "tokenizer.json"
ROLES_FILE = "tokenizer_roles.json"
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
MARKERS = ("<image>", "</image>", "<audio>", "</audio>")
CHAT = ("[INST]", "[/INST]")
SPECIALS = ("<unk>", BOS, EOS, PAD, *MARKERS, *CHAT)
MAX_SECONDS = 10
VOCAB_MULTIPLE = 64
ARTICLES = ("a", "an", "the", "A", "An", "The")

_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
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


@dataclasses.dataclass(frozen=True)
class Roles:
    """What the tokens of a vocabulary are for. Kept beside tokenizer.json, unless all is as here.

    begin: the token before a text (None: there is none); end: the one after an answer; pad.
    pretrained: V, the tokens of a published vocabulary, which those that we add follow; 0 for a
    vocabulary of our own.
    style: the prompt style (data/styles.py) in which the model was taught to talk, None if that is
    not known; system: its system message where nobody gives one.
    markers: the names that our markers have here, of those that another token has taken.
    """

    begin: str | None = BOS
    end: str = EOS
    pad: str = PAD
    pretrained: int = 0
    style: str | None = "llama2"
    system: str = ""
    markers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def marker(self, name: str) -> str:
        """The name that a marker, as "<image>", has in this vocabulary."""
        return self.markers.get(name, name)


MINI = Roles()


class Tokenizer:
    """Token ids of text; special tokens only by id.

    Raises UserError when the vocabulary lacks a special token that prompts need.
    """

    def __init__(self, raw: tokenizers.Tokenizer, roles: Roles = MINI):
        """Take over `raw`: its setting for special tokens in text is changed."""
        needed = (roles.begin, roles.end, roles.pad, *map(roles.marker, MARKERS))
        missing = [t for t in needed if t is not None and raw.token_to_id(t) is None]
        if missing:
            raise UserError(
                f"the tokenizer has no token {', '.join(missing)}; "
                "add them to its tokenizer.json as special tokens"
            )
        # The library would otherwise turn a typed "</s>" into the end token. Not kept in the file.
        raw.encode_special_tokens = True
        self._raw, self._part = raw, _without_first_space(raw)
        self.roles = roles
        self.bos_id = None if roles.begin is None else raw.token_to_id(roles.begin)
        self.eos_id, self.pad_id = map(raw.token_to_id, (roles.end, roles.pad))

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._raw.get_vocab_size()

    @property
    def padded_vocab_size(self) -> int:
        """`vocab_size` rounded up to a multiple of 64: rows of the embedding table."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def pretrained(self) -> int:
        """V, the tokens of a published vocabulary, which come first; 0 for one of our own."""
        return self.roles.pretrained

    @property
    def style(self) -> str | None:
        """The prompt style in which the model was taught to talk, if that is known."""
        return self.roles.style

    @property
    def system(self) -> str:
        """The system message that the model gets where nobody gives one."""
        return self.roles.system

    @property
    def specials(self) -> Mapping[str, int]:
        """Ids of all special tokens, which no text can become, by name."""
        added = self._raw.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items() if token.special}

    @property
    def spaces_first(self) -> bool:
        """Whether a text gets a space before it, as sentencepiece does."""
        return self._part is not self._raw

    @property
    def sha256(self) -> str:
        """Hash of what `save` writes."""
        return hashlib.sha256("".join(self._files().values()).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as plain characters, without begin and end tokens."""
        return self._raw.encode(text, add_special_tokens=False).ids

    def encode_part(self, text: str) -> list[int]:
        """Ids of `text` as it stands within a longer one: without sentencepiece's space before."""
        return self._part.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        # One by one: the library's own batch call starts threads, which cost more than they save
        # on a few short texts, and which do not survive a fork of the input workers.
        encode = self._raw.encode
        return [encode(text, add_special_tokens=False).ids for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens and the padding of the vocabulary left out."""
        return self._raw.decode([int(i) for i in ids], skip_special_tokens=True)

    def special_ids(self, text: str) -> tuple[int, ...]:
        """Ids of a prompt marker: one special token, or plain text where it is no token.

        Llama-2 itself spells `[INST]` in plain text, the mini tokenizer has a token for it.
        """
        token = self._raw.token_to_id(text)
        return tuple(self.encode(text)) if token is None else (token,)

    def token_values(self) -> dict[str, np.ndarray]:
        """The number each id stands for, NaN elsewhere.

        Returns:
            float32[C] by "kind/place": "coordinate/x0" in 0..1, "seconds/start" in 0..10, and so
            on; C = `padded_vocab_size`. All NaN for a tokenizer that splits numbers.
        """
        return {
            f"{kind}/{place}": self._values(form, _NUMBERS[kind])
            for place, (kind, form, _) in _PLACES.items()
        }

    def _values(self, form: str, numbers: Sequence[str]) -> np.ndarray:
        values = np.full(self.padded_vocab_size, np.nan, np.float32)
        for number in numbers:
            token = self._raw.token_to_id(_spelled(form.format(number)))
            if token is not None:
                values[token] = float(number)
        return values

    def save(self, directory: str | Path) -> None:
        """Write `directory`/tokenizer.json, and its roles if they are not the mini tokenizer's."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ROLES_FILE).unlink(missing_ok=True)
        for name, text in self._files().items():
            (directory / name).write_bytes(text.encode())

    def _files(self) -> dict[str, str]:
        files = {FILE: self._raw.to_str()}
        if self.roles != MINI:
            told = dataclasses.asdict(self.roles)
            if not self.roles.markers:  # as before there were such: hashes stay
                del told["markers"]
            files[ROLES_FILE] = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
        return files

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Read what `save` wrote; UserError when it is missing or not one for us."""
        path = Path(directory) / FILE
        if not path.is_file():
            raise UserError(f"{path}: no such file; expected the tokenizer that training saved")
        roles = _read_roles(Path(directory) / ROLES_FILE)
        try:
            return cls.from_json(path.read_text(encoding="utf-8"), roles)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, text: str, roles: Roles = MINI) -> Tokenizer:
        """The tokenizer of a tokenizer.json's text; UserError when it is not one for us."""
        try:
            raw = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"not a tokenizer in the `tokenizers` format ({error})") from error
        return cls(raw, roles)

    def __reduce__(self):
        """Input workers get the tokenizer as its JSON text."""
        return Tokenizer.from_json, (self._raw.to_str(), self.roles)


def _read_roles(path: Path) -> Roles:
    """The roles that a file tells, or the mini tokenizer's where there is none."""
    if not path.is_file():
        return MINI
    try:
        return Roles(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; take the tokenizer's files from where they were saved"
        ) from error


def _without_first_space(raw: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A tokenizer on the same model that puts no space before a text; `raw` if that puts none."""
    steps = raw.normalizer
    if not isinstance(steps, normalizers.Sequence) or not isinstance(steps[0], normalizers.Prepend):
        return raw
    bare = tokenizers.Tokenizer(raw.model)
    bare.normalizer = normalizers.Sequence([steps[i] for i in range(1, len(steps))])
    return bare


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
        *(_spelled(form.format(n)) for kind, form, _ in _PLACES.values() for n in _NUMBERS[kind]),
        *map(_spelled, sorted(spaced | before_names | set(names) | set(phrases))),
    ]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    # No merges: a piece is one token when it is in the vocabulary, single characters when not.
    raw = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=[], ignore_merges=True))
    raw.pre_tokenizer = pre_tokenizers.Sequence([split, _BYTES])
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


def _spelled(text: str) -> str:
    """`text` in the printable spelling that the vocabulary uses for bytes."""
    return "".join(piece for piece, _ in _BYTES.pre_tokenize_str(text))
