"""The tokenizer of a published language model, with our markers behind its vocabulary.

    tokenizer.model   sentencepiece (Llama 1 and 2, TinyLlama), read exactly; or, in Meta's own
                      Llama 3, lines of a piece in base64 and its rank
    tokenizer.json    the `tokenizers` format (SmolLM2, Llama 3)
    *.gguf            the vocabulary that lies beside the weights

are looked for in this order; the small JSON files beside them tell what the tokens are for, and the
chat template in whose style the model was tuned (weights/tokenizer_config.py). No id of the
published vocabulary is touched: behind its V tokens stand

    V        V+1       V+2      V+3       V+4      V+5       V+6
    <image>  </image>  <audio>  </audio>  <video>  </video>  <pad>

(for Llama-2 32000 to 32006) in the order of the authors' code, llm_trainer.py. Our prompts use the
first four and <pad>; the video markers keep the release's numbers right. What a base has of these
is its own: a token for padding, or a pair of markers. A name that is taken otherwise gets a number
(`<image_1>`), which the tokenizer's roles keep. Tokens of the base behind its own table's rows,
as a `<pad>` that was added without a row, keep their ids; ours follow.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from meerkat_jax.core.errors import UserError, sample
from meerkat_jax.data.tokenizer import MARKERS, PAD, Tokenizer
from meerkat_jax.weights.bpe import (
    CONTROL,
    NORMAL,
    byte_tokenizer,
    merges,
    sentencepiece_tokenizer,
    spelled_bytes,
)
from meerkat_jax.weights.gguf_file import read_head
from meerkat_jax.weights.gguf_values import vocabulary
from meerkat_jax.weights.tokenizer_config import TokenizerConfig, beside, roles_of

MODEL, JSON = "tokenizer.model", "tokenizer.json"
PAIRS = (*MARKERS, "<video>", "</video>")
ADDED = (*PAIRS, PAD)
BPE = 2  # sentencepiece's number of the model type
LLAMA3 = (
    "<|begin_of_text|>", "<|end_of_text|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(4)),
    "<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(5, 251)),
)  # fmt: skip


def pretrained_tokenizer(
    path: str | Path, rows: int | None = None, say: Callable[[str], object] = print
) -> Tokenizer:
    """The tokenizer of the model at `path`, a folder or a .gguf file, with our markers added.

    rows: V, of the published token table; default: what config.json says, or as many as there are
    tokens. Where the table has more rows than there are tokens, tokens without text fill them up.
    say: is told which tokens are the base's own.

    Raises:
        UserError: naming the file: none of the above, broken, of a kind that cannot be had exactly,
            or not the one of this model.
    """
    file = _find(Path(path))
    told = TokenizerConfig() if file.suffix == ".gguf" else beside(file.parent)
    read = {".gguf": _gguf, ".json": _published}.get(file.suffix, _model)
    try:
        raw, told = read(file, told)
        return _with_markers(raw, told, rows, say)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def check_ids(tokenizer: Tokenizer) -> None:
    """UserError unless our tokens have the ids V, V+1, ... that the authors' code gives them."""
    names = [*map(tokenizer.roles.marker, PAIRS), tokenizer.roles.pad]
    ids = [tokenizer.specials[name] for name in names]
    expected = list(range(tokenizer.pretrained, tokenizer.pretrained + len(ADDED)))
    if ids != expected:
        raise UserError(
            f"tokens {', '.join(names)} have ids {ids}, expected {expected} as the authors' code "
            "has them; name the tokenizer of Llama-2 itself by --tokenizer"
        )


def _find(path: Path) -> Path:
    files = [path / MODEL, path / JSON, *sorted(path.glob("*.gguf"))] if path.is_dir() else [path]
    found = [file for file in files if file.is_file()]
    if not found:
        raise UserError(
            f"{path} has no tokenizer; expected a folder with {MODEL} or {JSON}, or a .gguf file: "
            "take it from where the weights are"
        )
    return found[0]


def _with_markers(
    raw: tokenizers.Tokenizer, told: TokenizerConfig, rows: int | None, say: Callable[[str], object]
) -> Tokenizer:
    count = raw.get_vocab_size()
    known = max([count, *(i + 1 for i in told.added)])
    rows = rows or told.rows or known
    special, pieces = _special(raw), raw.get_vocab(with_added_tokens=False)
    ordinary = 1 + max((i for piece, i in pieces.items() if piece not in special), default=0)
    if ordinary > rows:
        raise UserError(
            f"{ordinary} tokens, but the model's table has {rows} rows; take the tokenizer that "
            "was published with these weights"
        )
    _add(raw, [told.added.get(i, f"<unused_{i}>") for i in range(count, max(known, rows))])
    if known > rows:
        behind = [raw.id_to_token(i) for i in range(rows, known)]
        raw.add_special_tokens(behind)  # no text becomes one
        say(f"tokens: the base has no rows for {sample(behind)}; they are new, as our markers")
    pad = _own_pad(raw, told, rows)
    markers, fresh = _own_markers(raw, told)
    if pad is None:
        fresh.append(_free(raw, PAD))
    else:
        say(f"tokens: padding is the base's own {pad}")
    own = [name for name in PAIRS if markers[name] not in fresh]
    if own:
        say(f"tokens: markers that are the base's own: {', '.join(markers[name] for name in own)}")
    renamed = {name: new for name, new in markers.items() if new != name}
    if renamed:
        told_names = ", ".join(f"{new} for {name}" for name, new in renamed.items())
        say(f"tokens: the base's vocabulary has these names already, ours are {told_names}")
    _add(raw, fresh)
    roles = roles_of(raw, told, rows, pad or fresh[-1])
    return Tokenizer(raw, dataclasses.replace(roles, markers=renamed))


def _special(raw: tokenizers.Tokenizer) -> set[str]:
    return {token.content for token in raw.get_added_tokens_decoder().values() if token.special}


def _add(raw: tokenizers.Tokenizer, names: Sequence[str]) -> None:
    """Add special tokens behind all others; UserError if one does not get the next id."""
    count = raw.get_vocab_size()
    raw.add_special_tokens(list(names))
    for i, name in enumerate(names, count):
        if raw.token_to_id(name) != i:
            raise UserError(
                f"token {name} has id {raw.token_to_id(name)}, expected {i}: the files beside the "
                "tokenizer disagree with it, or its ids have gaps; take all of them from where the "
                "weights were published"
            )


def _own_pad(raw: tokenizers.Tokenizer, told: TokenizerConfig, rows: int) -> str | None:
    """The base's token for padding, if it has one with no other part to play."""
    for name in (told.pad, PAD):
        if name is None or raw.token_to_id(name) is None or name in (told.template or ""):
            continue
        roles = roles_of(raw, told, rows, name)
        if name not in (roles.begin, roles.end) and (name == told.pad or name in _special(raw)):
            raw.add_special_tokens([name])  # no text becomes padding
            return name
    return None


def _own_markers(
    raw: tokenizers.Tokenizer, told: TokenizerConfig
) -> tuple[dict[str, str], list[str]]:
    """({marker: its name here}, the names that are to be added).

    A pair of special tokens that the base has is taken. Of one alone the meaning is another: the
    `<image>` of LLaVA is where an image's features go, and its row was never trained.
    """
    special, names, fresh = _special(raw), {}, []
    for pair in zip(PAIRS[::2], PAIRS[1::2], strict=True):
        here = [told.markers.get(name, name) for name in pair]
        if not special.issuperset(here):
            here = [_free(raw, name, pair) for name in pair]
            fresh += here
        names |= dict(zip(pair, here, strict=True))
    return names, fresh


def _free(raw: tokenizers.Tokenizer, name: str, pair: Sequence[str] = ()) -> str:
    """`name`, or with the first number, as "<image_1>", under which all of `pair` are free."""

    def numbered(name: str, number: int) -> str:
        return f"{name[:-1]}_{number}>" if number else name

    for number in itertools.count():
        if all(raw.token_to_id(numbered(one, number)) is None for one in (name, *pair)):
            return numbered(name, number)
    raise AssertionError("numbers do not end")


# ---- readers: file, what lies beside it -> the library's tokenizer, what is known of it ----


def _gguf(file: Path, told: TokenizerConfig) -> tuple[tokenizers.Tokenizer, TokenizerConfig]:
    try:
        v = vocabulary(file, read_head(file).values)
    except ValueError as error:
        raise UserError(str(error)) from error
    begin = v.pieces[v.bos] if v.bos is not None and (v.add_bos or v.pre == "llama-bpe") else None
    end = None if v.eos is None else v.pieces[v.eos]
    pad = None if v.pad in (None, v.bos, v.eos, v.unknown) else v.pieces[v.pad]
    told = TokenizerConfig(end=end, pad=pad, template=v.chat_template)
    if v.kind == "llama":
        raw = sentencepiece_tokenizer(v.pieces, v.scores, v.types, begin, v.add_space_prefix)
    elif v.kind == "gpt2":
        pairs = [tuple(pair.split(" ", 1)) for pair in v.merges]
        raw = byte_tokenizer(v.pieces, pairs, v.types, v.pre, begin)
    else:
        raise UserError(f"tokenizer.ggml.model is {v.kind!r}; expected 'llama' or 'gpt2'")
    return raw, told


def _model(file: Path, told: TokenizerConfig) -> tuple[tokenizers.Tokenizer, TokenizerConfig]:
    data = file.read_bytes()
    first = data.split(b"\n", 1)[0].split(b" ")
    return _ranks(data, told) if len(first) == 2 and first[1].isdigit() else _sentences(data, told)


def _sentences(data: bytes, told: TokenizerConfig) -> tuple[tokenizers.Tokenizer, TokenizerConfig]:
    """A sentencepiece model, as the package of that name describes it."""
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece.sentencepiece_model_pb2 import ModelProto
    except ImportError as error:
        raise UserError(
            f"reading it needs the packages sentencepiece and protobuf ({error}): "
            "pip install sentencepiece protobuf"
        ) from None
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise UserError(f"not a sentencepiece model ({error}); download it again") from None
    trained, spaces = model.trainer_spec, model.normalizer_spec
    wrong = {
        "no trainer_spec or normalizer_spec; the file is cut short, download it again": not (
            model.HasField("trainer_spec") and model.HasField("normalizer_spec")
        ),
        f"model_type is {trained.model_type}, expected {BPE} (BPE)": trained.model_type != BPE,
        f"text is normalised by {spaces.name!r}, expected not at all": spaces.precompiled_charsmap,
        "remove_extra_whitespaces is set, expected not": spaces.remove_extra_whitespaces,
        "escape_whitespaces is not set": not spaces.escape_whitespaces,
        "treat_whitespace_as_suffix is set, expected not": trained.treat_whitespace_as_suffix,
    }
    if found := next((message for message, is_so in wrong.items() if is_so), None):
        raise UserError(f"{found}; a {JSON} is read instead where this file is not there")
    pieces = [piece.piece for piece in model.pieces]
    begin = trained.bos_piece if trained.bos_id >= 0 and told.begins else None
    raw = sentencepiece_tokenizer(
        pieces,
        [piece.score for piece in model.pieces],
        [piece.type for piece in model.pieces],
        begin,
        spaces.add_dummy_prefix,
    )
    end = trained.eos_piece if trained.eos_id >= 0 else None
    pad = trained.pad_piece if trained.pad_id >= 0 else None
    return raw, told.filled(end=end, pad=pad, style="llama2" if told.metas else None)


def _ranks(data: bytes, told: TokenizerConfig) -> tuple[tokenizers.Tokenizer, TokenizerConfig]:
    """Llama 3 in Meta's own form: each line a piece in base64 and its rank."""
    try:
        lines = [line.split() for line in data.splitlines()]
        ranked = {int(rank): base64.b64decode(piece, validate=True) for piece, rank in lines}
        pieces = [ranked[rank] for rank in range(len(lines))]
    except (ValueError, KeyError, binascii.Error) as error:
        raise UserError(
            f"not lines of a piece and its rank ({error!r}); download it again"
        ) from None
    letters = spelled_bytes()
    spelled = ["".join(letters[byte] for byte in piece) for piece in pieces]
    types = [NORMAL] * len(spelled) + [CONTROL] * len(LLAMA3)
    raw = byte_tokenizer([*spelled, *LLAMA3], merges(spelled), types, "llama-bpe", LLAMA3[0])
    return raw, told.filled(style="llama3")


def _published(file: Path, told: TokenizerConfig) -> tuple[tokenizers.Tokenizer, TokenizerConfig]:
    """A tokenizer.json, its own settings for padding and for special tokens in text undone."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["model"]["type"] != "BPE":
            raise UserError(f"model.type is {data['model']['type']!r}, expected 'BPE'")
        raw = tokenizers.Tokenizer.from_str(json.dumps(_safe(data, told)))
        raw.add_special_tokens([t for t in sorted(told.special) if raw.token_to_id(t) is not None])
    except UserError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"not a tokenizer ({error!r}); download it again") from error
    return raw, told


def _safe(data: dict[str, Any], told: TokenizerConfig) -> Mapping[str, Any]:
    """The file's content so that no text becomes a special token, and spaces are kept exactly."""
    before = data.get("pre_tokenizer") or {}
    spaced = before.get("type") == "Metaspace" and not before.get("split", True)
    if spaced and not data.get("normalizer"):
        # As sentencepiece has it: this one forgets the space before a text that has one already.
        steps = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
        if before.get("prepend_scheme") != "never":
            steps.insert(0, {"type": "Prepend", "prepend": "▁"})
        data |= {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}
    sentences = "Prepend" in json.dumps(data.get("normalizer"))
    named = told.special | set(re.findall(r"<\|\w+\|>", told.template or ""))
    for token in data["added_tokens"]:
        token["special"] |= sentences or token["content"] in named
    special = {token["content"] for token in data["added_tokens"] if token["special"]} | named
    pairs = (
        pair.split(" ", 1) if isinstance(pair, str) else pair for pair in data["model"]["merges"]
    )
    data["model"]["merges"] = [pair for pair in pairs if "".join(pair) not in special]
    return data | {"truncation": None, "padding": None}
