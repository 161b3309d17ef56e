"""Many kills at random moments, in one process and in two: the end is that of a run left alone.

Moments are drawn from a seed: in compilation, amid steps, in a save; by `kill -9`, or by SIGTERM,
after which a run saves and says that it can be started again. MEERKAT_SOAK_KILLS says how many.
"""

import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from meerkat_jax.training.metrics import read_metrics, without_timing
from meerkat_jax.training.preemption import EXIT
from tests.conftest import ROOT, cli_environment, free_port
from tests.test_resume import everything

KILLS = int(os.environ.get("MEERKAT_SOAK_KILLS", 25))
STEPS = 8 * KILLS + 16  # more than all interrupted runs take together
PATIENCE = 900  # seconds for a process to end
WHERE = ("compile", "step", "step", "save", "save")
HOW = (signal.SIGKILL, signal.SIGTERM)


def launch(workdir, cache, count):
    """The processes of a run; the first one's output is a pipe."""
    command = [sys.executable, "-m", "meerkat_jax.train", f"--config={ROOT}/tests/soak.py:{STEPS}"]
    command += ["--resume", f"--workdir={workdir}"]
    if count > 1:
        command += [f"--coordinator=localhost:{free_port()}", f"--processes={count}"]
    return [
        subprocess.Popen(
            command + ([f"--process={number}"] if count > 1 else []),
            cwd=ROOT, env=cli_environment(cache), text=True,
            stdout=subprocess.DEVNULL if number else subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(count)
    ]  # fmt: skip


def until(run, where, wait, rng):
    """Return at the moment; `wait` is how many steps are taken before."""
    for line in run.stdout:
        if where == "compile" and "compiling" in line:
            time.sleep(rng.uniform(0, 2))
            return
        if where != "compile" and line.startswith("step "):
            wait -= 1
            if wait <= 0:
                return


def until_save(run, folder):
    """Return when a checkpoint is being written."""
    end = time.monotonic() + 60
    while time.monotonic() < end and run.poll() is None:
        if list(folder.glob("*tmp*")):
            return


def interrupted(workdir, cache, count, where, how, rng):
    """Run until the moment, and end it; gives the exit codes."""
    processes = launch(workdir, cache, count)
    try:
        until(processes[0], where, rng.randint(1, 7), rng)
        if where == "save":
            until_save(processes[0], workdir / "checkpoints")
        time.sleep(rng.uniform(0, 0.05))
        rng.choice(processes).send_signal(how)
        if how == signal.SIGKILL:  # who launched them ends the others too
            for process in processes:
                process.kill()
        processes[0].stdout.read()
        return [process.wait(PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.stderr.close()


def left_alone(workdir, cache, count):
    """Run to the end."""
    processes = launch(workdir, cache, count)
    try:
        said = processes[0].stdout.read()
        for process in processes:
            assert process.wait(PATIENCE) == 0, process.stderr.read()[-3000:]
    finally:
        for process in processes:
            process.kill()
    return said


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_killed_at_random_moments_it_ends_as_if_left_alone(cache, tmp_path, count):
    rng = random.Random(count)
    left_alone(tmp_path / "whole", cache, count)
    run, told = tmp_path / "killed", []
    moments = [(where, how) for where in WHERE for how in HOW]
    moments = [moments[i % len(moments)] for i in range(KILLS)]
    rng.shuffle(moments)
    for where, how in moments:
        codes = interrupted(run, cache, count, where, how, rng)
        rows = read_metrics(run)[-1:] if (run / "metrics.jsonl").exists() else []
        told.append((where, how.name, codes, rows[0]["step"] if rows else 0))
        print(*told[-1], flush=True)
        expected = EXIT if how == signal.SIGTERM else -signal.SIGKILL
        assert codes == [expected] * count, told
    assert "going on from step" in left_alone(run, cache, count), told
    rows, mine = (without_timing(read_metrics(tmp_path / name)) for name in ("whole", "killed"))
    assert rows == mine and len(rows) == STEPS
    one, other = (everything(tmp_path / name / "checkpoints") for name in ("whole", "killed"))
    for leaf, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(leaf).tobytes() == np.asarray(theirs).tobytes()
