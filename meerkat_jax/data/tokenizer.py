"""Text to token ids and back.

`Tokenizer` is a thin class over `tokenizers.Tokenizer`. Text from a user or a data set can never
become a special token: those enter by id only (`meerkat_jax.data.prompt`). What a tokenizer calls
its begin, end and padding tokens is told by `Roles`; those of published models are made in
`meerkat_jax.weights.pretrained`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import normalizers, pre_tokenizers

from meerkat_jax.core.errors import UserError

FILE = "tokenizer.json"
ROLES_FILE = "tokenizer_roles.json"
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
MARKERS = ("<image>", "</image>", "<audio>", "</audio>")
CHAT = ("[INST]", "[/INST]")
SPECIALS = ("<unk>", BOS, EOS, PAD, *MARKERS, *CHAT)
VOCAB_MULTIPLE = 64
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


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


OWN = Roles()  # of a vocabulary of our own


class Tokenizer:
    """Token ids of text; special tokens only by id.

    Raises UserError when the vocabulary lacks a special token that prompts need.
    """

    def __init__(self, raw: tokenizers.Tokenizer, roles: Roles = OWN):
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

    def token_id(self, text: str) -> int | None:
        """The id of the one token that is all of `text`, None where there is none."""
        return self._raw.token_to_id(spelled(text))

    def save(self, directory: str | Path) -> None:
        """Write `directory`/tokenizer.json, and its roles if they are not the mini tokenizer's."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ROLES_FILE).unlink(missing_ok=True)
        for name, text in self._files().items():
            (directory / name).write_bytes(text.encode())

    def _files(self) -> dict[str, str]:
        files = {FILE: self._raw.to_str()}
        if self.roles != OWN:
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
    def from_json(cls, text: str, roles: Roles = OWN) -> Tokenizer:
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
        return OWN
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


def spelled(text: str) -> str:
    """`text` in the printable spelling that byte-level vocabularies use for bytes."""
    return "".join(piece for piece, _ in BYTES.pre_tokenize_str(text))
