"""What training made, for the PyTorch world: a LoRA adapter, or a whole language model of the hub.

The new folder holds, with --export=peft,

    adapter_config.json, adapter_model.safetensors             what LoRA changed

with --export=hf,

    config.json, generation_config.json, model.safetensors     LoRA merged into its base

and with both

    meerkat_modules.safetensors, meerkat_config.json           what no base gives (modules.py)
    tokenizer.json, tokenizer_config.json                      with the marker tokens
    README.md                                                  the model card
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.tokenizer import FILE, Tokenizer
from meerkat_jax.models.llama import Llama
from meerkat_jax.weights.adapters import base_digest, write_peft
from meerkat_jax.weights.gguf_file import read_head
from meerkat_jax.weights.merged import write_hf
from meerkat_jax.weights.modules import LLAMA, write_modules
from meerkat_jax.weights.store import staged
from meerkat_jax.weights.tokenizer_config import beside

KINDS = ("peft", "hf")


@dataclasses.dataclass(frozen=True)
class About:
    """Where an export comes from, for its card.

    config: the run's, resolved. parts: those of the store that it began from, as of `Store.parts`,
    and `hash` its hash; base: the hub name or the folder of its language model, "" for none. step:
    of training. benchmark: what benchmark.json holds.
    """

    config: Mapping[str, Any]
    step: int | None = None
    base: str = ""
    hash: str = ""
    parts: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    data: str = ""
    benchmark: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def published(self) -> Mapping[str, Any] | None:
        """The hub config of the base, if there is one."""
        return self.parts.get("llama", {}).get("published")

    @property
    def base_digest(self) -> str:
        """One hash of the files that the base was converted from, "" where it is not known."""
        return base_digest(self.parts.get("llama", {}).get("source", {}).get("files", {}))

    @property
    def source(self) -> Path | None:
        """The folder or file of the base, if there is one and it is still there."""
        path = self.parts.get("llama", {}).get("source", {}).get("path")
        return Path(path) if path and Path(path).exists() else None

    def template(self) -> str | None:
        """The base's chat template, if it can be found."""
        if self.source is None:
            return None
        if self.source.suffix == ".gguf":
            return read_head(self.source).values.get("tokenizer.chat_template")
        return beside(self.source).template if self.source.is_dir() else None


def export(
    kind: str,
    out: str | Path,
    model: Llama,
    params: Mapping[str, Any],
    given: Collection[str],
    tokenizer: Tokenizer,
    about: About,
    write_card: Callable[..., object],
    dtype: Any = None,
    say: Callable[[str], object] = print,
) -> None:
    """Write what training made to the new folder `out`, whole or not at all.

    kind: one of `KINDS`. model: the decoder with its LoRA. params: all of Meerkat by path, as
    arrays or as views of a store ("llama/layers/q/kernel"). given: the paths of the leaves that are
    as the base has them. tokenizer: that of training. write_card:
    `report.model_card.write_card`. dtype: of the merged model, None that of its embedding. Raises
    UserError for an unknown kind, for `out` existing, for a full disk, and what
    `write_peft` and `write_hf` raise.
    """
    if kind not in KINDS:
        raise UserError(f"--export={kind} is unknown; use one of {', '.join(KINDS)}")
    mine = {path.removeprefix(LLAMA): x for path, x in params.items() if path.startswith(LLAMA)}
    with staged(Path(out)) as folder:
        if kind == "peft":
            changed = {path: x for path, x in mine.items() if LLAMA + path not in given}
            write_peft(folder, model, changed, about.base, about.base_digest)
        else:
            write_hf(folder, model, mine, _ids(tokenizer), dtype, about.published, say=say)
        write_tokenizer(folder, tokenizer, about.template())
        kept = write_modules(folder, params, given, about.config)
        write_card(folder, kind, model, kept, about)
    size = sum(file.stat().st_size for file in Path(out).iterdir())
    say(f"{out}: {size / 2**30:.2f} GiB; README.md says what is in it and how to load it")


def write_tokenizer(folder: Path, tokenizer: Tokenizer, template: str | None = None) -> None:
    """Write tokenizer.json and tokenizer_config.json, as transformers' AutoTokenizer reads them.

    template: the chat template, if there is one.
    """
    tokenizer.save(folder)
    raw = tokenizers.Tokenizer.from_file(str(folder / FILE))
    settings = {f"{name}_token": raw.id_to_token(i) for name, i in _ids(tokenizer).items()}
    # This class takes tokenizer.json as it is; Llama's own builds one anew, with other spaces.
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    settings |= {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Of the tokens that have a part to play; some models have none to begin a text."""
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    return {name: number for name, number in ids.items() if number is not None}
