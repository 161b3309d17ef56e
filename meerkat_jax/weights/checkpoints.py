"""Checkpoints: what training must remember, written whole or not at all, and checked when read.

A step is a folder of four Orbax items: `trainable` (the trained half of the parameters), `opt` (the
rest of the state: optimizer, step, PRNG key), `data` (JSON: examples consumed) and `meta` (JSON:
config, tokenizer, base and LoRA as the caller gives them). Items are apart so that inference reads
`trainable` and `meta` alone. Orbax marks a step as complete when it is: a killed save leaves the
one before, and so does one for which the disk has no room.

Orbax reads a flipped byte of an array without complaint, so `meta` also holds type, shape and a
32-bit sum of each leaf, and the JSON items a CRC of themselves. The sum is of the leaf's words
modulo 2^32, each times an odd number made of its place: it changes with any single bit, and does
not depend on how the leaf is laid over devices, so a checkpoint restores onto another mesh.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from meerkat_jax.core.config import dotted
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import compare, render

FORMAT = "meerkat_jax checkpoint 1"
# What a disk can say for which the program is not to blame; libraries keep only the words.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)


class Damaged(Exception):
    """A step that cannot be read or whose bytes are not those that were written."""


class _Manager(ocp.CheckpointManager):
    """Orbax's, which leaves it to training to ask whether all processes are to leave.

    It would ask in a thread of its own, with the number of an older step, and JAX's agreement on a
    step to leave after (training/preemption.py) then fails.
    """

    def reached_preemption(self, step: int) -> bool:
        """No: that is not asked here."""
        return False


class Checkpoints:
    """The checkpoints of one run in `folder`, of which the newest `keep` stay.

    `read_only` is for inference: it makes and deletes nothing. Raises UserError if the folder holds
    things but no checkpoint of ours, or, with `read_only`, if it is not there.
    """

    def __init__(self, folder: str | Path, keep: int = 2, read_only: bool = False):
        """Open the folder; unless `read_only`, make it and clear away what killed saves left."""
        self.folder = Path(folder).absolute()
        _check_foreign(self.folder, read_only)
        if not read_only:
            _clear_killed_saves(self.folder)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            create=not read_only,
            read_only=read_only,
        )
        self._manager = _Manager(self.folder, options=options)

    def latest(self) -> int | None:
        """The newest complete step, unread; None if there is none."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        data: Mapping[str, Any],
        meta: Mapping[str, Any],
        wait: bool = False,
    ) -> bool:
        """Save `state` = {"trainable": nested dict, **rest: any pytrees} and two dicts of JSON.

        Returns when `state` is copied, so its buffers may be donated; files are written in the
        background unless `wait`. False, and nothing done, if the step is there already. Raises
        UserError if no parameter is trainable, or if this or the save before it could not be
        written, as on a full disk.
        """
        if step in self._manager.all_steps():
            return False
        if not jax.tree.leaves(state["trainable"]):
            raise UserError(
                "nothing to save: no parameter is trainable; see `trainable` in the config"
            )
        state = _items(state)
        record = {
            "format": FORMAT,
            "leaves": {
                k: [kind, s] for (k, kind), s in zip(_kinds(state), _sums(state), strict=True)
            },
            "meta": dict(meta) | {"step": step},
        }
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(tree) for name, tree in state.items()},
                    data=ocp.args.JsonSave(_seal(dict(data))),
                    meta=ocp.args.JsonSave(_seal(record)),
                ),
            )
        if wait:
            self.wait()
        return True

    def wait(self) -> None:
        """Return when all saves are on disk; raises what went wrong in the background.

        That is a UserError when it was the disk.
        """
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What the disk refuses, as a UserError that names the step which is still good."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore each have their own
            reason = _refusal(error)
            if reason is None:
                raise
            whole = [int(path.name) for path in self.folder.glob("*") if path.name.isdigit()]
            kept = (
                f"the last good one, step {max(whole)}, is kept" if whole else "there is none yet"
            )
            raise UserError(
                f"a checkpoint in {self.folder} could not be written: {reason}; {kept}; make room "
                "there, and go on with --resume"
            ) from error

    def restore(
        self, abstract: Mapping[str, Any], expect: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """(state, data, meta) of the newest readable step, bit for bit as saved.

        `abstract` is a state of arrays or ShapeDtypeStructs, whose shardings say where each leaf
        goes (none: the first device). `expect` holds entries that `meta` must have. A damaged step
        is reported on stderr, renamed to "damaged-STEP", and the one before is taken. Raises
        UserError naming both values on a mismatch, or if no step can be read.
        """
        (items, data, meta), bad = self._newest(_items(abstract), ("data",), expect)
        self._rename(bad)
        return {**abstract, **items.get("opt", {}), "trainable": items["trainable"]}, data, meta

    def restore_params(
        self, abstract: Mapping[str, Any], expect: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(trainable, meta) of the newest readable step; optimizer and data are not read."""
        (items, _, meta), _ = self._newest({"trainable": abstract}, (), expect)
        return items["trainable"], meta

    def read_meta(self) -> dict[str, Any]:
        """`meta` alone of the newest step in which it can be read: what model to build."""
        (_, _, meta), _ = self._newest({}, (), None)
        return meta

    def close(self) -> None:
        """Wait for saves and release the threads; raises as `wait` does."""
        with self._writing():
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        """Use as `with Checkpoints(...) as checkpoints`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for saves and release the threads."""
        self.close()

    def _newest(self, abstract: dict, jsons: tuple[str, ...], expect: Mapping | None) -> tuple:
        """(what `_read` gives for the newest step that is whole, the damaged steps after it)."""
        self.wait()
        steps, bad = sorted(self._manager.all_steps(), reverse=True), []
        if not steps:
            raise UserError(f"{self.folder} holds no checkpoint; train one, or name another folder")
        reason = ""
        for step in steps:
            try:
                return self._read(step, abstract, jsons, expect), bad
            except Damaged as error:
                reason = " ".join(str(error).split())[:200]
                print(
                    f"WARNING: checkpoint {self.folder / str(step)} is damaged ({reason});"
                    " trying the one before",
                    file=sys.stderr,
                    flush=True,
                )
                bad.append(step)
        raise UserError(
            f"no checkpoint in {self.folder} can be read (steps {', '.join(map(str, steps))};"
            f" {reason}); restore the folder from a copy, or train anew with --overwrite"
        )

    def _read(
        self, step: int, abstract: dict, jsons: tuple[str, ...], expect: Mapping | None
    ) -> tuple[dict, dict, dict]:
        """(state, data, meta) of one step; Damaged or, for a mismatch, UserError."""
        place = self.folder / str(step)
        if not (place / "meta").is_dir():
            raise Damaged("it has no item 'meta', as every checkpoint of meerkat_jax has")
        record = self._json(step, "meta")
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            found = record.get("format") if isinstance(record, dict) else None
            raise UserError(
                f"{place} has format {found!r}, expected {FORMAT!r}; name another folder"
            )
        meta = record["meta"]
        expect = expect or {}
        known = {key: meta[key] for key in expect if key in meta}
        _raise_mismatch(place, "its meta", _described(known), _described(expect))
        mine = {
            path: leaf for path, leaf in record["leaves"].items() if path.split("/")[0] in abstract
        }
        kinds = {path: kind for path, (kind, _) in mine.items()}
        _raise_mismatch(place, "its arrays", kinds, dict(_kinds(abstract)))
        state = self._arrays(step, abstract) if abstract else {}
        for (path, _), found in zip(_kinds(state), _sums(state), strict=True):
            if found != mine[path][1]:
                raise Damaged(f"{path} is not what was written")
        return state, self._json(step, "data") if "data" in jsons else {}, meta

    def _arrays(self, step: int, abstract: dict) -> dict[str, Any]:
        args = {k: ocp.args.StandardRestore(jax.tree.map(_place, v)) for k, v in abstract.items()}
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**args)).items())
        except Exception as error:  # whatever Orbax and TensorStore make of broken files
            raise Damaged(f"{type(error).__name__}: {error}") from error

    def _json(self, step: int, name: str) -> Any:
        try:
            args = ocp.args.Composite(**{name: ocp.args.JsonRestore()})
            return _unseal(self._manager.restore(step, args=args)[name])
        except Exception as error:
            raise Damaged(f"{name}: {type(error).__name__}: {error}") from error

    def set_aside(self, step: int) -> None:
        """Rename this step's checkpoint, if there is one, so that the one before is the newest."""
        self.wait()
        self._rename([step] if step in self._manager.all_steps() else [])

    def _rename(self, steps: list[int]) -> None:
        """Rename damaged steps, so that their numbers are free for training to reach again."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                place, n = self.folder / f"damaged-{step}", 1
                while place.exists():
                    place, n = self.folder / f"damaged-{step}-{n}", n + 1
                (self.folder / str(step)).rename(place)
        multihost_utils.sync_global_devices("checkpoints set aside")
        self._manager.reload()


def _check_foreign(folder: Path, must_exist: bool) -> None:
    """UserError for a folder that is absent (if it must exist), a file, or somebody else's."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"checkpoint folder {folder} is a file")
    if not folder.exists():
        if must_exist:
            raise UserError(f"checkpoint folder {folder} is not there; name a train work directory")
        return
    names = [path.name for path in folder.iterdir()]
    ours = [n for n in names if n.isdigit() or n.startswith("damaged-") or "orbax" in n]
    if names and not ours:
        raise UserError(f"{folder} is no checkpoint folder (it holds {names[0]!r}); name another")


def _clear_killed_saves(folder: Path) -> None:
    """Delete what killed saves left. Orbax's own clearing runs in a thread, and two may collide."""
    if jax.process_index() == 0:
        for place in folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(place)
    multihost_utils.sync_global_devices("killed saves cleared")


def _refusal(error: BaseException | None) -> str | None:
    """What the disk said, if that is behind an exception."""
    while error is not None:
        for number in REFUSALS:
            reason = os.strerror(number)
            if getattr(error, "errno", None) == number or reason in str(error):
                return reason
        error = error.__cause__ or error.__context__
    return None


def _raise_mismatch(
    place: Path, what: str, found: Mapping[str, str], expected: Mapping[str, str]
) -> None:
    """UserError with both values of the first differences."""
    wrong = compare(expected, found)
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"checkpoint {place} does not fit, {what} differ: {'; '.join(wrong[:3])}{more};"
            " use the config it was trained with, or another work directory"
        )


def _described(tree: Mapping[str, Any]) -> dict[str, str]:
    """{"a.b": value as JSON text} of nested JSON values."""
    return {key: json.dumps(value) for key, value in dotted(json.loads(json.dumps(tree))).items()}


def _seal(record: Any) -> dict[str, Any]:
    """{"record", "crc"}; the CRC is of the canonical JSON text."""
    record = json.loads(json.dumps(record))
    return {"record": record, "crc": zlib.crc32(json.dumps(record, sort_keys=True).encode())}


def _unseal(sealed: Any) -> Any:
    if _seal(sealed["record"])["crc"] != sealed["crc"]:
        raise ValueError("the text is not what was written")
    return sealed["record"]


def _items(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state as Orbax items: {"trainable": ..., "opt": all the rest}, without an empty rest."""
    rest = {name: tree for name, tree in state.items() if name != "trainable"}
    return {"trainable": state["trainable"]} | ({"opt": rest} if jax.tree.leaves(rest) else {})


def _kinds(tree: Any) -> list[tuple[str, str]]:
    """[(path, "float32[3,4]")] of all leaves, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), render(x)) for p, x in leaves]


def _place(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array or ShapeDtypeStruct."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _sums(tree: Any) -> list[int]:
    """The 32-bit sum of each leaf (module docstring), in the order of `jax.tree.leaves`."""
    return [int(x) for x in jax.device_get([_sum(leaf) for leaf in jax.tree.leaves(tree)])]


@jax.jit
def _sum(x: jax.Array) -> jax.Array:
    """Any array -> uint32: sum over its words of word * (2 * place + 1), modulo 2^32."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = min(8 * x.dtype.itemsize, 32)
    words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)
    place, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        # Built from one counter per dimension: a reshape would gather a leaf that is sharded.
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(
            stride % 2**32
        )
        stride *= words.shape[axis]
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
