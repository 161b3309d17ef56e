"""Media by Debian package name: downloaded with apt, unpacked without root, kept in a cache folder.

Nothing is installed and nothing of the packages is part of this project. apt checks what it
downloads against the signed lists of the machine's own package sources. A machine without lists
(a fresh container) or without root gets private lists inside the cache folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.files import default_cache

_DOWNLOAD_SECONDS, _UPDATE_SECONDS, _UNPACK_SECONDS = 900, 240, 300
_SETTINGS = (
    "Acquire::Retries=1",
    "Acquire::http::Timeout=20",
    "Acquire::https::Timeout=20",
    "APT::Update::Error-Mode=any",  # else apt-get update without a network ends well
)
_IMPATIENT = [word for setting in _SETTINGS for word in ("-o", setting)]


class Fetched(NamedTuple):
    """Where the unpacked package lies, or None and the reason in one line."""

    path: Path | None
    reason: str


class _Failed(Exception):
    """A step that did not work; the message is the reason told to the caller."""


def fetch_package(name: str, cache_dir: str | os.PathLike[str] | None = None) -> Fetched:
    """Unpack a Debian package into `cache_dir/name`, or reuse it when it is there.

    Never raises for a missing tool, network or package, and never waits without end. The folder
    appears under its name only when it is whole. Raises UserError where something else has its
    name: that is a cache to mend, not media that cannot be had.
    """
    try:
        cache = Path(cache_dir) if cache_dir is not None else default_cache()
    except RuntimeError as error:
        return Fetched(None, f"{name}: {error} Set MEERKAT_CACHE to a folder.")
    target = cache / name
    if target.is_dir():
        return Fetched(target, "already in the cache")
    if os.path.lexists(target):
        raise UserError(f"{target}: expected a folder, found a file or a broken link; remove it")
    missing = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if missing:
        return Fetched(None, f"{name}: no {' and no '.join(missing)} on this machine")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=cache) as work:
            deb = _download(name, Path(work))
            _run(["dpkg", "-x", deb.name, "whole"], Path(work), _UNPACK_SECONDS)
            return Fetched(_publish(Path(work) / "whole", target), "fetched")
    except _Failed as failure:
        return Fetched(None, f"{name}: {failure}")
    except OSError as error:
        return Fetched(None, f"{name}: {cache} cannot be used ({error})")


def _download(name: str, work: Path) -> Path:
    """Fetch the .deb into `work`; with lists of our own where the machine's do not know it."""
    try:
        _run(["apt-get", *_IMPATIENT, "download", name], work, _DOWNLOAD_SECONDS)
    except _Failed as first:
        private = _private_lists(work)
        try:
            _run(["apt-get", *_IMPATIENT, *private, "update"], work, _UPDATE_SECONDS)
            _run(["apt-get", *_IMPATIENT, *private, "download", name], work, _DOWNLOAD_SECONDS)
        except _Failed as second:
            same = str(first) == str(second)
            raise _Failed(first if same else f"{first}; with new lists: {second}") from second
    debs = list(work.glob("*.deb"))
    if len(debs) != 1:
        raise _Failed("apt-get download left no package")
    return debs[0]


def _private_lists(work: Path) -> list[str]:
    """Options that make apt keep its lists and cache below `work`."""
    for folder in ("lists/partial", "archives/partial"):
        (work / folder).mkdir(parents=True)
    return ["-o", f"Dir::State::Lists={work}/lists", "-o", f"Dir::Cache={work}"]


def _publish(whole: Path, target: Path) -> Path:
    """Rename into place; another process that was faster is as good."""
    whole.chmod(0o755)
    try:
        whole.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    return target


def _sweep(cache: Path) -> None:
    """Remove what killed runs left behind, once it is too old to be a run in progress."""
    for stale in cache.glob(".partial-*"):
        with contextlib.suppress(FileNotFoundError):  # its own run may be faster
            if time.time() - stale.stat().st_mtime > 2 * _DOWNLOAD_SECONDS:
                shutil.rmtree(stale, ignore_errors=True)


def _run(command: list[str], work: Path, seconds: float) -> None:
    """Run one tool in `work`; its output goes to a file, so a stray child cannot hold us up."""
    log = work / "log.txt"
    with log.open("wb") as out:
        try:
            done = subprocess.run(
                command,
                cwd=work,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                env={**os.environ, "LC_ALL": "C"},
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _Failed(f"{command[0]} did not end within {seconds:.0f} s") from error
        except OSError as error:
            raise _Failed(f"{command[0]} does not run ({error})") from error
    if done.returncode:
        raise _Failed(f"{command[0]} failed: {_last_line(log)}")


def _last_line(log: Path) -> str:
    """The most telling line of a tool's output: the first error, else the last line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "dpkg"))]
    return (errors[:1] or lines[-1:] or ["no output"])[0].strip()
