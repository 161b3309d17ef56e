"""Stand-ins for tests of the launch scripts: a project, a bucket and one worker, in folders.

`gcloud` keeps the bucket in a folder and runs the lines for workers in a shell on this machine;
`python` ends with the exit codes that a test asks for. Shell functions, loops and locks are real.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "pods.md"
TEXT = PAGE.read_text()
SETTINGS = dict(re.findall(r"^export (\w+)=(\S+)$", TEXT, re.MULTILINE))


def make_project(folder: Path) -> Path:
    """A repository of the scripts and a config, with a store and a data folder beside them."""
    project = folder / "project"
    shutil.copytree(ROOT / "tools", project / "tools")
    (project / "experiments").mkdir()
    for name in ("avfit.py", "forkme.py"):
        shutil.copy(ROOT / "experiments" / name, project / "experiments")
    (project / "constraints.txt").write_text("")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        name = ["-c", "user.name=n", "-c", "user.email=e@example.com", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *name, *words], cwd=project, check=True, timeout=60)
    (project / "weights" / "7b").mkdir(parents=True)
    (project / "weights" / "7b" / "store.json").write_text("{}")
    (project / ".cache" / "meerkat_jax").mkdir(parents=True)
    (project / "avfit" / "mine").mkdir(parents=True)
    (project / "avfit" / "mine" / "manifest.json").write_text("{}")
    return project


STAND_INS = {
    "gcloud": r"""#!/usr/bin/env bash
printf '%s\n' "${*//$'\n'/;}" >>"$FAKE/calls"
case "$*" in
"storage buckets describe "*) cat "$FAKE/namespace" ;;
"storage cp "*)
    [[ ! -e $FAKE/readonly ]] || exit 1
    from=${3/#gs:\/\/my-bucket/$FAKE/bucket} to=${4/#gs:\/\/my-bucket/$FAKE/bucket}
    mkdir -p "$(dirname "$to")" && cp "$from" "$to" ;;
"storage rm "*) rm -f ${3/#gs:\/\/my-bucket/$FAKE/bucket} ;;
"storage cat "*) cat ${3/#gs:\/\/my-bucket/$FAKE/bucket} ;;
*"queued-resources describe "*) cat "$FAKE/state" ;;
*"queued-resources create "*) echo ACTIVE >"$FAKE/state" ;;
*"queued-resources delete "*)
    flock "$FAKE/home/meerkat/loop.lock" rm -rf "$FAKE/state" "$FAKE/home/meerkat" ;;
*"tpu-vm ssh "*)
    [[ $(cat "$FAKE/state") == ACTIVE ]] || exit 1
    for word in "$@"; do [[ $word != --command=* ]] || line=${word#--command=}; done
    cd "$FAKE/home" && HOME=$FAKE/home bash -c "$line" ;;
esac
""",
    "gcsfuse": 'rmdir "$3"; ln -s "$FAKE/bucket" "$3"',
    "mountpoint": '[[ -L "$2" ]]',
    "python3": 'mkdir -p "$3/bin"; ln -sf /bin/true "$3/bin/pip"; ln -sf /bin/true "$3/bin/uv"',
    # Each start takes the next line of "plan", a shell command; without one it ends with 0.
    "python": """printf '%s\\n' "$@" END >>"$FAKE/started"
n=$(grep -cx END "$FAKE/started")
eval "$(sed -n "${n}p" "$FAKE/plan")" """,
}

# A trainer that goes on until it is told to save.
WAIT = "trap 'echo saved; exit 75' TERM; touch $FAKE/up; while :; do sleep .05; done"


class Cloud:
    """A project, a bucket and one worker, in folders; and how the scripts are run against them."""

    def __init__(self, folder: Path, project: Path):
        self.folder, self.project, self.home = folder, project, folder / "home"
        self.bucket, self.code = folder / "bucket", folder / "home/meerkat/code"
        self.log = folder / "home/meerkat/train.log"
        for place in (self.bucket, self.home, folder / "bin"):
            place.mkdir()
        for name, text in STAND_INS.items():
            script = folder / "bin" / name
            script.write_text(text if text.startswith("#!") else f"#!/usr/bin/env bash\n{text}\n")
            script.chmod(0o755)
        (folder / "namespace").write_text("True\n")
        self.plan()
        self.env = SETTINGS | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "FAKE": str(folder),
            "HOME": str(self.home), "WORKER": "0", "PAUSE": "0.3", "RETRY": "0.05",
        }  # fmt: skip

    def plan(self, *lines: str) -> None:
        (self.folder / "plan").write_text("\n".join(lines) + "\n")

    def has_tpu(self) -> Cloud:
        """A slice that is there and set up."""
        (self.folder / "state").write_text("ACTIVE\n")
        (self.home / "meerkat").mkdir()
        shutil.copytree(self.project / "tools", self.code / "tools")
        (self.home / "meerkat" / "bucket").symlink_to(self.bucket)
        return self

    def run(self, *words: str, script: str = "tools/tpu.sh", **more) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", script, *words], cwd=self.project, env=self.env, capture_output=True,
            text=True, timeout=120, **({"stdin": subprocess.DEVNULL} if not more else more),
        )  # fmt: skip

    def worker(self, *words: str, **more) -> subprocess.CompletedProcess:
        return self.run(*words, script=str(self.code / "tools/tpu/worker.sh"), **more)

    def loop(self, *flags: str) -> subprocess.CompletedProcess:
        return self.worker(
            "loop", "my-bucket", "experiments/avfit.py:7b", "runs/7b", "disk", *flags
        )

    def calls(self, what: str) -> list[str]:
        path = self.folder / "calls"
        return (
            [line for line in path.read_text().splitlines() if what in line]
            if path.exists()
            else []
        )

    def starts(self) -> list[list[str]]:
        """The words of each start of the trainer."""
        path = self.folder / "started"
        parts = path.read_text().split("\nEND\n")[:-1] if path.exists() else []
        return [part.split("\n") for part in parts]

    def noted(self) -> str | None:
        path = self.bucket / "launch/runs/7b/worker-0.exit"
        return path.read_text().strip() if path.exists() else None


def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
