"""The launch scripts: what docs/pods.md says they print, and their loops with stand-ins.

The page's dry runs are compared word for word, with no gcloud in reach. Google Cloud itself cannot
be had here: where a script must really run, the stand-ins of tests/launching.py keep the bucket in
a folder and run the lines for workers in a shell on this machine. The shell functions, the loops
and the locks are the real ones. Where gcloud is installed, its own linter (offline) checks every
command that is printed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.launching import ROOT, SETTINGS, TEXT, WAIT, Cloud, make_project, until

SCRIPTS = [ROOT / "tools" / "tpu.sh", *sorted(ROOT.glob("tools/**/*.sh"))]
COMMANDS = "stage create setup train watch logs status stop delete".split()
DRY_RUNS = re.findall(r"```console\n\$ (.*)\n((?:.*\n)*?)```", TEXT)
NEEDED = "bash dirname sed date mkdir".split()  # all that a dry run may call


def show(project: Path, command: str) -> subprocess.CompletedProcess:
    """Run a line of the page where there is nothing but a shell."""
    tools = project.parent / "few"
    if not tools.exists():
        tools.mkdir()
        for name in NEEDED:
            (tools / name).symlink_to(shutil.which(name))
    env = SETTINGS | {"PATH": str(tools), "HOME": str(project)}
    return subprocess.run(
        [str(tools / "bash"), "-c", command.replace(" tools/", " bash tools/"), "page"],
        cwd=project, env=env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return make_project(tmp_path_factory.mktemp("launch"))


def dry(project: Path, *words: str, **changed: str | None) -> subprocess.CompletedProcess:
    """tools/tpu.sh as a dry run, with some settings changed (None: not set)."""
    env = {k: v for k, v in (SETTINGS | changed).items() if v is not None}
    return subprocess.run(
        ["bash", "tools/tpu.sh", words[0], "--dry-run", *words[1:]],
        cwd=project, env=env | {"PATH": os.environ["PATH"]}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip


# ---- the page ----


@pytest.mark.parametrize(("command", "printed"), DRY_RUNS, ids=[c for c, _ in DRY_RUNS])
def test_the_page_shows_what_is_printed(project, command, printed):
    done = show(project, command if command.startswith("DRY") else f"true; {command}")
    assert (done.stdout, done.stderr, done.returncode) == (printed, "", 0)


def test_the_page_shows_every_command():
    shown = {word for line, _ in DRY_RUNS for word in line.split()}
    assert set(COMMANDS) <= shown
    assert len(SETTINGS) == 8


def test_a_dry_run_does_nothing(project):
    def tree():
        return sorted(str(path) for path in project.rglob("*"))

    before = tree()
    for command in COMMANDS:
        dry(project, command, WEIGHTS="weights/7b")
    assert tree() == before


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
def test_gcloud_knows_every_command_and_flag(tmp_path):
    blocks = [printed for _, printed in DRY_RUNS]
    blocks += re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    found = set()
    for block in blocks:
        block = re.sub(r"\$\{?(\w+)(%-\*\})?", lambda m: SETTINGS.get(m[1], "1"), block)
        lines = re.sub(r"\\\n *", "", block).replace("$(", "\n").splitlines()
        found |= {line.strip().rstrip(")") for line in lines if line.strip().startswith("gcloud ")}
    # Of a --command of several lines the first will do.
    found = {line + "'" * (line.count("'") % 2) for line in found}
    (tmp_path / "commands.json").write_text(
        json.dumps([{"command_string": line} for line in found])
    )
    env = os.environ | {"CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}
    linter = ["gcloud", "meta", "lint-gcloud-commands"]
    done = subprocess.run(
        [*linter, f"--commands-file={tmp_path / 'commands.json'}"],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if "Invalid choice" in done.stderr:
        pytest.skip("this gcloud has no linter")
    verdicts = json.loads(done.stdout)
    assert len(verdicts) == len(found) > 15, done.stderr
    for verdict in verdicts:
        assert verdict["success"], f"{verdict['command_string']}: {verdict['error_message']}"


# ---- settings ----


@pytest.mark.parametrize("name", SETTINGS)
def test_a_missing_variable_is_named_with_an_example(project, name):
    done = dry(project, "create", **{name: None})
    assert done.returncode == 2 and done.stdout == ""
    assert re.search(rf"^  {name} is not set; .*export {name}=\S+$", done.stderr, re.MULTILINE)
    assert done.stderr.count("\n") == 2  # the heading, and this one


def test_all_that_is_wrong_is_told_at_once(project):
    done = dry(project, "train", PROJECT=None, ZONE="us-west4", BUCKET="gs://my-bucket")
    assert re.findall(r"^  (\w+) is (not set|\S+);", done.stderr, re.MULTILINE) == [
        ("PROJECT", "not set"), ("ZONE", "us-west4"), ("BUCKET", "gs://my-bucket")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROJECT", "Project"),
        ("ZONE", "us-west4"),
        ("ZONE", "us-west4-a\nx"),
        ("TPU_NAME", "my_tpu"),
        ("TPU_NAME", "tpu-"),
        ("ACCELERATOR_TYPE", "v5e:4x4"),
        ("RUNTIME_VERSION", "-x"),
        ("BUCKET", "My-bucket"),
        ("BUCKET", "gs://my-bucket"),
        ("CONFIG", "experiments/avfit"),
        ("CONFIG", "experiments/no.py:7b"),
        ("WORKDIR", "../other"),
        ("WORKDIR", "/runs/7b"),
        ("WORKDIR", "runs/7b/"),
        ("CAPACITY", "cheap"),
        ("DATA_FROM", "cloud"),
        ("WEIGHTS", "runs/7b"),
        ("WEIGHTS", "weights/none"),
        ("DATA", "nowhere"),
        ("SOURCES", "nowhere"),
        ("SOURCES", "weights"),
        ("CONFIG", "experiments/forkme.py:avfit/mine;id,7b"),
        ("WORKER", "all; id"),
        ("PAUSE", "soon"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named(project, name, value):
    done = dry(project, "create", **{name: value})
    assert done.returncode == 2 and done.stdout == ""
    assert f"\n  {name} " in done.stderr


@pytest.mark.parametrize(
    "name", [*SETTINGS, "WEIGHTS", "SOURCES", "DATA", "CAPACITY", "WORKER", "PAUSE"]
)
@pytest.mark.parametrize("value", ["$(touch pwned)", "a b", "x'; touch pwned; '", "`touch pwned`"])
def test_no_value_is_evaluated(project, name, value):
    done = dry(project, "train", **{name: value})
    assert done.returncode == 2 and name in done.stderr
    assert not list(project.rglob("pwned"))


def test_a_data_folder_may_have_any_name(project):
    name = "it's a $(touch pwned) folder"
    (project / name).mkdir()
    done = dry(project, "stage", DATA=name)
    (project / name).rmdir()
    line = next(line for line in done.stdout.replace("\\\n", " ").splitlines() if "rsync" in line)
    assert shlex.split(line)[3:5] == [name, "gs://my-bucket/data"]


def test_capacity_is_spot_unless_asked_otherwise(project):
    assert "--spot" in dry(project, "create").stdout
    assert "--reserved" in dry(project, "create", CAPACITY="reserved").stdout
    on_demand = dry(project, "create", CAPACITY="on-demand").stdout
    assert "queued-resources create" in on_demand
    assert not {"--spot", "--reserved", "--on-demand"} & set(on_demand.split())


@pytest.mark.parametrize(
    ("words", "named"),
    [(["trian"], "trian"), (["train", "--dryrun"], "--dryrun"), (["train", "x"], "x")],
)
def test_an_unknown_word_is_named(project, words, named):
    done = dry(project, *words)
    assert done.returncode == 2 and named in done.stderr and done.stdout == ""


def test_nothing_to_stage_is_said(project):
    done = dry(project, "stage")
    assert done.returncode == 2 and "WEIGHTS=weights/7b" in done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_scripts_are_bash(path):
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=60)


# ---- the scripts at work, with stand-ins ----


@pytest.fixture
def cloud(tmp_path, project) -> Cloud:
    return Cloud(tmp_path, project)


def test_training_is_started_again_after_a_preemption(cloud):
    cloud.has_tpu().plan("exit 75", "exit 75", "exit 0")
    assert cloud.loop().returncode == 0
    starts = cloud.starts()
    assert len(starts) == 3 and starts[0] == starts[1] == starts[2]
    assert starts[0] == [
        "-m", "meerkat_jax.train", "--config=experiments/avfit.py:7b",
        f"--workdir={cloud.home}/meerkat/bucket/runs/7b", f"--data_dir={cloud.home}/meerkat/data",
        "--resume",
    ]  # fmt: skip
    assert cloud.noted() == "0"


@pytest.mark.parametrize("code", [1, 2, 127, 137])
def test_any_other_failure_is_the_last(cloud, code):
    cloud.has_tpu().plan("exit 75", f"exit {code}", "exit 0")
    assert cloud.loop().returncode == code
    assert len(cloud.starts()) == 2 and cloud.noted() == str(code)


def test_a_shutdown_starts_nothing_again(cloud):
    cloud.has_tpu().plan(WAIT)
    assert cloud.worker("start", "my-bucket", "c.py", "runs/7b", "disk").returncode == 0
    until((cloud.folder / "up").exists)
    for name in ("loop", "train"):  # as systemd does, all at once
        os.kill(int((cloud.home / f"meerkat/{name}.pid").read_text()), signal.SIGTERM)
    until(lambda: "not training" in cloud.worker("status").stdout)
    assert "saved" in cloud.log.read_text() and "exit code 75" in cloud.log.read_text()
    assert len(cloud.starts()) == 1 and cloud.noted() is None
    kept = cloud.bucket / "launch/runs/7b/worker-0.log"
    assert kept.read_text() == cloud.log.read_text()


def test_start_status_and_stop_from_afar(cloud):
    cloud.has_tpu().plan(WAIT, WAIT)
    assert "in the background" in cloud.run("train").stdout
    until((cloud.folder / "up").exists)
    assert "training already" in cloud.run("train").stdout
    assert "worker 0: training" in cloud.run("status").stdout
    assert "stopped" in cloud.run("stop").stdout
    assert cloud.noted() == "stopped" and len(cloud.starts()) == 1
    assert "nothing is running" in cloud.run("stop").stdout
    assert "not training" in cloud.run("status").stdout
    cloud.run("train")  # the note of the end goes, the run goes on
    until(lambda: len(cloud.starts()) == 2)
    assert cloud.noted() is None
    cloud.run("stop")


def test_flags_of_train_arrive_as_they_were_written(cloud):
    flags = [
        "--config.batch=896",
        "--a=it's $HOME",
        '--b="two" words',
        "--c=x;touch pwned",
        "--d=*",
    ]
    cloud.has_tpu()
    assert cloud.run("train", "--", *flags).returncode == 0
    until(lambda: cloud.noted() == "0")
    assert cloud.starts()[0][-len(flags) :] == flags
    assert not list(cloud.folder.rglob("pwned"))


def test_data_comes_from_disk_or_bucket(cloud):
    (cloud.has_tpu().bucket / "data").mkdir()
    cloud.loop()
    assert cloud.calls("storage rsync") == [
        "storage rsync gs://my-bucket/data meerkat/data --recursive"
    ]
    cloud.worker("loop", "my-bucket", "c.py", "runs/7b", "bucket")
    assert len(cloud.calls("storage rsync")) == 1
    assert f"--data_dir={cloud.home}/meerkat/bucket/data" in cloud.starts()[1]


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_a_config_finds_weights_and_sources_where_it_looks_for_them(cloud, where):
    for name in ("weights/7b", "avfit/mine"):
        (cloud.has_tpu().bucket if name[0] == "w" else cloud.bucket).joinpath(name).mkdir(
            parents=True
        )
    cloud.plan("ls -d weights/7b avfit >$FAKE/found; readlink avfit >>$FAKE/found")
    cloud.worker("loop", "my-bucket", "experiments/forkme.py:avfit/mine,7b", "runs/7b", where)
    place = f"{cloud.home}/meerkat/" + ("avfit" if where == "disk" else "bucket/avfit")
    assert (cloud.folder / "found").read_text().split() == ["avfit", "weights/7b", place]
    copied = [line for line in cloud.calls("storage rsync") if "/avfit " in line]
    assert copied == ["storage rsync gs://my-bucket/avfit meerkat/avfit --recursive"] * (
        where == "disk"
    )
    assert "--config=experiments/forkme.py:avfit/mine,7b" in cloud.starts()[0]


def test_the_recipe_for_kubernetes_finds_them_too(tmp_path):
    (command,) = re.findall(r'--command="(ln -s [^"]*)"', TEXT)
    for name in ("weights/7b", "avfit/mine"):
        (tmp_path / "bucket" / name).mkdir(parents=True)
    command = command.replace("/bucket/", f"{tmp_path}/bucket/").replace("\\\n", "")
    command = command.replace(
        "exec python -m meerkat_jax.train", "exec ls -d weights/7b avfit/mine #"
    )
    (tmp_path / "app").mkdir()
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path / "app", capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["avfit/mine", "weights/7b"], done.stderr


def test_a_preempted_slice_is_made_anew_and_the_run_goes_on(cloud):
    taken = "echo SUSPENDED >$FAKE/state; kill -TERM $(cat $FAKE/home/meerkat/loop.pid); exit 75"
    cloud.plan("exit 75", taken, "exit 0")
    done = cloud.run("watch", "--", "--config.batch=896")
    assert done.returncode == 0, done.stdout + done.stderr
    verbs = re.compile(r"queued-resources (create|delete)|worker\.sh (setup)")
    found = [verbs.search(line) for line in cloud.calls("")]
    order = [match[1] or match[2] for match in found if match]
    assert order == ["create", "setup", "delete", "create", "setup"]
    starts = cloud.starts()
    assert len(starts) == 3  # one in each slice, and one after an exit by 75 in the first
    assert all(start[-2:] == ["--resume", "--config.batch=896"] for start in starts)
    assert cloud.noted() == "0" and "the run is over (0 )" in done.stdout


def test_watch_ends_when_training_fails(cloud):
    cloud.has_tpu().plan("exit 2", "exit 0")
    done = cloud.run("watch")
    assert done.returncode == 2 and "three failures in a row (2 )" in done.stderr
    assert len(cloud.starts()) == 1 and not cloud.calls("queued-resources delete")


def test_a_failure_of_a_slice_that_is_taken_away_is_none_of_the_run(cloud):
    cloud.has_tpu().plan("echo SUSPENDED >$FAKE/state; exit 134", "exit 0")
    assert cloud.run("watch").returncode == 0
    assert len(cloud.starts()) == 2 and len(cloud.calls("queued-resources create")) == 1


@pytest.mark.parametrize("command", ["create", "stage"])
@pytest.mark.parametrize(
    ("fault", "text", "told"),
    [("readonly", "", "cannot be written"), ("namespace", "\n", "has no hierarchical namespace")],
)
def test_a_bucket_that_will_not_do_is_refused_first(cloud, command, fault, text, told):
    (cloud.folder / fault).write_text(text)
    cloud.env["WEIGHTS"] = "weights/7b"
    done = cloud.run(command)
    assert done.returncode == 2 and f"BUCKET=my-bucket {told}" in " ".join(done.stderr.split())
    assert not cloud.calls("queued-resources create") and not cloud.calls("rsync")


@pytest.mark.parametrize("answer", ["", "n\n", "no\n", "yes please\n"])
def test_delete_asks(cloud, answer):
    done = cloud.has_tpu().run("delete", input=answer)
    assert done.returncode == 2 and "not deleted" in done.stderr
    assert not cloud.calls("queued-resources delete")


@pytest.mark.parametrize(("words", "answer"), [([], "y\n"), (["--yes"], "")])
def test_delete_deletes(cloud, words, answer):
    assert cloud.has_tpu().run("delete", *words, input=answer).returncode == 0
    assert len(cloud.calls("queued-resources delete meerkat-7b")) == 1


def test_an_uncommitted_config_is_not_sent(cloud):
    cloud.has_tpu()
    mine = cloud.project / "experiments" / "mine.py"
    mine.write_text("")
    cloud.env["CONFIG"] = "experiments/mine.py"
    done = cloud.run("setup")
    mine.unlink()
    assert done.returncode == 2 and "experiments/mine.py is not committed" in done.stderr
    assert not cloud.calls("tpu-vm ssh")


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (0, False), (1, False)])
def test_slurm_puts_a_preempted_job_back_into_the_queue(cloud, code, requeued):
    for name in ("srun", "scontrol"):
        script = cloud.folder / "bin" / name
        script.write_text(f'#!/bin/sh\necho {name} "$@" >>"$FAKE/calls"\n')
        script.chmod(0o755)
    with (cloud.folder / "bin" / "srun").open("a") as script:
        script.write(f"exit {code}\n")
    cloud.env["SLURM_JOB_ID"] = "17"
    done = cloud.run("c.py", "runs/a b", "--config.batch=8", script="tools/slurm.sh")
    assert done.returncode == code
    assert cloud.calls("srun")[0].endswith(
        "meerkat_jax.train --config=c.py --workdir=runs/a b --resume --config.batch=8"
    )
    assert cloud.calls("scontrol") == (["scontrol requeue 17"] if requeued else [])


# ---- Docker ----


def test_the_dockerfile_copies_what_is_there_and_let_through():
    text = (ROOT / "Dockerfile").read_text()
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    sources = [
        name
        for line in re.findall(r"^COPY (?!--)(.*)$", text, re.MULTILINE)
        for name in line.split()[:-1]
    ]
    assert "*" in ignore and {f"!{name}" for name in sources} == {s for s in ignore if s[0] == "!"}
    assert all((ROOT / name).exists() for name in sources)
    assert re.search(r"^USER \$\{RUN_AS\}$", text, re.MULTILINE) and "ARG RUN_AS=meerkat" in text


def test_the_extras_that_are_named_exist_with_the_jax_that_was_tested():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    tested = re.search(r"^jax==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    texts = TEXT + (ROOT / "Dockerfile").read_text() + SCRIPTS[-1].read_text()
    named = {*re.findall(r"EXTRA=([a-z0-9]+)", texts), *re.findall(r"\[(tpu|cuda\d+)\]", texts)}
    assert {"tpu", "cuda12"} <= named
    for name in named:
        assert extras[name] == [f"jax[{name}]=={tested}"]
