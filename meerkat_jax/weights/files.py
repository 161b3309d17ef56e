"""The two kinds of file that hold a model's tensors: safetensors, and what torch.save writes.

Opening one reads names, shapes and dtypes only; a `Tensor` reads its own bytes when asked, and no
file stays open. What is wrong with a file is added to a list, so that a checkpoint of many files
gets one error about all of them. Nothing of a file is ever executed: torch files are read with
`weights_only=True`.

Sources: the safetensors format, github huggingface/safetensors, README; torch's serialization
notes (docs.pytorch.org, notes/serialization).
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights.source import Tensor
from meerkat_jax.weights.store import DTYPES

LISTED = 20  # problems that an error names; the rest are counted
TORCH = (".bin", ".pt", ".pth")
AGAIN = "download it again"


def refuse(where: Path, wrong: list[str]) -> None:
    """UserError with all that is wrong, if anything is."""
    if wrong:
        more = [f"and {len(wrong) - LISTED} more"] if len(wrong) > LISTED else []
        count = f"{len(wrong)} problem{'s' if len(wrong) > 1 else ''}"
        raise UserError(f"{where}: {count}: " + "; ".join(wrong[:LISTED] + more))


def unusable(file: Path) -> str | None:
    """Why a file cannot be the real one, seen without reading it through; None if it may be."""
    if not file.is_file():
        return f"{file.name} is missing; {AGAIN}"
    if file.stat().st_size == 0:
        return f"{file.name} is empty; {AGAIN}"
    try:
        with file.open("rb") as stream:
            start = stream.read(40)
    except OSError as error:
        return f"{file.name} cannot be opened ({error.strerror})"
    if start.startswith(b"version https://git-lfs"):
        return f"{file.name} is a Git LFS pointer, not the weights; run git lfs pull"
    return None


def read_json(file: Path, wrong: list[str]) -> dict[str, Any]:
    """The JSON object in a file; {} and a line in `wrong` when there is none."""
    if (reason := unusable(file)) is not None:
        wrong.append(reason)
        return {}
    try:
        value = json.loads(file.read_text())
    except ValueError as error:
        wrong.append(f"{file.name} is not JSON ({error}); {AGAIN}")
        return {}
    if not isinstance(value, dict):
        wrong.append(f"{file.name} holds a {type(value).__name__}, expected a JSON object")
        return {}
    return value


def tensors_of(file: Path, wrong: list[str]) -> dict[str, Tensor]:
    """{name: tensor} of a file of either kind, told apart by its ending."""
    if (reason := unusable(file)) is not None:
        wrong.append(reason)
        return {}
    return torch_file(file, wrong) if file.suffix in TORCH else safetensors_file(file, wrong)


# ---- raw bytes ----


def read_bytes(file: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
    """An array that lies in a file as one block, little-endian; only its bytes are read."""
    count = math.prod(shape) * dtype.itemsize
    data = np.fromfile(file, np.uint8, count, offset=offset)
    if data.size != count:
        raise UserError(f"{file} ended early: it was changed while it was read")
    return data.view(dtype).reshape(shape)


# ---- safetensors ----


def safetensors_file(file: Path, wrong: list[str]) -> dict[str, Tensor]:
    """{name: tensor} by the file's header, which must account for every byte of the file."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            start = 8 + length
            if start > size:
                raise ValueError(f"its first bytes announce {start} bytes, it has {size}")
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        end = start + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        wrong.append(f"{file.name} has no readable safetensors header ({error}); {AGAIN}")
        return {}
    if end != size:
        wrong.append(f"{file.name} has {size} bytes, its header says {end}; {AGAIN}")
    found = {}
    for name, entry in entries.items():
        try:
            found[name] = _safetensor(file, entry, start)
        except (ValueError, KeyError, TypeError) as error:
            wrong.append(f"{file.name}: tensor {name} cannot be read ({error})")
    return found


def metadata_of(file: Path) -> dict[str, str]:
    """What the writer of a safetensors file kept beside the tensors; {} for a file of torch."""
    if file.suffix in TORCH:
        return {}
    with file.open("rb") as stream:
        entries = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return entries.get("__metadata__", {})


def _safetensor(file: Path, entry: Mapping[str, Any], start: int) -> Tensor:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype {entry['dtype']}, expected one of {', '.join(DTYPES)}")
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    first, last = entry["data_offsets"]
    if last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{last - first} bytes for {list(shape)} of {dtype}")
    read = functools.partial(read_bytes, file, dtype, shape, start + first)
    return Tensor(shape, dtype, file, read)


# ---- torch ----


def torch_file(file: Path, wrong: list[str]) -> dict[str, Tensor]:
    """{name: tensor} of a state dict, or of the "state_dict" in a training checkpoint.

    torch itself only tells where in the file each tensor lies. That cannot be told in its format
    from before 1.6, of which the whole file is held in memory while the tensors are in use.
    Raises UserError when torch is not installed.
    """
    try:
        state = _state_dict(file)
    except UserError:
        raise
    except Exception as error:  # torch raises all kinds on a broken file
        wrong.append(f"{file.name} cannot be read by torch ({_reason(file, error)})")
        return {}
    known = {dtype.name for dtype in DTYPES.values()}
    found = {}
    for name, value in state.items():
        if not hasattr(value, "untyped_storage"):
            wrong.append(f"{file.name}: {name} is a {type(value).__name__}, expected a tensor")
        elif (dtype := str(value.dtype).removeprefix("torch.")) not in known:
            wrong.append(f"{file.name}: tensor {name} has dtype {dtype}, which is not supported")
        else:
            found[name] = _torch_tensor(file, value, np.dtype(dtype))
    return found


def _state_dict(file: Path) -> Mapping[str, Any]:
    """The tensors of a file, without their numbers ("meta") where it tells their places."""
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file}: reading torch's files needs torch, which is not installed; "
            "pip install torch, or take the checkpoint's safetensors files"
        ) from None
    device = "meta" if _zipped(file) else "cpu"
    with _numpy_numbers(torch):
        value = torch.load(file, map_location=device, weights_only=True)
    if isinstance(value, Mapping) and isinstance(value.get("state_dict"), Mapping):
        value = value["state_dict"]
    if not isinstance(value, Mapping):
        raise TypeError(f"it holds a {type(value).__name__}, expected a state dict")
    return value


def _torch_tensor(file: Path, value: Any, dtype: np.dtype) -> Tensor:
    """`value` is a torch tensor, a view of its storage: the tensors of a file may share one."""
    shape = tuple(value.shape)
    span = 1 + sum((n - 1) * step for n, step in zip(shape, value.stride(), strict=True))
    steps = tuple(step * dtype.itemsize for step in value.stride())
    if value.device.type == "meta":
        start = value.untyped_storage()._checkpoint_offset  # of torch 2.5 and later
        start += value.storage_offset() * dtype.itemsize
        view = functools.partial(read_bytes, file, dtype, (span,), start)
    else:
        held = value.detach().as_strided((span,), (1,))
        view = functools.partial(_as_numpy, held, dtype)

    def read() -> np.ndarray:
        if 0 in shape:
            return np.zeros(shape, dtype)
        value = np.lib.stride_tricks.as_strided(view(), shape, steps)
        return np.array(value, order="C", copy=None)  # copied only where it is not in order

    return Tensor(shape, dtype, file, read)


def _as_numpy(held: Any, dtype: np.dtype) -> np.ndarray:
    import torch

    return held.view(torch.uint8).numpy().view(dtype).copy()


def _zipped(file: Path) -> bool:
    """Whether a file begins as those of torch since 1.6 do."""
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


@contextlib.contextmanager
def _numpy_numbers(torch: Any) -> Iterator[None]:
    """Let torch's weights-only reader pass numpy scalars, by their old and their new name.

    Training checkpoints hold them as learning rates, LAION's among them. They are plain numbers.
    """
    scalar = np._core.multiarray.scalar
    kinds = [np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType]
    names = [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, *kinds]
    with torch.serialization.safe_globals(names):
        yield


def _ended(file: Path) -> bool:
    """Whether a zip archive has its last part, the list of what is in it."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:
        return False


def _reason(file: Path, error: Exception) -> str:
    """One line about a failure of torch.load, whose own messages go over many."""
    text = " ".join(str(error).split())
    if _zipped(file) and not _ended(file):
        return f"the end of the zip archive is missing; {AGAIN}"
    if "WeightsUnpickler error:" in text:
        text = text.split("WeightsUnpickler error:")[1].split("Check the documentation")[0].strip()
        return (
            f"weights-only: {text}; it holds more than plain tensors, or is in a newer pickle "
            "protocol than 2: save its state dict anew, where you trust it"
        )
    return f"{type(error).__name__}: {text[:200]}"
