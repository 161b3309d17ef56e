"""What the doors share: flags, config files, work directories, and errors in one line.

A config is a Python file with `get_config(arg)` that returns an `ml_collections.ConfigDict`, given
as `--config=FILE.py:ARG` and changed leaf by leaf with `--config.key=value` (as in big_vision). A
typing mistake in a file, an arg, a key, a value or a flag ends in one line that names the nearest
valid one, and exit code 2; a traceback is kept for our own faults.
"""

from __future__ import annotations

import datetime
import errno
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from meerkat_jax.errors import UserError, nearest

USER_EXIT = 2  # exit code of a door when the input is to be mended by the user
MARK = "meerkat_jax"  # the key of config.json that makes a folder recognisably ours
PACKAGES = "jax jaxlib flax optax orbax-checkpoint grain ott-jax numpy ml_collections".split()


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


def check_overrides(argv: Sequence[str], name: str = "config") -> None:
    """UserError if a `--config.key=value` in `argv` names a key that its config does not have.

    Loads the config itself, so that a mistake is found before absl's flags are made from it.
    """
    joined = [
        f"{this}={after}" if this.lstrip("-") == name else this
        for this, after in zip(argv, [*argv, ""][1:], strict=True)
    ]
    specs = [arg.partition("=")[2] for arg in joined if re.match(rf"--?{name}=", arg)]
    keys = [m[1] for arg in argv if (m := re.match(rf"--?(?:no)?{name}\.([^=]+)", arg))]
    if not specs:
        if keys:
            raise UserError(f"--{name}.{keys[0]} is given, but --{name}=FILE.py is missing")
        return
    config = load_config(specs[-1]).to_dict()
    known = _keys(config)
    for key in keys:
        if key not in known:
            near = nearest(key, known, 1)[0] if known else "none"
            raise UserError(f"--{name}.{key} is not in {specs[-1]}; did you mean --{name}.{near}?")
        if whole := _only_whole(config, key):
            raise UserError(f"--{name}.{key} cannot be set by itself; set all of --{name}.{whole}")


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


def refuse_changes(then: Mapping[str, Any], now: Mapping[str, Any], free: Sequence[str]) -> None:
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
    """Nested dicts -> {"a.b": value}, as keys are written on the command line."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update({f"{key}.{path}": leaf for path, leaf in dotted(value).items()})
        else:
            flat[key] = value
    return flat


# Doors -------------------------------------------------------------------------------------------


def run_door(
    main: Callable[[list[str]], Any], required: Iterable[str] = (), words: Sequence[str] = ()
) -> None:
    """`absl.app.run(main)` in which every mistake of the user ends in one line and exit code 2.

    `required` names flags that must be given, `words` the arguments without a flag, which `main`
    gets behind the program's name. UserErrors of `main`, unknown or missing flags, wrong
    values and stray arguments print "error: ..." on stderr; other exceptions keep their traceback.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        rest = _guarded(_parse, list(argv), tuple(required), tuple(words))
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)  # libraries tell every file that they touch
        return rest

    app.run(lambda argv: _guarded(main, argv), flags_parser=parse)


def _guarded(function: Callable, *args: Any) -> Any:
    """Call; a UserError or a full disk becomes a line and the end of the process."""
    try:
        return function(*args)
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
        sys.exit(USER_EXIT)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror}{where}; make room", file=sys.stderr, flush=True)
        sys.exit(USER_EXIT)


def _parse(argv: list[str], required: tuple[str, ...], words: tuple[str, ...]) -> list[str]:
    """Parse absl's flags; every complaint as a UserError."""
    if "config" in flags.FLAGS:
        check_overrides(argv[1:])
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(str(error)) from None
    missing = [word.upper() for word in words[len(rest) - 1 :]]
    missing += [f"--{name}" for name in required if flags.FLAGS[name].value is None]
    if missing:
        raise UserError(f"missing {' and '.join(missing)}; see {Path(argv[0]).stem} --help")
    if len(rest) > 1 + len(words):
        raise UserError(f"stray argument {rest[-1]!r}; flags are written --name=value")
    return rest


# Work directories --------------------------------------------------------------------------------


def prepare_workdir(workdir: str | Path, overwrite: bool = False, resume: bool = False) -> Path:
    """Make the work directory, or accept the one that is there; returns its path.

    A folder with something in it needs one of the two flags. `resume` goes on in it (an empty or
    absent folder starts afresh, so that one command serves every start); `overwrite` empties it.
    Both ask that the folder is ours, which its config.json says. Raises UserError otherwise.
    """
    workdir = Path(workdir)
    if overwrite and resume:
        raise UserError("--overwrite and --resume exclude each other; give one")
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; name a folder")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # A run killed before its config.json was in place leaves only our own temporary file.
        filled = any(not _temporary(path) for path in workdir.iterdir())
        if filled:
            _accept(workdir, overwrite, resume)
        if not os.access(workdir, os.W_OK):
            raise PermissionError("not writable")
        if filled and overwrite:
            for path in workdir.iterdir():
                _remove(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--workdir={workdir} cannot be used: {reason}") from None
    return workdir


def _accept(workdir: Path, overwrite: bool, resume: bool) -> None:
    """UserError unless this filled folder is ours and one of the flags is given."""
    if not (overwrite or resume):
        raise UserError(
            f"--workdir={workdir} is not empty; --resume goes on with it, --overwrite deletes it"
        )
    if not _ours(workdir):
        flag = "--overwrite" if overwrite else "--resume"
        raise UserError(
            f"--workdir={workdir} is no work directory of ours (no config.json of ours in it),"
            f" so {flag} leaves it alone; name another folder"
        )


def _temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _ours(workdir: Path) -> bool:
    try:
        return MARK in json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary file beside it, then renamed over it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


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


def write_config(workdir: str | Path, config: ConfigDict | Mapping[str, Any]) -> None:
    """Write the resolved config to `workdir`/config.json, which also marks the folder as ours."""
    record = {MARK: _version(MARK)} | to_json(config)
    write_text(Path(workdir) / "config.json", json.dumps(record, indent=2) + "\n")


def read_config(workdir: str | Path) -> ConfigDict:
    """The config that `write_config` wrote, locked; UserError if it is absent or damaged."""
    path = Path(workdir) / "config.json"
    try:
        record = json.loads(path.read_text())
        record.pop(MARK)
    except FileNotFoundError:
        raise UserError(f"{path} is not there; is {workdir} a work directory of train?") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a config of ours: {error!r}") from None
    return ConfigDict(record).lock()


def write_versions(workdir: str | Path) -> dict[str, Any]:
    """Write `versions()` to `workdir`/versions.json and return it."""
    found = versions()
    write_text(Path(workdir) / "versions.json", json.dumps(found, indent=2) + "\n")
    return found


def versions() -> dict[str, Any]:
    """What ran: time, python, platform, packages, git commit (None outside a checkout), devices."""
    import jax  # late: it starts the devices, which flag parsing must not do

    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        MARK: _version(MARK),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git(),
        "devices": {
            "kind": jax.devices()[0].device_kind,
            "platform": jax.devices()[0].platform,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the checkout that this package lies in, and whether files differ from it."""
    root = Path(__file__).resolve().parents[2]

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if ask("rev-parse", "--show-toplevel") != str(root):
        return None  # an installed copy inside somebody else's repository
    commit = ask("rev-parse", "HEAD")
    return commit and {"commit": commit, "changed": bool(ask("status", "--porcelain"))}
