"""Published sizes and a vocabulary where a config's weights are not on disk.

Enough to know how large everything is, and no more: words are all alike, so the few tokens of the
prompt around image and audio may be some more or fewer than the published tokenizer makes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.tokenizer import BOS, EOS, Roles, Tokenizer
from meerkat_jax.mini import templates
from meerkat_jax.mini.tokenizer import build_mini_tokenizer
from meerkat_jax.weights.base import Base
from meerkat_jax.weights.pretrained import ADDED

PIECES = 32000  # of Llama-2
# Configs in which what is not said is as published; forkme.py's "7b-mine" is one of them.
PUBLISHED = ("7b", "two_stage", "release")
IMAGE_SIZE = 224  # of CLIP ViT-B/16


def sized(config: Mapping[str, Any]) -> tuple[dict[str, Any], Tokenizer, Base, list[str]]:
    """(config with all sizes, tokenizer, the config's store if it is there, notes for people).

    Raises UserError for a store that is there but not whole, and where `stand_in` does.
    """
    name, notes = config["base"], []
    if name is None or Path(name).exists():
        base = Base.open(config)
    else:
        base, notes = (
            Base(None),
            [f"{name} is not here: published sizes, about its prompt's tokens"],
        )
    config, tokenizer = base.resolve(config), base.tokenizer
    if tokenizer is None:
        config, tokenizer = stand_in(config)
    return config, tokenizer, base, notes


def stand_in(config: Mapping[str, Any]) -> tuple[dict[str, Any], Tokenizer]:
    """(config with the published sizes filled in, a tokenizer as large as the published one).

    Raises UserError for a config whose sizes only its store knows.
    """
    if config["base"] is None:
        return dict(config), _mini()
    if config["name"].split("-")[0] not in PUBLISHED:
        raise UserError(
            f"config.base {config['base']!r} is not here, and only it knows the sizes of "
            f"{config['name']!r}; make it with tools/convert_weights.py (docs/weights.md)"
        )
    filled = copy.deepcopy(dict(config))
    filled["model"]["image"].setdefault("image_size", IMAGE_SIZE)
    filled["model"]["llama"]["pretrained"] = PIECES
    return filled, _published()


def _mini() -> Tokenizer:
    """The mini data's, of its templates alone: without the words of the scenes."""
    texts = [
        re.sub(r"\{\w+\}", "", text)
        for paraphrases in templates.TEMPLATES.values()
        for split in paraphrases.values()
        for text in split
    ]
    return build_mini_tokenizer(texts, ("dog", "cat"), templates.PHRASES)


def _published() -> Tokenizer:
    pieces = {"<unk>": 0, BOS: 1, EOS: 2} | {f"piece{i}": i for i in range(3, PIECES)}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(pieces, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    raw.add_special_tokens([BOS, EOS, *ADDED])
    return Tokenizer(raw, Roles(pretrained=PIECES))
