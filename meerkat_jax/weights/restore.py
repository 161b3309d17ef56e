"""A work directory of training, read back: the model that it trained, and its parameters.

Answers and exports start here. The trained leaves come from the newest checkpoint, those of a store
of published weights from the store, and what is left (frozen from the start) is made anew from the
run's seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from meerkat_jax.build import Assembly, assemble
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import flatten, merge, split
from meerkat_jax.core.workdir import read_config
from meerkat_jax.data.prompt import style_note
from meerkat_jax.data.tokenizer import Tokenizer
from meerkat_jax.weights.base import Base
from meerkat_jax.weights.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class Run:
    """What training left: `learned` and `fresh` are all leaves that `base` does not give."""

    config: Mapping[str, Any]
    assembly: Assembly
    base: Base
    learned: dict[str, Any]
    fresh: dict[str, Any]
    shapes: dict[str, Any]  # of all leaves that are not trained
    meta: Mapping[str, Any]

    def params(self) -> dict[str, Any]:
        """All parameters on the first device."""
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = jax.tree.map(lambda _: here, self.shapes)
        return merge(self.learned, self.base.fill(self.fresh, self.shapes, places))

    def views(self) -> dict[str, Any]:
        """All leaves by path; those of the base as views of its files, unread."""
        flat = flatten(self.learned) | flatten(self.fresh)
        return flat | {p: self.base.store.read(p) for p in self.base.given(flatten(self.shapes))}


def read_run(path: Path, assemble: Callable[[Mapping, Tokenizer], Assembly] = assemble) -> Run:
    """The run of the work directory `path`.

    assemble: builds the model with the initialisers that training used, for leaves that were
    neither trained nor published.


    Raises UserError when the folder is not there, is not a work directory, or cannot be read.
    """
    if not path.is_dir():
        raise UserError(f"{path} is no folder; name a work directory of training")
    config = read_config(path).to_dict()
    tokenizer, base = Tokenizer.load(path), Base.open(config)
    try:
        assembly = assemble(config, tokenizer)
        trainable, seed = config["trainable"], config["seed"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path / 'config.json'} does not describe a model of this version ({error}); "
            "name another work directory, or train anew"
        ) from error
    if (note := style_note(tokenizer, config["prompt"])) is not None:
        print(f"note: {note}", file=sys.stderr)
    key = jax.random.key(seed)
    halves = jax.eval_shape(lambda key: split(assembly.init(key), trainable), key)
    expect = {"tokenizer": tokenizer.sha256} | base.origin
    # Orbax warns that a folder is opened for reading only, which is what is wanted.
    with _quiet(), Checkpoints(path / "checkpoints", read_only=True) as checkpoints:
        learned, meta = checkpoints.restore_params(halves["trainable"], expect)
    fresh = {}
    if jax.tree.leaves(base.rest(halves["frozen"])):
        init = functools.partial(assembly.init, classes=meta["classes"])
        fresh = jax.jit(lambda key: base.rest(split(init(key), trainable)["frozen"]))(key)
    return Run(config, assembly, base, learned, fresh, halves["frozen"], meta)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
