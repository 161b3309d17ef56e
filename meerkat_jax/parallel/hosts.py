"""One run on several hosts: initialisation, barriers, and arrays that the hosts hold together.

JAX is the distributed engine (`jax.distributed`, docs.jax.dev "multi_process"): every host runs the
same command, and arrays are laid over the devices of all. Flags name the hosts, or JAX detects the
cluster: TPU pods by their metadata, SLURM and Kubernetes by their variables. This file adds what
JAX lacks: a roll call before `jax.distributed.initialize` and a barrier that name the processes
that are missing (JAX's own end the process without a name), tasks that process 0 alone does, and
the rows of a batch that a host has to read.

Everything here works in one process too, where it waits for nobody.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost  # its barrier has a time-out; multihost_utils' has none

from meerkat_jax.core.cli import USER_EXIT
from meerkat_jax.core.errors import UserError
from meerkat_jax.parallel.devices import check_x64, find_devices

GRACE = 20  # seconds more that processes wait for process 0, which itself waits for the others
SHUTDOWN = 60  # seconds that a process which ends waits for the others
GREETING = "meerkat_jax"
T = TypeVar("T")


# Initialisation -----------------------------------------------------------------------------------


def define_flags(timeout: int) -> None:
    """Define the flags that `initialize` takes; `timeout` is the default of --host_timeout."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if hosts are named by hand.")
    flags.DEFINE_integer("processes", None, "How many processes run this command.")
    flags.DEFINE_integer("process", None, "The number of this one, from 0.")
    flags.DEFINE_integer("host_timeout", timeout, "Seconds that hosts wait for each other.", 1)


def initialize(
    coordinator: str | None, processes: int | None, process: int | None, timeout: int
) -> None:
    """Connect to the run's other processes and start the devices. Call it before any other JAX.

    coordinator: "HOST:PORT", where process 0 of all `processes` is reached; process: the number of
    this one. All None: the cluster that JAX detects, or one process. Raises UserError after
    `timeout` seconds, naming the missing processes, for numbers that do not fit together, and where
    there is no device (`find_devices`).
    """
    check_x64()
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        _initialize_cluster(timeout)
    elif missing:
        have = ", ".join(name for name in given if name not in missing)
        raise UserError(f"{have} without {' and '.join(missing)}; give all three, or none of them")
    else:
        if not 0 <= process < processes:
            raise UserError(
                f"--process={process} of --processes={processes}; expected 0 to {processes - 1}"
            )
        host, port = _address(coordinator)
        if processes > 1:
            _roll_call(host, port, processes, process, timeout)
        jax.distributed.initialize(
            coordinator, processes, process,
            initialization_timeout=timeout, shutdown_timeout_seconds=SHUTDOWN,
        )  # fmt: skip
    find_devices()  # they are counted together, while all are here


def _initialize_cluster(timeout: int) -> None:
    """Connect to the processes of the cluster that JAX detects; nothing if it detects none.

    JAX tells its addresses to nobody, so there is no roll call: processes that do not come are
    known to the cluster's launcher alone. JAX would abort with a stack trace; this ends before.
    """

    def give_up() -> None:
        print(
            f"error: not all processes of the cluster have come within {timeout} s; look at the "
            "launcher's output for those that are missing",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(USER_EXIT)

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages for clusters that nobody asked for
            jax.distributed.initialize(
                initialization_timeout=timeout + GRACE, shutdown_timeout_seconds=SHUTDOWN
            )
    except ValueError as error:
        if "should be defined" not in str(error):  # what JAX says where there is no cluster
            raise
    finally:
        timer.cancel()


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator!r}: expected HOST:PORT, as in 10.0.0.1:8476")
    return host.strip("[]"), int(port)


def _roll_call(host: str, port: int, processes: int, process: int, timeout: float) -> None:
    """Return when all processes have come; else UserError with the same line in each that has.

    On the coordinator's port, before JAX takes it: every process sends its number, process 0 sends
    the same error line to all; it is empty when the run may begin.
    """
    end = time.monotonic() + timeout
    if process:
        error = _greet_first(host, port, f"{GREETING} {process} {processes}\n", end, timeout)
    else:
        error = _collect_greetings(port, processes, end, timeout)
    if error:
        raise UserError(error)


def _collect_greetings(port: int, processes: int, end: float, timeout: float) -> str:
    """Process 0: receive the numbers of the others, send all of them the error line, return it."""
    came, guests, fault = set(), [], ""
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.create_server(("", port), backlog=processes))
        except OSError as error:
            raise UserError(
                f"--coordinator: port {port} cannot be opened here ({error.strerror}); is another "
                "run on it? give another port to all processes"
            ) from None
        while len(came) < processes - 1 and not fault and (left := end - time.monotonic()) > 0:
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
                fault = f"process {number} has --processes={total}, process 0 {processes}; "
                fault += "give all the same number"
            elif number in came:
                fault = f"two processes have --process={number}; give each its own number"
            came.add(number)
        if not fault and len(came) < processes - 1:
            fault = _missing(set(range(1, processes)) - came, processes, timeout)
        for guest in guests:
            with contextlib.suppress(OSError):
                guest.sendall(f"{fault}\n".encode())
    return fault


def _greet_first(host: str, port: int, greeting: str, end: float, timeout: float) -> str:
    """Another process: send its number to process 0, which may start later; its error line."""
    reason = "it does not answer"
    while (left := end + GRACE - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(left, 5)) as line:
                line.settimeout(left)
                line.sendall(greeting.encode())
                fault = line.makefile().readline()
                if fault.endswith("\n"):
                    return fault.strip()
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > end:
            break
        time.sleep(0.2)
    return (
        f"process 0, the coordinator at {host}:{port}, did not come within {timeout:g} s "
        f"({reason}); is it running, and can this host reach it?"
    )


def _missing(missing: set[int], processes: int, timeout: float) -> str:
    names = ", ".join(map(str, sorted(missing)))
    which, have = ("processes", "have") if len(missing) > 1 else ("process", "has")
    return (
        f"{which} {names} of {processes} {have} not come within {timeout:g} s; look at the output "
        "there, or give the right --processes"
    )


# Barriers -----------------------------------------------------------------------------------------


def is_first() -> bool:
    """Is this process 0, which writes all files and prints all messages."""
    return jax.process_index() == 0


def barrier(name: str, facts: Mapping[str, Any], timeout: float) -> None:
    """Wait until all processes are here with the same `facts` (JSON values by name).

    Raises the same UserError in all of them, naming the processes that did not come within
    `timeout` seconds, or whose facts are not process 0's.
    """
    if jax.process_count() == 1:
        return
    _wait(name, timeout)
    if not facts:
        return
    first, *others = _exchange(dict(facts))
    for process, theirs in enumerate(others, 1):
        for key, value in theirs.items():
            if value != first.get(key):
                _fail(f"process {process} has {key} {value!r}, process 0 {first.get(key)!r}")


def run_on_first_process(name: str, task: Callable[[], T], timeout: float) -> T | None:
    """Run `task` in process 0 while the others wait; returns its value there, None in the others.

    Raises in all processes what it raises in process 0, as UserError in the others, and UserError
    if it takes more than `timeout` seconds.
    """
    if jax.process_count() == 1:
        return task()
    value = failure = None
    if is_first():
        try:
            value = task()
        except Exception as error:
            failure = error
    _wait(name, timeout)
    message, *_ = _exchange(failure and f"process 0: {failure}")
    if failure:
        atexit.register(_leave)
        raise failure
    if message:
        _fail(message)
    return value


def _wait(name: str, timeout: float) -> None:
    """Wait for all processes; fails in all of them with the names of those that did not come."""
    try:
        multihost.get_barrier_sync_fn()(key=name, timeout_ms=max(1, int(timeout * 1000)))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        late = {int(number) for number in re.findall(r"^\d+$", str(error), re.MULTILINE)}
        _fail(f"{name}: {_missing(late, jax.process_count(), timeout)}")


def _exchange(value: Any) -> list[Any]:
    """The JSON values of all processes, in each of them; just after `_wait`, or it may hang."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))  # [P]
    padded = np.pad(text, (0, sizes.max() - text.size))
    texts = multihost_utils.process_allgather(padded)  # [P, sizes.max()]
    return [json.loads(bytes(row[:size])) for row, size in zip(texts, sizes, strict=True)]


def _fail(message: str) -> NoReturn:
    """UserError, and an exit that waits for nobody."""
    atexit.register(_leave)
    raise UserError(message)


def _leave() -> None:
    """Exit now: JAX would wait for a process that is not there, and then abort."""
    if is_first():
        time.sleep(2)  # the others get the error from the service that runs here
    sys.stdout.flush()
    os._exit(USER_EXIT)


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


def allgather(tree: Any) -> Any:
    """Whole NumPy arrays, in each process, of arrays laid over the devices of several."""
    return multihost_utils.process_allgather(tree, tiled=True)
