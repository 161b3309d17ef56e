"""All sources built from their trees, once for a test session."""

from __future__ import annotations

import importlib
from pathlib import Path

from meerkat_jax.data.build import shards
from meerkat_jax.data.sources.entry import Options
from meerkat_jax.data.sources.registry import SOURCES, find
from tests.data.sources.fill import fill

PAIRS = [name for name in SOURCES if name.startswith("openimages")]
SPOILED = 0.6  # share of rows: the trees hold every bad row there is


def write_tree(source: str, folder: Path) -> Path:
    """The tree of a source with its media."""
    name = "pairs" if source in PAIRS else source
    home = folder / name
    if not home.exists():
        home.mkdir(parents=True)
        fill(home, importlib.import_module(f"tests.data.sources.tree_{name}").write(home))
    return home


def build(source: str, tree: Path, out: Path, workers: int = 1, **settings) -> dict:
    """Build one; `settings` beside those of the trees."""
    options = settings.pop("options", Options())
    made = shards.Settings(shard=settings.pop("shard", 256))
    given = {"max_skipped": SPOILED, "say": lambda line: None} | settings
    plan = find(source)(tree, options)
    return shards.build(source, plan, tree, out, options, made, workers, **given)
