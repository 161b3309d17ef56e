"""`kill -9` at any moment, then --resume: the end is bit for bit that of a run left alone.

One run is killed in a save, and stopped between two rows; the run that it is compared with was not,
and reads its data in its own process where this one has a worker. Kills at other moments, while it
compiles and amid steps, are those of test_soak.py.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from meerkat_jax.training.metrics import read_metrics, without_timing
from meerkat_jax.weights.checkpoints import Checkpoints
from tests.conftest import ROOT, TINY, cli_environment

PATIENCE = 600  # seconds; machines that have other work to do are slow


def start(workdir, cache, *flags):
    """A run whose data has a worker process, with its output as a pipe."""
    command = [sys.executable, "-m", "meerkat_jax.train", f"--config={TINY}", "--resume"]
    command += [f"--workdir={workdir}", "--config.data.workers=1", *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=cli_environment(cache), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def children(pid):
    """Process ids of everything below `pid` (Linux)."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        direct = [int(c) for task in tasks for c in (task / "children").read_text().split()]
    except OSError:
        return []
    return direct + [below for child in direct for below in children(child)]


def alive(pid):
    """Is the process there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    except OSError:
        return False


def kill(process):
    """kill -9 of the main process alone; its workers must see for themselves."""
    below = children(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    end = time.monotonic() + 20
    while any(map(alive, below)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(alive, below)), "workers outlive the run"


def until_save_begins(process, folder, above):
    """Wait until a checkpoint of a step above `above` is being written, or has just been."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        for path in folder.glob("[0-9]*"):
            if int(path.name.split(".")[0]) > above:
                return
    process.kill()
    raise AssertionError(f"no save was seen: {process.communicate()[0]}")


@pytest.fixture(scope="module")
def killed(finished, cache, tmp_path_factory):
    """A work directory whose run was killed, and the steps at which it went on."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    folder, starts = workdir / "checkpoints", []

    def latest():
        starts.append(Checkpoints(folder, read_only=True).latest() if folder.exists() else None)

    run = start(workdir, cache)
    until_save_begins(run, folder, above=3)
    kill(run)  # while step 6 is written
    latest()
    run = start(workdir, cache, "--stop_after=7")  # a step that no row and no schedule ends at
    assert "leaked shared_memory" not in run.stdout.read()
    assert run.wait() == 0
    latest()
    run = start(workdir, cache)
    assert "leaked shared_memory" not in run.stdout.read()
    assert run.wait() == 0
    return workdir, starts


def test_the_kills_came_when_they_should(killed):
    first, second = killed[1]
    assert first in (3, 6)  # 6 only if the rename was faster than the signal
    assert second == 7


def test_same_metrics(finished, killed):
    rows, mine = (without_timing(read_metrics(path)) for path in (finished, killed[0]))
    assert rows == mine


def test_same_parameters_and_optimizer_state(finished, killed):
    """The whole state, read as it was saved: parameters, moments, counts, key."""
    one, other = (everything(path / "checkpoints") for path in (finished, killed[0]))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert len(jax.tree.leaves(one)) > 100
    for mine, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()


def everything(folder):
    """All arrays of the newest checkpoint, in one place however many processes wrote them."""
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    items = {name: ocp.StandardCheckpointHandler() for name in ("trainable", "opt")}
    with ocp.CheckpointManager(
        folder, options=ocp.CheckpointManagerOptions(read_only=True), item_handlers=items
    ) as m:
        found = m.item_metadata(m.latest_step())
        wanted = {
            name: jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
                found[name],
            )
            for name in items
        }
        args = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        return dict(m.restore(m.latest_step(), args=ocp.args.Composite(**args)).items())


def test_a_run_that_is_finished_stays_as_it_is(killed, train):
    before = read_metrics(killed[0])
    done = train(killed[0], "--resume", "--config.data.workers=1")
    assert done.returncode == 0, done.stderr
    assert "going on from step 8" in done.stdout
    assert read_metrics(killed[0]) == before


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_its_steps_only(finished, killed, train, tmp_path):
    """One flipped bit: the one before is taken, and the end is the same once more."""
    run = killed[0]
    data = max((run / "checkpoints" / "8" / "opt").glob("**/d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    done = train(run, "--resume", "--config.data.workers=1")
    assert done.returncode == 0, done.stderr
    assert "damaged" in done.stderr and "going on from step 7" in done.stdout
    assert without_timing(read_metrics(run)) == without_timing(read_metrics(finished))


@pytest.mark.slow
def test_truncated_compiled_programs_are_made_anew(finished, train, cache, tmp_path):
    """What a kill amid a write to the compilation cache may leave."""
    files = [path for path in (cache / "compiled").iterdir() if path.name.endswith("-cache")]
    assert files
    whole = {path: path.read_bytes() for path in files}
    try:
        for path, content in whole.items():
            os.truncate(path, len(content) // 2)
        done = train(tmp_path / "run", "--stop_after=3")
    finally:
        for path, content in whole.items():
            path.write_bytes(content)
    assert done.returncode == 0, done.stderr
    rows = without_timing(read_metrics(tmp_path / "run"))
    assert rows == [row for row in without_timing(read_metrics(finished)) if row["step"] <= 3]
