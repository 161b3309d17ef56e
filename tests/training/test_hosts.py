"""Several real processes on this machine, one device each: roll call, barriers, arrays, a run."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from meerkat_jax.data.pipeline import Rows
from meerkat_jax.training.metrics import read_metrics, without_timing
from tests.conftest import ROOT, TINY, cli_environment, free_port
from tests.tolerances import tolerance

PATIENCE = 5  # seconds of the roll call in the tests that somebody misses

JOIN = """
import sys
import jax, numpy as np
from meerkat_jax.core.errors import UserError
from meerkat_jax.parallel import hosts
from meerkat_jax.parallel import placement

port, count, number, timeout = map(int, sys.argv[1:5])
print("ready", flush=True)
sys.stdin.readline()
try:
    hosts.initialize(f"localhost:{port}", count, number, timeout)
    SCRIPT
except UserError as error:
    print("refused:", error)
"""

ARRAYS = """
    mesh = placement.make_mesh({"data": -1})
    over = placement.batch_sharding(mesh)
    whole = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
    mine = hosts.rows(over, 8)
    made = hosts.run_on_first_process("made", lambda: "by process %d" % jax.process_index(), 60)
    assert made == ("by process 0" if number == 0 else None)
    hosts.barrier("here", {"size": 8}, 60)
    batch = hosts.place({"x": whole[mine]}, over, 8)["x"]
    same = hosts.put(whole, placement.replicated(mesh))
    assert batch.shape == same.shape == whole.shape and not batch.is_fully_addressable
    assert (hosts.allgather(batch) == whole).all() and (hosts.allgather(same) == whole).all()
    assert (hosts.allgather(jax.jit(lambda x: x * 2)(batch)) == 2 * whole).all()
    print("rows", mine)
"""

DIFFER = """
    hosts.barrier("data", {"seed": 0, "tokenizer": "abc" if number == 0 else "xyz"}, 60)
"""

REFUSED = """
    def task():
        raise UserError("the folder is not ours")
    hosts.run_on_first_process("folder", task, 60)
"""

STAY_AWAY = """
    hosts.barrier("all are there", {}, 120)
    if number != 1:
        hosts.barrier("data", {}, 8)
    import os; os._exit(0)
"""


def script(body):
    return JOIN.replace("    SCRIPT\n", body.strip("\n") + "\n")


def together(body, members, count, timeout=60):
    """Output of the script in processes with these numbers, of which each expects `count`."""
    port = free_port()
    return run_together(body, [(port, count, number, timeout) for number in members])


def run_together(body, arguments):
    """Output of the script in a process for each of the arguments.

    All begin when all have imported what they need, which takes a busy machine half a minute.
    """
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script(body), *map(str, given)],
            cwd=ROOT, env=cli_environment("unused"), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for given in arguments
    ]  # fmt: skip
    try:
        assert [run.stdout.readline() for run in runs] == ["ready\n"] * len(runs)
        for run in runs:
            run.stdin.write("\n")
            run.stdin.flush()
        ended = [run.communicate(timeout=200) for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert {run.returncode for run in runs} <= {0, 2}, [err[-2000:] for _, err in ended]
    return [[line for line in out.splitlines() if "[Gloo]" not in line] for out, _ in ended]


@pytest.mark.parametrize("count", [2, 4])
def test_batches_are_put_together_of_each_process_rows(count):
    said = together(ARRAYS, range(count), count)
    size = 8 // count
    assert said == [[f"rows {list(range(i * size, (i + 1) * size))}"] for i in range(count)]


def test_processes_that_do_not_come_are_named_by_all_that_came():
    said = together("    pass", [0, 2], 4, PATIENCE)
    assert said[0] == said[1]
    assert said[0][0].startswith(f"refused: processes 1, 3 of 4 have not come within {PATIENCE} s")


def test_a_coordinator_that_does_not_come_is_named():
    (said,) = together("    pass", [1], 2, PATIENCE)
    assert said[0].startswith("refused: process 0, the coordinator at localhost:")


@pytest.mark.parametrize("members, word", [([0, 1, 1], "two processes have --process=1")])
def test_two_processes_with_one_number_are_refused(members, word):
    said = together("    pass", members, 4, PATIENCE)
    assert all(word in lines[0] for lines in said)


def test_processes_that_were_told_another_count_are_refused():
    port = free_port()
    said = run_together("    pass", [(port, 2, 0, 30), (port, 3, 1, 30)])
    assert said[0] == said[1]
    assert "process 1 has --processes=3, process 0 2" in said[0][0]


def test_processes_with_other_facts_are_refused_by_name():
    said = together(DIFFER, range(2), 2)
    assert said == [["refused: process 1 has tokenizer 'xyz', process 0 'abc'"]] * 2


def test_what_process_0_refuses_ends_all():
    said = together(REFUSED, range(2), 2)
    assert "the folder is not ours" in said[0][0] and "the folder is not ours" in said[1][0]


def test_a_process_that_stays_away_from_a_barrier_is_named():
    said = together(STAY_AWAY, range(3), 3)
    assert said[0] == said[2]
    assert said[0][0].startswith("refused: data: process 1 of 3 has not come within 8 s")


@pytest.mark.parametrize("members", [[0, 1], [0]])
def test_a_cluster_that_jax_detects_needs_no_flags(members):
    code = "import jax; from meerkat_jax.parallel import hosts\n"
    code += "hosts.initialize(None, None, None, 20)\n"
    code += "hosts.barrier('here', {'size': 8}, 60); print(jax.process_count())"
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    slurm |= {"JAX_COORDINATOR_PORT": str(free_port())}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, text=True,
            env=cli_environment("unused") | slurm | dict.fromkeys(
                ("SLURM_PROCID", "SLURM_LOCALID"), str(number)
            ),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in members
    ]  # fmt: skip
    for run in runs:
        out, error = run.communicate(timeout=200)
        if len(members) == 2:
            assert run.returncode == 0 and out.splitlines()[-1] == "2", error[-2000:]
        else:
            assert run.returncode == 2 and "not all processes of the cluster have come" in error


@pytest.mark.parametrize(
    "flags, word",
    [
        (["--processes=2"], "--processes without --coordinator and --process"),
        (["--coordinator=here", "--processes=2", "--process=0"], "expected HOST:PORT"),
        (["--coordinator=h:1", "--processes=2", "--process=2"], "expected 0 to 1"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(train, tmp_path, flags, word):
    done = train(tmp_path / "run", *flags)
    assert done.returncode == 2 and word in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_rows_of_all_hosts_are_the_batches_in_order(hosts):
    records, batch, size = list(range(100, 148)), 8, 8 // hosts
    parts = [Rows(records, batch, range(h * size, (h + 1) * size)) for h in range(hosts)]
    assert all(len(part) == 48 // hosts for part in parts)
    found = [
        parts[h][number * size + row]
        for number in range(48 // batch)
        for h in range(hosts)
        for row in range(size)
    ]
    assert found == records


def runs(workdir, cache, count, *flags, config=TINY):
    """The train command in `count` processes; the output of the first."""
    port = free_port()
    where = [f"--coordinator=localhost:{port}", f"--processes={count}"] if count > 1 else []
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "meerkat_jax.train", f"--config={config}", "--resume",
             f"--workdir={workdir}", *where, *([f"--process={i}"] if where else []), *flags],
            cwd=ROOT, env=cli_environment(cache), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(count)
    ]  # fmt: skip
    try:
        ended = [process.communicate(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0] * count, [err[-2000:] for _, err in ended]
    return ended[0][0]


def assert_same_rows(one, other):
    """The same rows but for the order of sums."""
    rows, mine = (without_timing(read_metrics(path)) for path in (one, other))
    assert [row.keys() for row in rows] == [row.keys() for row in mine]
    for row, theirs in zip(rows, mine, strict=True):
        for key, value in row.items():
            if isinstance(value, float):
                np.testing.assert_allclose(
                    theirs[key], value, err_msg=key, **tolerance("processes")
                )
            else:
                assert theirs[key] == value


@pytest.mark.slow
def test_two_processes_then_one_then_two_are_as_one(finished, cache, tmp_path):
    """Data order and numbers of the run that one process did alone, across all three phases."""
    run = tmp_path / "run"
    assert "tiny on 2 x cpu" in runs(run, cache, 2, "--stop_after=4")
    assert "going on from step 4" in runs(run, cache, 1, "--stop_after=6")
    assert "going on from step 6" in runs(run, cache, 2)
    assert_same_rows(finished, run)
    assert sorted(os.listdir(run)) == sorted(set(os.listdir(finished)) - {"output.txt"})


@pytest.mark.slow
def test_four_processes_are_as_one_and_as_themselves(cache, tmp_path):
    config = f"{ROOT / 'tests' / 'soak.py'}:12"
    for name, count in (("one", 1), ("four", 4), ("again", 4)):
        runs(tmp_path / name, cache, count, "--config.batch=4", config=config)
    assert_same_rows(tmp_path / "one", tmp_path / "four")
    four, again = (without_timing(read_metrics(tmp_path / name)) for name in ("four", "again"))
    assert four == again


def test_a_batch_that_hosts_cannot_divide_is_refused_by_name(cache, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "meerkat_jax.train", f"--config={TINY}", "--config.batch=3"]
    command += [f"--workdir={tmp_path / 'run'}", f"--coordinator=localhost:{port}"]
    processes = [
        subprocess.Popen(
            [*command, "--processes=2", f"--process={i}"], cwd=ROOT, env=cli_environment(cache),
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]  # fmt: skip
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 2
        assert "batch=3 in 1 parts does not divide over the mesh" in error and "2 hosts" in error


def test_alone_nobody_is_waited_for():
    assert jax.process_count() == 1
    from meerkat_jax.parallel import hosts

    hosts.barrier("nowhere", {}, 0)
    assert hosts.run_on_first_process("nothing", lambda: 7, 0) == 7
    assert hosts.rows(jax.sharding.SingleDeviceSharding(jax.devices()[0]), 8) is None
