"""One run on several hosts: joining, waiting for each other, and arrays that they hold together.

JAX is the distributed engine (`jax.distributed`, docs.jax.dev "multi_process"): every host runs the
same command, and arrays are laid over the devices of all. A run is told of its hosts by flags, or
finds them where JAX knows how: on TPU pods from their metadata, under SLURM and in Kubernetes. This
file adds what is needed before and around: a roll call and barriers that name who is missing (JAX's
own ends the process without a name), tasks that process 0 alone does, and the rows of a batch that
a host has to read.

Everything here works in one process too, where it waits for nobody.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from absl import flags

# Not public: which cluster this is, and the key-value store that all processes share.
from jax._src import clusters, distributed
from jax.experimental import multihost_utils

from meerkat_jax.core.cli import USER_EXIT
from meerkat_jax.core.errors import UserError
from meerkat_jax.parallel.devices import find_devices, refuse_x64

GRACE = 20  # seconds more that processes wait for the word of process 0, which itself has waited
SHUTDOWN = 60  # seconds that a process which ends waits for the others
GREETING = "meerkat_jax"
T = TypeVar("T")


# Joining ------------------------------------------------------------------------------------------


def define_flags(timeout: int) -> None:
    """The flags that `join` takes, for a door; `timeout` is the default of --host_timeout."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if hosts are named by hand.")
    flags.DEFINE_integer("processes", None, "How many processes run this command.")
    flags.DEFINE_integer("process", None, "The number of this one, from 0.")
    flags.DEFINE_integer("host_timeout", timeout, "Seconds that hosts wait for each other.", 1)


def join(coordinator: str | None, processes: int | None, process: int | None, timeout: int) -> None:
    """Join the run's other processes, and start the devices. Before anything else does.

    coordinator: "HOST:PORT", where process 0 of all `processes` is reached; process: the number of
    this one. All None: as JAX finds them, or one process. Raises UserError after `timeout` seconds,
    naming the processes that did not come, for numbers that do not fit together, and where there is
    no device (`find_devices`).
    """
    refuse_x64()
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    local = None
    if len(missing) == len(given):
        coordinator, processes, process, local = _found(timeout)
    elif missing:
        have = ", ".join(name for name in given if name not in missing)
        raise UserError(f"{have} without {' and '.join(missing)}; give all three, or none of them")
    if not coordinator or not processes:
        find_devices()
        return
    if not 0 <= process < processes:
        raise UserError(
            f"--process={process} of --processes={processes}; expected 0 to {processes - 1}"
        )
    host, port = _address(coordinator)
    if processes > 1:
        _roll_call(host, port, processes, process, timeout)
    jax.distributed.initialize(
        coordinator, processes, process, local,
        initialization_timeout=timeout, shutdown_timeout_seconds=SHUTDOWN,
    )  # fmt: skip
    find_devices()  # they are counted together, while all are here


def _found(timeout: int) -> tuple:
    """(coordinator, processes, process, devices of this one) as JAX finds them; None if alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages for clusters that nobody may have asked for
        detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
        return detect(None, None, None, None, None, timeout)


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator!r}: expected HOST:PORT, as in 10.0.0.1:8476")
    return host.strip("[]"), int(port)


def _roll_call(host: str, port: int, processes: int, process: int, timeout: float) -> None:
    """Return when all processes have come; else UserError with the same line in each that has.

    On the coordinator's port, before JAX takes it: every process tells its number, process 0 gives
    all the same word, which is empty when the run may begin.
    """
    end = time.monotonic() + timeout
    if process:
        word = _answer(host, port, f"{GREETING} {process} {processes}\n", end, timeout)
    else:
        word = _call(port, processes, end, timeout)
    if word:
        raise UserError(word)


def _call(port: int, processes: int, end: float, timeout: float) -> str:
    """Process 0: take the greetings of the others and give all of them the word."""
    came, guests, word = set(), [], ""
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.create_server(("", port), backlog=processes))
        except OSError as error:
            raise UserError(
                f"--coordinator: port {port} cannot be opened here ({error.strerror}); is another "
                "run on it? give another port to all processes"
            ) from None
        while len(came) < processes - 1 and not word and (left := end - time.monotonic()) > 0:
            listener.settimeout(left)
            try:
                guest = stack.enter_context(listener.accept()[0])
                guest.settimeout(min(left, 5))
                name, number, total = guest.makefile().readline(100).split()
                number, total = int(number), int(total)
            except (OSError, ValueError):
                continue  # time is over, or a stranger knocked
            if name != GREETING:
                continue
            guests.append(guest)
            if total != processes:
                word = f"process {number} has --processes={total}, process 0 {processes}; give all "
                word += "the same number"
            elif number in came:
                word = f"two processes have --process={number}; give each its own number"
            came.add(number)
        if not word and len(came) < processes - 1:
            word = _absent(set(range(1, processes)) - came, processes, timeout)
        for guest in guests:
            with contextlib.suppress(OSError):
                guest.sendall(f"{word}\n".encode())
    return word


def _answer(host: str, port: int, greeting: str, end: float, timeout: float) -> str:
    """Another process: greet process 0, which may come later, and wait for its word."""
    reason = "it does not answer"
    while (left := end + GRACE - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(left, 5)) as line:
                line.settimeout(left)
                line.sendall(greeting.encode())
                word = line.makefile().readline()
                if word.endswith("\n"):
                    return word.strip()
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > end:
            break
        time.sleep(0.2)
    return (
        f"process 0, the coordinator at {host}:{port}, did not come within {timeout:g} s "
        f"({reason}); is it running, and can this host reach it?"
    )


def _absent(missing: set[int], processes: int, timeout: float) -> str:
    names = ", ".join(map(str, sorted(missing)))
    which, have = ("processes", "have") if len(missing) > 1 else ("process", "has")
    return (
        f"{which} {names} of {processes} {have} not come within {timeout:g} s; look at the output "
        "there, or give the right --processes"
    )


# Waiting ------------------------------------------------------------------------------------------


def is_first() -> bool:
    """Is this process 0, which writes all files and says all there is to say."""
    return jax.process_index() == 0


def meet(what: str, facts: Mapping[str, Any], timeout: float) -> None:
    """Wait until all processes are here with the same `facts` (JSON values by name).

    `what` names the place; each is met once. Raises the same UserError in all of them, naming the
    processes that did not come within `timeout` seconds, or whose facts are not process 0's.
    """
    if jax.process_count() == 1:
        return
    mine = json.dumps(dict(facts), sort_keys=True)
    if is_first():
        _word(what, _compared(what, json.loads(mine), timeout))
    else:
        _store().key_value_set(f"{what}/{jax.process_index()}", mine)
        _obey(what, timeout + GRACE)


def lead(what: str, task: Callable[[], T], timeout: float) -> T | None:
    """`task()` in process 0 alone, while the others wait for it; what it gives, or None in those.

    Raises in all processes what it raises in process 0, as UserError, and UserError in the others
    if it takes more than `timeout` seconds.
    """
    if jax.process_count() == 1:
        return task()
    if not is_first():
        return _obey(what, timeout)
    try:
        value = task()
    except Exception as error:
        _store().key_value_set(f"{what}/word", f"process 0: {error}")
        atexit.register(_leave)
        raise
    _word(what, "")
    return value


def _compared(what: str, mine: Mapping[str, Any], timeout: float) -> str:
    """What process 0 says when all have come: nothing, or what is wrong."""
    end, missing = time.monotonic() + timeout, set()
    for process in range(1, jax.process_count()):
        facts = _read(f"{what}/{process}", end - time.monotonic())
        if facts is None:
            missing.add(process)
            continue
        for name, theirs in json.loads(facts).items():
            if theirs != mine.get(name):
                return f"process {process} has {name} {theirs!r}, process 0 {mine.get(name)!r}"
    return _absent(missing, jax.process_count(), timeout) if missing else ""


def _word(what: str, word: str) -> None:
    """Process 0: tell all how to go on, and go on so."""
    _store().key_value_set(f"{what}/word", word)
    _refuse(word)


def _obey(what: str, timeout: float) -> None:
    """Another process: wait for the word of process 0."""
    word = _read(f"{what}/word", timeout)
    if word is None:
        word = f"process 0 gave no word of {what!r} within {timeout:g} s; look at the output there"
    _refuse(word)


def _refuse(word: str) -> None:
    """UserError with this word, if there is one, and then an end that waits for nobody."""
    if word:
        atexit.register(_leave)
        raise UserError(word)


def _leave() -> None:
    """End now: JAX would wait for a process that is not there, and then abort."""
    if is_first():
        time.sleep(2)  # the others hear the word from here
    sys.stdout.flush()
    os._exit(USER_EXIT)


def _store() -> Any:
    return distributed.global_state.client


def _read(key: str, timeout: float) -> str | None:
    """The value of a key, for which it waits; None when it does not come."""
    try:
        return _store().blocking_key_value_get(key, max(1, int(timeout * 1000)))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        return None


# Arrays -------------------------------------------------------------------------------------------


def rows(sharding: jax.sharding.Sharding, batch: int) -> list[int] | None:
    """Which rows of a batch the devices of this process hold, in order; None in a lone process."""
    if jax.process_count() == 1:
        return None
    held = sharding.addressable_devices_indices_map((batch,)).values()
    return sorted({row for (part,) in held for row in range(*part.indices(batch))})


def place(local: Mapping[str, np.ndarray], sharding: jax.sharding.Sharding, batch: int) -> dict:
    """The global arrays [batch, ...] of a batch; `local` holds the `rows` of this process."""
    if jax.process_count() == 1:
        return jax.device_put(dict(local), sharding)
    return {
        name: jax.make_array_from_process_local_data(sharding, array, (batch, *array.shape[1:]))
        for name, array in local.items()
    }


def put(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array that every process has whole, laid over the devices of all."""
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def whole(array: jax.Array) -> np.ndarray:
    """All of an array that is laid over the devices of several processes, in each of them."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
