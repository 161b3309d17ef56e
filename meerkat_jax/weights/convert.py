"""Published checkpoints -> our store: open, plan, stream tensor by tensor, hash, rename into place.

Everything that can be wrong is looked for before the first number is written: the folders and their
files, the configs, the tables of all parts (weights/table.py), the room on the disk. Then each
tensor is read, changed and written to its slice of its leaf, file by file of the source, so that
memory holds one tensor of it, at any model size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.core.errors import UserError, construct, tuples
from meerkat_jax.core.progress import Progress
from meerkat_jax.core.trees import flatten
from meerkat_jax.data.tokenizer import VOCAB_MULTIPLE
from meerkat_jax.models.clap import ClapAudio
from meerkat_jax.models.clip import ClipVision
from meerkat_jax.models.llama import Llama
from meerkat_jax.weights import adapters, clap, clip, import_release, llama, store, table
from meerkat_jax.weights.dropped import check_dropped, dropped
from meerkat_jax.weights.open import open_source
from meerkat_jax.weights.pretrained import check_ids, pretrained_tokenizer
from meerkat_jax.weights.read_release import is_release
from meerkat_jax.weights.source import Source

KINDS: dict[str, tuple[str, ModuleType]] = {  # kind -> part of our tree, its table
    "clip": ("image_tower", clip),
    "clap": ("audio_tower", clap),
    "llama": ("llama", llama),
}
DTYPES = {
    "keep": None,
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": store.DTYPES["BF16"],
}
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Part:
    """One model that is to be converted: what goes where, and how large it gets."""

    name: str
    kind: str
    source: Source
    fields: dict[str, Any]
    pieces: tuple[table.Piece, ...]
    leaves: dict[str, tuple[tuple[int, ...], np.dtype]]

    @property
    def nbytes(self) -> int:
        """Bytes of the leaves."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.leaves.values())


def build(kind: str, fields: Mapping[str, Any], vocab_size: int | None = None) -> nn.Module:
    """The Flax module that a part's fields describe.

    vocab_size: rows of the language model's tokens, those that are added to the published included.
    """
    if kind == "llama":
        vocab_size = vocab_size or fields["pretrained"] + VOCAB_MULTIPLE
        return construct(Llama, llama.as_module(fields) | {"vocab_size": vocab_size}, kind)
    kinds = {"clip": ClipVision, "clap": ClapAudio}
    return construct(kinds[kind], tuples(fields), kind)


def shapes(kind: str, fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of each leaf that a checkpoint fills, by path."""
    module = build(kind, fields)
    if kind == "llama":
        return {path: shape for path, shape in adapters.shapes(module).items() if path != "added"}
    like = {
        "clip": lambda: jnp.zeros((1, module.image_size, module.image_size, 3)),
        "clap": lambda: jnp.zeros((1, module.frames, module.mel_bins)),
    }[kind]
    leaves = jax.eval_shape(lambda key: module.init(key, like())["params"], jax.random.key(0))
    return {path: leaf.shape for path, leaf in flatten(leaves).items()}


def plan_part(kind: str, path: str | Path, dtype: np.dtype | None) -> Part:
    """Open the checkpoint at `path` and see that it is whole and ours to convert."""
    source = open_source(path, kind)
    source = llama.as_loaded(source) if kind == "llama" else source
    name, module = KINDS[kind]
    fields = module.fields(source.config, str(source.path))
    tensors, wanted = {n: t.shape for n, t in source.tensors.items()}, shapes(kind, fields)
    rows = module.rows(fields)
    pieces = table.plan(rows, tensors, wanted, str(source.path))
    notes = (*source.notes, *check_dropped(rows, source))
    source = dataclasses.replace(source, notes=notes)
    leaves = _leaves(pieces, source, wanted, dtype)
    return Part(name, kind, source, fields, tuple(pieces), leaves)


def _leaves(pieces: Sequence[table.Piece], source: Source, targets: Mapping, dtype) -> dict:
    """Shape and dtype of each leaf: `dtype`, or that of its tensors, float32 where they differ."""
    found: dict[str, set[np.dtype]] = {}
    for piece in pieces:
        own = np.dtype(source.tensors[piece.source].dtype)
        if not jnp.issubdtype(own, jnp.floating):
            raise UserError(
                f"{source.path}: {piece.source} is of {own}, expected floating-point numbers; "
                "take the checkpoint that it was quantised from"
            )
        found.setdefault(piece.target, set()).add(own)

    def kind(path: str) -> np.dtype:
        own = found[path]
        return dtype or (next(iter(own)) if len(own) == 1 else np.dtype(np.float32))

    return {path: (tuple(shape), kind(path)) for path, shape in targets.items()}


def convert(
    paths: Mapping[str, str | Path],
    out: str | Path,
    dtype: str = "keep",
    tokenizer: str | Path | None = None,
    say: Callable[[str], object] = print,
) -> store.Store:
    """Make a store at `out` of checkpoints, by kind: {"clip": DIR, "clap": DIR, "llama": DIR}.

    dtype: "keep" each tensor's own, or "float32", "float16", "bfloat16". tokenizer: where it lies
    if not with the language model. Three kinds in one folder of the authors' code bring what it
    trained along. Raises one UserError for whatever is wrong with the input, for `out` existing,
    and for a full disk; nothing that looks like a store is left then.
    """
    out = Path(out)
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    parts = plan_parts(paths, DTYPES[dtype])
    for part in parts.values():
        say(summary(part))
    spoken = None
    if "llama" in parts:
        where = tokenizer or paths["llama"]
        spoken = pretrained_tokenizer(where, parts["llama"].fields["pretrained"], say)
    extra = _trained_elsewhere(paths, parts, spoken)
    with store.staged(out) as folder:
        store.check_space(folder, sum(part.nbytes for part in parts.values()))
        writers = [_write(part, folder, say) for part in parts.values()]
        told = {part.name: _write_part(part, say) for part in parts.values()}
        if extra is not None:
            writer, told[import_release.NAME] = write_extra(folder, *extra)
            writers.append(writer)
        if spoken is not None:
            spoken.save(folder)
        others = sorted(file.name for file in folder.iterdir() if file.suffix == ".json")
        store.write_record(folder, writers, told, others)
    made = store.Store.open(out)
    size = sum(leaf.nbytes for leaf in made.leaves.values()) / GIB
    say(f"{out}: {size:.2f} GiB, hash {made.hash[:16]}")
    return made


def plan_parts(paths: Mapping[str, str | Path], dtype: np.dtype | None) -> dict[str, Part]:
    """`plan_part` of each kind; one UserError for all that is wrong with any of them."""
    if not paths:
        raise UserError("nothing to convert; give --clip=DIR, --clap=DIR or --llama=DIR")
    parts, wrong = {}, []
    for kind, path in paths.items():
        try:
            parts[kind] = plan_part(kind, path, dtype)
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("; and ".join(wrong))
    return parts


def _trained_elsewhere(paths: Mapping, parts: Mapping[str, Part], tokenizer) -> tuple | None:
    """What a folder of the authors' code has beside the published parts, or None."""
    folders = {Path(path) for path in paths.values()}
    if len(folders) > 1 or len(parts) < len(KINDS) or not is_release(*folders):
        return None
    check_ids(tokenizer)
    rows = tokenizer.padded_vocab_size
    towers = {kind: build(kind, part.fields, rows) for kind, part in parts.items()}
    return import_release.import_release(*folders, towers)


def write_extra(folder: Path, options: dict, leaves: dict, files: tuple) -> tuple:
    """(writer, what store.json keeps) of the part "meerkat"."""
    kinds = {path: (leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
    writer = store.Writer(folder / f"{import_release.NAME}.safetensors", kinds)
    for path, leaf in leaves.items():
        writer.put(path, leaf)
    source = {"path": str(files[0].parent), "files": {f.name: store.sha256(f) for f in files}}
    return writer, {"kind": "release", "config": options, "source": source}


def inspect(paths: Mapping[str, str | Path], say: Callable[[str], object] = print) -> None:
    """Print of each checkpoint its tensors, and beside each the leaf that it becomes."""
    for part in plan_parts(paths, None).values():
        say(summary(part))
        places = {piece.source: piece for piece in part.pieces}
        width = max(map(len, part.source.tensors))
        for name, tensor in part.source.tensors.items():
            told = f"{name:<{width}}  {tensor.dtype}{list(tensor.shape)}"
            say(f"{told}  ->  {_place(places[name], part) if name in places else '(not needed)'}")


def _place(piece: table.Piece, part: Part) -> str:
    """A leaf, or a layer of it, with its dtype and shape."""
    shape, dtype = part.leaves[piece.target]
    layer = "" if piece.index is None else f"[{piece.index}]"
    own = shape if piece.index is None else shape[1:]
    return f"{part.name}/{piece.target}{layer}  {dtype}{list(own)}"


def summary(part: Part) -> str:
    """A line about a part: what it is, tensors, numbers, bytes; and one for each note."""
    numbers = sum(math.prod(shape) for shape, _ in part.leaves.values())
    gone = dropped(KINDS[part.kind][1].rows(part.fields), part.source.tensors)
    left = [f"{name} ({len(found)})" for name, found in gone.items()]
    kinds = sorted({str(dtype) for _, dtype in part.leaves.values()})
    return (
        f"{part.name}: {part.kind} of {part.source.path}, {len(part.pieces)} tensors "
        f"(not needed: {', '.join(left) or 'none'}) -> {len(part.leaves)} leaves, "
        f"{numbers / 1e6:,.1f} M numbers, {part.nbytes / GIB:.2f} GiB of {', '.join(kinds)}"
        + "".join(f"\n{part.name}: note: {note}" for note in part.source.notes)
    )


def _write(part: Part, folder: Path, say: Callable) -> store.Writer:
    """All pieces of a part, in the order of the files that they are read from."""
    writer = store.Writer(
        folder / f"{part.name}.safetensors",
        {f"{part.name}/{path}": leaf for path, leaf in part.leaves.items()},
    )
    tensors = part.source.tensors
    order = sorted(part.pieces, key=lambda piece: str(tensors[piece.source].file))
    progress = Progress(f"{part.name}: tensors", len(order), say=say)
    for done, piece in enumerate(order, 1):
        value = piece.change.forward(tensors[piece.source].read())
        writer.put(f"{part.name}/{piece.target}", value, piece.index)
        progress.report(done)
    return writer


def _write_part(part: Part, say: Callable) -> dict[str, Any]:
    """What store.json keeps of a part."""
    total = sum(file.stat().st_size for file in part.source.files)
    say(f"{part.name}: hashing the source, {total / GIB:.2f} GiB")
    return {
        "kind": part.kind,
        "config": part.fields,
        "published": dict(part.source.config),
        "source": {
            "path": str(part.source.path),
            "files": {file.name: store.sha256(file) for file in part.source.files},
        },
    }
