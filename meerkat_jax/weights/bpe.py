"""Published vocabularies as `tokenizers.Tokenizer`: sentencepiece's BPE, and BPE on bytes.

Both kinds join, again and again, the two neighbours whose union is the best piece of the
vocabulary. A sentencepiece model ranks its pieces by score, Llama-3's by their order; as the
library wants to know which pairs may be joined, every way to cut a piece into two pieces is listed,
the best piece's first. For sentencepiece the text gets a space before it and each space is written
"▁" (U+2581), nothing else is changed: ids are then those of sentencepiece itself, for odd spacing
and unknown characters (spelled in bytes) too.

Sources: Kudo & Richardson 2018 and github google/sentencepiece, sentencepiece_model.proto (what a
model says of itself); the names and patterns of `SPLITS` as in llama.cpp's GGUF files, the patterns
those of GPT-2, SmolLM2 and Llama 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from meerkat_jax.core.errors import UserError

NORMAL, UNKNOWN, CONTROL, OWN, UNUSED, BYTE = range(1, 7)  # types of a piece, in both file formats
SPACE = "▁"
_MARKER = re.compile(r"▁?[<\[].+[>\]]")
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How text is split before BPE; the second says whether a whole piece is taken without joining.
SPLITS = {
    "gpt-2": (_GPT2, False),
    "smollm": (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2]),
        False,
    ),
    "llama-bpe": (
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(_LLAMA3), behavior="isolated"), _BYTES]
        ),
        True,
    ),
}


def sentencepiece_tokenizer(
    pieces: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    begin: str | None,
    space_first: bool = True,
) -> tokenizers.Tokenizer:
    """The tokenizer of a sentencepiece BPE model; control pieces become special tokens.

    Raises UserError for pieces of types that cannot be had exactly.
    """
    _check_types(pieces, types)
    normal = [i for i, kind in enumerate(types) if kind == NORMAL]
    ranked = sorted(normal, key=lambda i: -scores[i])
    unknown = [pieces[i] for i, kind in enumerate(types) if kind == UNKNOWN]
    raw = tokenizers.Tokenizer(
        models.BPE(
            vocab=_numbered(pieces),
            merges=merges([pieces[i] for i in ranked]),
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=BYTE in types,
        )
    )
    steps = [normalizers.Prepend(SPACE)] if space_first else []
    raw.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    ends = [decoders.Strip(" ", 1, 0)] if space_first else []
    raw.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    return _finished(raw, pieces, types, begin)


def byte_tokenizer(
    pieces: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    types: Sequence[int],
    split: str,
    begin: str | None,
) -> tokenizers.Tokenizer:
    """The tokenizer of a BPE on bytes, `pairs` in the order in which they are to be joined.

    pieces, pairs: in GPT-2's printable spelling of bytes. Raises UserError for an unknown `split`.
    """
    if split not in SPLITS:
        raise UserError(f"tokenizer.ggml.pre is {split!r}; expected one of {', '.join(SPLITS)}")
    before, whole = SPLITS[split]
    model = models.BPE(vocab=_numbered(pieces), merges=list(pairs), ignore_merges=whole)
    raw = tokenizers.Tokenizer(model)
    raw.pre_tokenizer, raw.decoder = before, decoders.ByteLevel()
    return _finished(raw, pieces, types, begin)


def merges(ranked: Sequence[str]) -> list[tuple[str, str]]:
    """Every way to cut one of the pieces in two others; the first piece's first."""
    known = set(ranked)
    return [
        (piece[:i], piece[i:])
        for piece in ranked
        for i in range(1, len(piece))
        if piece[:i] in known and piece[i:] in known
    ]


def spelled_bytes() -> Mapping[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}


def _numbered(pieces: Sequence[str]) -> dict[str, int]:
    ids = {piece: i for i, piece in enumerate(pieces)}
    if len(ids) < len(pieces):
        twice = next(piece for i, piece in enumerate(pieces) if ids[piece] != i)
        raise UserError(f"the vocabulary has {twice!r} twice; expected each piece once")
    return ids


def _check_types(pieces: Sequence[str], types: Sequence[int]) -> None:
    """Pieces that were added must be markers: sentencepiece would find them in text, we do not."""
    for i, (piece, kind) in enumerate(zip(pieces, types, strict=True)):
        marker = kind == OWN and _MARKER.fullmatch(piece)
        if marker or kind in (NORMAL, UNKNOWN, CONTROL, BYTE):
            continue
        what = "was added by a user" if kind == OWN else f"is of type {kind}"
        raise UserError(
            f"piece {i}, {piece!r}, {what}; expected ordinary, unknown, control and byte pieces, "
            "and markers as in <name> or [name]"
        )


def _finished(
    raw: tokenizers.Tokenizer, pieces: Sequence[str], types: Sequence[int], begin: str | None
) -> tokenizers.Tokenizer:
    special = [p for p, kind in zip(pieces, types, strict=True) if kind in (UNKNOWN, CONTROL, OWN)]
    raw.add_special_tokens(special)
    if begin is not None:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, raw.token_to_id(begin))]
        )
    return raw
