"""A finished training -> the files that the PyTorch world reads (weights/export.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from meerkat_jax.build import Assembly, assemble
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import flatten
from meerkat_jax.data.tokenizer import Tokenizer
from meerkat_jax.weights.convert import DTYPES
from meerkat_jax.weights.export import About, export
from meerkat_jax.weights.restore import read_run


def export_run(
    kind: str,
    workdir: str | Path,
    out: str | Path,
    write_card: Callable[..., object],
    assemble: Callable[[Mapping, Tokenizer], Assembly] = assemble,
    dtype: str = "keep",
    base: str | None = None,
    say: Callable[[str], object] = print,
) -> None:
    """Export the newest checkpoint of `workdir` to the new folder `out`.

    kind: "peft" or "hf"; write_card: `report.model_card.write_card`; assemble: as of `read_run`;
    dtype: of the merged model ("hf"); base: the hub name of the language
    model, for the card and for peft, by default the folder that the store was made from. Raises
    UserError for a run that cannot be read, and what `export` raises.
    """
    workdir = Path(workdir)
    run = read_run(workdir, assemble)
    parts = run.base.store.parts if run.base.store else {}
    if kind == "peft" and "llama" not in parts:
        raise UserError(
            f"{workdir} was trained without published words, so there is nothing that a LoRA "
            "adapter could go on; use --export=hf"
        )
    scores = workdir / "benchmark.json"
    about = About(
        config=run.config,
        step=run.meta.get("step"),
        base=base or parts.get("llama", {}).get("source", {}).get("path", ""),
        hash=run.base.store.hash if run.base.store else "",
        parts=parts,
        data=run.meta.get("data", ""),
        benchmark=json.loads(scores.read_text()) if scores.is_file() else {},
    )
    assembly = run.assembly
    given = set(run.base.given(flatten(run.shapes)))
    export(
        kind, out, assembly.model.llama, run.views(), given, assembly.tokenizer, about, write_card,
        DTYPES[dtype], say,
    )  # fmt: skip
