"""Config files and their command-line overrides, with errors in one line.

A config is a Python file with `get_config(arg)` that returns an `ml_collections.ConfigDict`, given
as `--config=FILE.py:ARG` and changed leaf by leaf with `--config.key=value` (as in big_vision). A
typing mistake in a file, an arg, a key, a value or a flag ends in one line that names the nearest
valid one, and exit code 2; a traceback is kept for our own faults.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from meerkat_jax.core.errors import UserError, nearest

# Config files ------------------------------------------------------------------------------------


def choose(arg: str | None, names: Sequence[str], what: str = "config arg") -> str:
    """`arg`, or the first of `names` if it is empty; UserError naming the nearest if unknown."""
    arg = arg or names[0]
    if arg not in names:
        near = nearest(arg, names, 1)[0]
        raise UserError(
            f"{what} {arg!r} is unknown; did you mean {near!r}? (one of {', '.join(names)})"
        )
    return arg


def load_config(spec: str) -> ConfigDict:
    """The config of "FILE.py" or "FILE.py:ARG", locked, without flags.

    Raises UserError if the file is missing, is not Python, has no `get_config`, takes no ARG, or
    returns something else; what `get_config` itself raises comes through.
    """
    path, colon, arg = spec.partition(":")
    if not Path(path).is_file():
        raise UserError(f"config file {path!r} is not there; give --config=FILE.py or FILE.py:ARG")
    get_config = getattr(_module(path), "get_config", None)
    if not callable(get_config):
        raise UserError(f"config file {path!r} has no function get_config(arg)")
    if colon and not inspect.signature(get_config).parameters:
        raise UserError(f"config file {path!r} takes no arg, but was given {arg!r}")
    config = get_config(arg) if colon else get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config file {path!r}: get_config returned {type(config).__name__}, not a ConfigDict"
        )
    return config.lock()


def settable(config: Mapping[str, Any]) -> ConfigDict:
    """A ConfigDict of nested dicts in which what is None can be given on the command line, a text.

    A plain None has no type that a value could be read as. A config that is made of another one's
    `to_dict()`, which forgets such types, goes through here again.
    """

    def typed(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: typed(value) for key, value in node.items()}
        return placeholder(str) if node is None else node

    return ConfigDict(typed(config))


def _module(path: str) -> Any:
    """Run the Python file `path` as a module of its own."""
    spec = importlib.util.spec_from_file_location("meerkat_config", path)
    if spec is None:
        raise UserError(f"config file {path!r} is not a .py file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, UnicodeDecodeError) as error:
        where = f" line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"config file {path!r}{where} is not Python: {error}") from None
    return module


def check_overrides(argv: Sequence[str]) -> None:
    """UserError if a `--config.key=value` in `argv` names a key that its config does not have.

    Loads the config itself, so that a mistake is found before absl's flags are made from it.
    """
    joined = [
        f"{this}={after}" if this.lstrip("-") == "config" else this
        for this, after in zip(argv, [*argv, ""][1:], strict=True)
    ]
    specs = [arg.partition("=")[2] for arg in joined if re.match(r"--?config=", arg)]
    keys = [m[1] for arg in argv if (m := re.match(r"--?(?:no)?config\.([^=]+)", arg))]
    if not specs:
        if keys:
            raise UserError(f"--config.{keys[0]} is given, but --config=FILE.py is missing")
        return
    config = load_config(specs[-1]).to_dict()
    known = _keys(config)
    for key in keys:
        if key not in known:
            near = nearest(key, known, 1)[0] if known else "none"
            raise UserError(f"--config.{key} is not in {specs[-1]}; did you mean --config.{near}?")
        if whole := _only_whole(config, key):
            raise UserError(f"--config.{key} cannot be set by itself; set all of --config.{whole}")


def _only_whole(config: Mapping[str, Any], key: str) -> str | None:
    """What to set rather than a value that flags cannot reach, as `KEY='VALUE'`; None: they can.

    Out of their reach are elements of a tuple, and names that are no words of Python, as
    "avqa/which".
    """
    part = re.fullmatch(r"(.+?)(?:\.([^.\[]+)|\[\d+\])", key)
    if part is None:
        return None
    above = config
    for step in re.findall(r"[^.\[\]]+", part[1]):
        above = above[int(step) if isinstance(above, list | tuple) else step]
    if isinstance(above, tuple) or not (part[2] or "x").isidentifier():
        return f"{part[1]}={str(above)!r}"
    return None


def _below(node: Any, path: str) -> dict[str, Any]:
    """What lies in a dict or list, by path as on the command line: "a.b", "phases[0]"."""
    if isinstance(node, Mapping):
        return {f"{path}.{key}" if path else key: value for key, value in node.items()}
    if isinstance(node, list | tuple):
        return {f"{path}[{i}]": value for i, value in enumerate(node)}
    return {}


def _keys(node: Any, path: str = "") -> list[str]:
    """All paths below, inner nodes too."""
    below = _below(node, path).items()
    return [key for name, value in below for key in (name, *_keys(value, name))]


def _leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Path -> value of what has nothing below it."""
    below = _below(node, path)
    if not below:
        return {path: node}
    return {
        key: leaf for name, value in below.items() for key, leaf in _leaves(value, name).items()
    }


def check_changes(then: Mapping[str, Any], now: Mapping[str, Any], free: Sequence[str]) -> None:
    """UserError if a run that was begun with `then` is to go on with `now`, naming what differs.

    `free` are the dotted keys that may change.
    """
    was, new = (_leaves(to_json(config)) for config in (then, now))
    keys = [key for key in {**was, **new} if key not in free and was.get(key) != new.get(key)]
    if keys:
        said = [f"{key}: {was.get(key)!r} then, {new.get(key)!r} now" for key in keys[:5]]
        more = f"; and {len(keys) - 5} more" if len(keys) > 5 else ""
        raise UserError(
            f"--resume with another config: {'; '.join(said)}{more};"
            " give the config of the run, or another --workdir"
        )


def dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts -> {"a.b": value}, as keys are written on the command line.

    By hand, since flax's `flatten_dict` drops empty dicts, and would load JAX where none is needed.
    """
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update({f"{key}.{path}": leaf for path, leaf in dotted(value).items()})
        else:
            flat[key] = value
    return flat


# Values -------------------------------------------------------------------------------------------


def to_json(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The resolved config as plain JSON values (tuples become lists).

    Raises UserError naming the first key whose value JSON cannot hold.
    """
    plain = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    for key, value in dotted(plain).items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise UserError(
                f"config.{key} = {value!r} is no JSON value; use numbers, strings, lists or None"
            ) from None
    return json.loads(json.dumps(plain))
