"""From a resolved config to its data set and its model, published parts or the mini's.

`data.kind` is "mini", the embedded data set, which is rendered into the cache folder when it is not
there yet, or "avfit", a mixture of folders that data/build has built. `initialisers` is
"from_scratch" for a model that has no published weights to start from, or "plain".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meerkat_jax.build import Assembly, assemble
from meerkat_jax.core.errors import UserError, construct
from meerkat_jax.data.dataset import DataSet, check_name
from meerkat_jax.data.mixture import mix
from meerkat_jax.data.split import read_manifest
from meerkat_jax.data.tokenizer import Tokenizer
from meerkat_jax.mini import templates
from meerkat_jax.mini.build import MiniConfig, build
from meerkat_jax.mini.initialisers import INITIALISERS, start_embedding
from meerkat_jax.mini.tokenizer import build_mini_tokenizer, words

HELD_OUT = {"mini": "compositions", "avfit": "test"}  # the split that is evaluated during training
KINDS = tuple(HELD_OUT)


def open_data(data: Mapping, cache: Path, tokenizer: Tokenizer | None = None) -> DataSet:
    """The data set of `config["data"]`, below `cache`; the same words give the same data set.

    `tokenizer` is that of published weights; without, one is made of the data's own words.

    Raises UserError for an unknown kind or key, and when the cache folder cannot be used.
    """
    folder = open_folder(data, cache)
    classes = tuple(read_manifest(folder)["classes"])
    if tokenizer is None:
        tokenizer = build_mini_tokenizer(words(folder), classes, templates.PHRASES)
    return DataSet(folder, classes, tokenizer, Path(cache))


def open_folder(data: Mapping, cache: Path, trained: str | None = None) -> Path:
    """The folder alone, rendered now if it is not there; that of a mixture names its sources.

    UserError when it is not the folder named `trained` (None: any is).
    """
    if data["kind"] not in KINDS:
        raise UserError(f"data.kind {data['kind']!r} is unknown; there is: {', '.join(KINDS)}")
    if data["kind"] == "avfit":
        folder = mix(Path(data["root"]).expanduser(), data["sources"], cache)
        check_name(folder, trained)
        return folder
    settings = {"sample_rate": data["sample_rate"], **data["mini"]}
    try:
        return build(construct(MiniConfig, settings, "data.mini"), cache, trained=trained)
    except OSError as error:
        raise UserError(
            f"data folder {cache}: {error.strerror or error}; name another with --data_dir"
        ) from error


def build_model(config: Mapping, tokenizer: Tokenizer) -> Assembly:
    """The model of `config`; UserError for an unknown key or value."""
    kind = config.get("initialisers", "plain")
    if kind == "from_scratch":
        return assemble(config, tokenizer, INITIALISERS, start_embedding)
    if kind != "plain":
        raise UserError(f"config.initialisers is {kind!r}; expected 'plain' or 'from_scratch'")
    return assemble(config, tokenizer)


# What other keys a value needs, and where there is a config that has them.
NEEDED = {
    ("data.kind", "mini"): (("data.mini",), "experiments/avfit.py:mini and :small have it"),
    ("data.kind", "avfit"): (
        ("data.root", "data.sources"),
        "experiments/avfit.py:7b has them, and experiments/forkme.py:FOLDER,MODEL for own data",
    ),
    ("base", None): (
        ("model.image.image_size", "model.llama.width"),
        "without a store of weights the config gives all sizes, as experiments/avfit.py:mini does",
    ),
}


def check_needed(config: Mapping[str, Any]) -> None:
    """UserError when a value asks for keys that the config has not (`NEEDED`)."""
    for (key, value), (asked, where) in NEEDED.items():
        missing = [name for name in asked if _get(config, name) is None]
        if _get(config, key) == value and missing:
            raise UserError(
                f"config.{key} is {value!r}, which needs config.{' and config.'.join(missing)}, "
                f"and this config has none; {where}"
            )


def _get(config: Mapping[str, Any], path: str) -> Any:
    """What lies at "a.b"; None where nothing does."""
    node: Any = config
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
