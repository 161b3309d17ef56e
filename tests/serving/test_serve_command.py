"""The server's command: what it refuses before it loads, and a load from start to SIGTERM."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from tests.conftest import ROOT, cli_environment
from tests.inference.made import made


@pytest.mark.slow
def test_a_port_in_use_is_told_in_one_line(cli):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = cli("serve", "--checkpoint=absent", f"--port={taken.getsockname()[1]}")
    assert done.returncode == 2 and done.stderr.startswith("error: --host=127.0.0.1 --port=")
    assert "cannot listen there" in done.stderr and "Traceback" not in done.stderr
    done = cli("serve", "--checkpoint=absent", "--port=0")
    assert done.returncode == 2 and "absent is no folder" in done.stderr


@pytest.mark.slow
def test_many_clients_at_once_get_equal_answers_to_equal_questions(tmp_path):
    """The command and the load of benchmarks/serve.py; the server must end well by SIGTERM."""
    out = tmp_path / "load.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serve", f"--checkpoint={made().workdir}",
         "--clients=1,32", "--requests=6", f"--out={out}"],
        cwd=ROOT, env=cli_environment(tmp_path), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    loads = json.loads(out.read_text())["loads"]
    assert [row["requests"] for row in loads] == [6, 192]
    assert all(row["first_piece_seconds"]["p50"] < row["answer_seconds"]["max"] for row in loads)
