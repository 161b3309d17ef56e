"""Config files, overrides, work directories and the commands' errors, in real processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from meerkat_jax.core import config as configs
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.workdir import prepare_workdir, read_config, write_config, write_versions
from tests.conftest import ROOT

CONFIG = """
from ml_collections import ConfigDict
from meerkat_jax.core.config import choose

def get_config(arg=None):
    arg = choose(arg, ("mini", "small", "7b"))
    model = {"width": 64, "depths": (2, 2)}
    return ConfigDict({"arg": arg, "steps": 10, "model": model, "flag": True})
"""
DOOR = """
from absl import flags
from ml_collections import config_flags
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.cli import run_command

config_flags.DEFINE_config_file("config", None, "")
flags.DEFINE_string("workdir", None, "")
flags.DEFINE_boolean("resume", False, "")

def main(argv):
    config = flags.FLAGS.config
    if config.steps == 1:
        raise UserError("steps: 1 is too few,\\n  give at least 2")
    if config.steps == 2:
        raise ValueError("a fault of ours")
    print(config.to_json(sort_keys=True))

if __name__ == "__main__":
    run_command(main, required=("config", "workdir"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a config file and a command."""
    path = tmp_path_factory.mktemp("command")
    (path / "avfit.py").write_text(CONFIG)
    (path / "command.py").write_text(DOOR)
    (path / "broken.py").write_text("def get_config(:\n")
    (path / "empty.py").write_text("")
    (path / "argless.py").write_text(
        CONFIG.replace("arg=None", "").replace("choose(arg,", "choose('',")
    )
    return path


def cli(folder, *flags):
    env = {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "command.py", *flags],
        cwd=folder, capture_output=True, text=True, env=env,
    )  # fmt: skip


def test_overrides_reach_the_config(folder):
    done = cli(
        folder, "--config=avfit.py:small", "--workdir=w", "--config.steps=20",
        "--config.model.width=8", "--noconfig.flag", "--config.model.depths=(1,2,3)",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "arg": "small", "flag": False, "steps": 20, "model": {"width": 8, "depths": [1, 2, 3]},
    }  # fmt: skip


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--config=avfit.py:mni"], ["'mni'", "did you mean 'mini'", "small, 7b"]),
        (["--config=avfit.py", "--config.step=3"], ["--config.step ", "--config.steps?"]),
        (["--config=avfit.py", "--config.model.widht=3"], ["--config.model.width?"]),
        (["--config=avfit.py", "--config.steps=ten"], ["config.steps", "ten"]),
        (["--config.steps=3"], ["--config.steps", "--config=FILE.py is missing"]),
        (["--config=avfti.py"], ["'avfti.py' is not there"]),
        (["--config=broken.py"], ["'broken.py' line 1 is not Python"]),
        (["--config=empty.py"], ["no function get_config"]),
        (["--config=argless.py:mini"], ["takes no arg", "'mini'"]),
        (["--config=avfit.py", "--wrokdir=x"], ["wrokdir", "workdir"]),
        (["--config=avfit.py", "stray"], ["stray argument 'stray'"]),
        (["--config=avfit.py", "--config.steps=1"], ["steps: 1 is too few, give at least 2"]),
        ([], ["missing --config and --workdir"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_mistakes_end_in_one_line_and_code_2(folder, flags, parts):
    flags = [*flags, "--workdir=w"] if flags else flags
    done = cli(folder, *flags)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and done.stdout == ""
    assert all(part in line for part in parts), line


def test_a_fault_of_ours_keeps_its_traceback(folder):
    done = cli(folder, "--config=avfit.py", "--config.steps=2", "--workdir=w")
    assert done.returncode == 1 and "Traceback" in done.stderr and "a fault of ours" in done.stderr


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--config", "{}", "--config.modle.width=3"], "--config.model.width"),
        (["--config={}", "--noconfig.flga"], "--config.flag"),
        (["--config={}", "--config.steps.deep=1"], "--config.steps.deep is not in"),
        (["--config={}", "--config.stps", "3"], "--config.steps"),
    ],
)
def test_check_overrides_reads_every_form_of_a_flag(folder, argv, message):
    with pytest.raises(UserError, match=message):
        configs.check_overrides([arg.format(folder / "avfit.py") for arg in argv])


def test_check_overrides_accepts_inner_nodes_and_whole_tuples(folder):
    spec = f"--config={folder / 'avfit.py'}:7b"
    configs.check_overrides(
        [spec, "--config.model.depths=(3, 2)", "--config.model={}", "--other=1"]
    )


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("model.audio.depths[0]", r"--config.model.audio.depths='\(1, 1\)'"),
        ("data.task_weights.avqa/which", "set all of --config.data.task_weights=\"{'arig': 3.0, "),
    ],
)
def test_what_flags_cannot_reach_is_set_as_a_whole(key, told):
    spec = f"--config={ROOT}/experiments/avfit.py:mini"
    with pytest.raises(UserError, match=told):
        configs.check_overrides([spec, f"--config.{key}=2"])
    for reached in ("phases[0].freeze[0]", "data.task_weights.igatl", "phases[0].steps", "seed"):
        configs.check_overrides([spec, f"--config.{reached}=2"])


def test_configs_come_back_from_the_work_directory(tmp_path, folder):
    config = configs.load_config(f"{folder / 'avfit.py'}:7b")
    write_config(tmp_path, config)
    back = read_config(tmp_path)
    assert back.to_dict() == configs.to_json(config) and back.arg == "7b"
    with pytest.raises(AttributeError):
        back.stepz = 1


def test_a_value_that_json_cannot_hold_is_named():
    with pytest.raises(UserError, match=r"config\.model\.rate = nan"):
        configs.to_json(ConfigDict({"model": {"rate": float("nan")}}))


@pytest.mark.parametrize("text", [None, "", "[]", '{"model_type": "llama"}'])
def test_read_config_refuses_what_is_not_ours(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json"):
        read_config(tmp_path)


def filled(path, ours=True):
    path.mkdir()
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "kept").write_text("kept")
    if ours:
        write_config(path, {"steps": 1})
    return path


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_absent_and_empty_work_directories_are_made(tmp_path, flags):
    assert prepare_workdir(tmp_path / "a" / "b", **flags).is_dir()
    assert prepare_workdir(tmp_path / "a" / "b", **flags).is_dir()


def test_a_run_killed_before_its_config_was_written_is_resumed(tmp_path):
    (tmp_path / ".config.json.17.tmp").write_text("{")
    assert prepare_workdir(tmp_path, resume=True) == tmp_path


def test_a_filled_work_directory_needs_a_flag(tmp_path):
    path = filled(tmp_path / "run")
    with pytest.raises(UserError, match=f"{path}.*--resume.*--overwrite"):
        prepare_workdir(path)
    prepare_workdir(path, resume=True)
    assert (path / "checkpoints" / "kept").exists()
    prepare_workdir(path, overwrite=True)
    assert list(path.iterdir()) == []


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
@pytest.mark.parametrize("text", [None, '{"model_type": "llama"}'])
def test_a_folder_of_others_is_left_alone(tmp_path, flag, text):
    path = filled(tmp_path / "theirs", ours=False)
    if text:
        (path / "config.json").write_text(text)
    with pytest.raises(UserError, match=f"{path}.*--{flag}"):
        prepare_workdir(path, **{flag: True})
    assert (path / "checkpoints" / "kept").exists()


def test_overwrite_does_not_follow_links_out_of_the_folder(tmp_path):
    other, path = filled(tmp_path / "other"), filled(tmp_path / "run")
    (path / "link").symlink_to(other)
    prepare_workdir(path, overwrite=True)
    assert (other / "checkpoints" / "kept").exists() and list(path.iterdir()) == []


def test_both_flags_or_a_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="exclude"):
        prepare_workdir(tmp_path, overwrite=True, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        prepare_workdir(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be used"):
        prepare_workdir(tmp_path / "file" / "below")


def test_versions_name_what_ran(tmp_path):
    import jax

    found = write_versions(tmp_path)
    assert json.loads((tmp_path / "versions.json").read_text()) == found
    assert found["packages"]["jax"] == jax.__version__
    assert found["devices"]["count"] == jax.device_count()


# Resumed runs ------------------------------------------------------------------------------------

BEGUN = {"batch": 16, "mesh": {"data": -1}, "phases": [{"name": "a", "steps": 3}], "log_every": 20}


def test_a_run_goes_on_with_its_own_config():
    configs.check_changes(BEGUN, ConfigDict(BEGUN), free=())


def test_free_keys_may_change():
    now = BEGUN | {"log_every": 5, "mesh": {"data": 2}}
    configs.check_changes(BEGUN, now, free=("log_every", "mesh.data"))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"batch": 8}, "batch: 16 then, 8 now"),
        ({"mesh": {"data": 2}}, "mesh.data: -1 then, 2 now"),
        ({"phases": [{"name": "a", "steps": 4}]}, "phases[0].steps: 3 then, 4 now"),
        ({"phases": [{"name": "a"}]}, "phases[0].steps: 3 then, None now"),
        ({"seed": 1}, "seed: None then, 1 now"),
    ],
)
def test_other_changes_are_named(change, said):
    with pytest.raises(UserError, match="--resume with another config") as caught:
        configs.check_changes(BEGUN, BEGUN | change, free=("log_every",))
    assert said in str(caught.value)
