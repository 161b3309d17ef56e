"""Work directories of training: made or resumed, with the config and the versions of the run."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from meerkat_jax.core.config import to_json
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.files import write_text

MARK = "meerkat_jax"  # the key of config.json that makes a folder recognisably ours


PACKAGES = "jax jaxlib flax optax orbax-checkpoint grain ott-jax numpy ml_collections".split()


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
