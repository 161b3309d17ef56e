"""From published weights through training and out again, by the commands."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel

from meerkat_jax import Meerkat
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import flatten, unflatten
from meerkat_jax.weights.base import Base
from meerkat_jax.weights.convert import convert
from meerkat_jax.weights.restore import read_run
from tests.conftest import ROOT, TINY, cli_environment
from tests.tolerances import tolerance
from tests.training.test_hosts import assert_same_rows, runs
from tests.weights import published


def quiet(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published language model."""
    folder = tmp_path_factory.mktemp("published") / "llama"
    published.llama(folder)
    return folder


@pytest.fixture(scope="module")
def store(folder):
    return convert({"llama": folder}, folder.parent / "store", say=quiet)


@pytest.fixture(scope="module")
def trained(store, cli, folder):
    """The work directory of a tiny run that began from the store."""
    workdir = folder.parent / "run"
    done = cli(
        "train", f"--config={TINY}:small", f"--config.base={store.folder}", f"--workdir={workdir}"
    )
    assert done.returncode == 0, done.stderr
    (workdir / "output.txt").write_text(done.stdout)
    return workdir


@pytest.mark.slow
def test_two_processes_read_the_store_and_train_as_one_does(trained, store, cache, tmp_path):
    base, config = f"--config.base={store.folder}", f"{TINY}:small"
    runs(tmp_path / "two", cache, 2, base, config=config)
    assert_same_rows(trained, tmp_path / "two")


@pytest.fixture(scope="module")
def run(trained):
    return read_run(trained)


def convert_weights(*flags):
    command = [sys.executable, "tools/convert_weights.py", *map(str, flags)]
    env = cli_environment("unused")
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def test_the_log_says_what_is_published_and_what_is_fresh(trained, store):
    text = (trained / "output.txt").read_text()
    line = next(line for line in text.splitlines() if line.startswith("weights: "))
    assert str(store.folder) in line and store.hash[:12] in line
    assert "fresh: image_tower, audio_tower" in line and "connectors" in line


def test_the_published_numbers_are_those_that_training_used_and_left(run, store):
    flat = flatten(run.params())
    assert len(store.leaves) == 12
    for path in store.leaves:
        np.testing.assert_array_equal(flat[path], store.read(path), err_msg=path)
    assert np.abs(flat["llama/layers/q/lora_b"]).max() > 0  # LoRA was trained
    rows = run.assembly.model.llama.added_rows
    assert flat["llama/added"].shape == (rows, 32)


def test_the_checkpoint_holds_only_what_was_trained(run):
    mine = flatten(run.learned)
    kept = [path for path in mine if path.startswith("llama/")]
    assert kept and all("lora_" in path or path == "llama/added" for path in kept)


def test_the_trained_model_answers(trained):
    answer = Meerkat.load(trained).ask(np.zeros((9, 9, 3), np.uint8), None, "What do you see?")
    assert isinstance(answer.text, str)


def test_resuming_from_a_changed_store_is_refused(trained, store, cli, folder, tmp_path):
    other = convert({"llama": folder}, tmp_path / "other", "bfloat16", say=quiet)
    copy = copied(trained, tmp_path / "run", base=str(other.folder))
    with pytest.raises(UserError, match=f"base: expected .*{other.hash}.* found .*{store.hash}"):
        read_run(copy)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.base=/nowhere"], "/nowhere is no store of converted weights"),
        (["--config.base=tests"], "no store of converted weights"),
        (["--config.data.pack_length=8", "--config.prompt=alpaca"], "raise data.pack_length"),
    ],
)
def test_a_wrong_base_is_one_line(store, cli, tmp_path, flags, message):
    base = [] if "base" in flags[0] else [f"--config.base={store.folder}"]
    done = cli("train", f"--config={TINY}:small", f"--workdir={tmp_path / 'w'}", *base, *flags)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    note = "prompt: config.prompt is 'alpaca', the language model has the chat template 'chatml'"
    assert (note in done.stdout) is (len(flags) == 2)


def test_a_run_with_another_chat_template_than_the_bases_tells_it(trained, capsys, tmp_path):
    read_run(trained)
    assert "prompt" not in capsys.readouterr().err
    read_run(copied(trained, tmp_path / "run", prompt="alpaca"))
    assert "note: prompt: config.prompt is 'alpaca'" in capsys.readouterr().err


def copied(trained, folder, **changes):
    """The run in another folder, with changes to its config."""
    record = json.loads((trained / "config.json").read_text())
    folder.mkdir()
    for name in ("checkpoints", "tokenizer.json", "tokenizer_roles.json"):
        (folder / name).symlink_to(trained / name)
    (folder / "config.json").write_text(json.dumps(record | changes))
    return folder


def test_a_size_in_the_config_that_is_not_the_weights_is_refused(store):
    config = {"base": str(store.folder), "model": {"llama": {"width": 64}}}
    with pytest.raises(UserError, match="config.model.llama.width is 64.* have 32"):
        Base.open(config).resolve(config)


def test_a_store_is_no_trained_model(store):
    with pytest.raises(UserError, match="--config.base="):
        Meerkat.load(store.folder)


def ours(run, ids) -> np.ndarray:
    """Logits float[B, S, V] of the trained language model on text alone."""
    model = run.assembly.model.llama

    def logits(llama, ids):
        hidden = llama(llama.embed(ids), jnp.arange(ids.shape[1])[None])["hidden"]
        return llama.logits(hidden)

    params = {"params": run.params()["llama"]}
    return np.asarray(model.apply(params, jnp.asarray(ids), method=logits))


def test_peft_out_and_in_again(run, trained, folder, tmp_path, store):
    out = tmp_path / "peft"
    done = convert_weights("--export=peft", f"--checkpoint={trained}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    pieces = base.config.vocab_size
    ids = np.random.default_rng(0).integers(0, pieces, (2, 7))
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, out)(torch.from_numpy(ids)).logits
    np.testing.assert_allclose(ours(run, ids)[..., :pieces], theirs, **tolerance("logits"))

    llama = run.assembly.model.llama
    places = {path: None for path in flatten(run.learned)}
    tree = {key: np.zeros_like(leaf) for key, leaf in flatten(run.learned).items()}
    said: list[str] = []
    rest = jax.tree.map(jnp.asarray, run.fresh)
    into = unflatten(tree), unflatten(places), llama, str(out)
    again = flatten(Base(store).adapt(*into, frozen=rest, say=said.append))
    for path, leaf in flatten(run.learned).items():  # LoRA, and all that was trained beside it
        np.testing.assert_array_equal(again[path], leaf, err_msg=path)
    assert len(said) == 1 and "meerkat_modules.safetensors come along" in said[0]
    # A base of the same shapes, but of other files and in a folder of another name.
    other = folder.parent / "vicuna"
    published.llama(other, rms_norm_eps=2e-6)
    shards = sorted(other.glob("*.safetensors"))
    shards[0].write_bytes(shards[0].read_bytes()[:-4] + b"abcd")
    theirs = Base(convert({"llama": other}, folder.parent / "store of vicuna", say=quiet))
    with pytest.raises(UserError, match=f"adapter_base={folder}"):
        theirs.adapt(*into, say=quiet)
    assert theirs.adapt(*into, allowed=str(folder), frozen=rest, say=quiet)
    with pytest.raises(UserError, match="bn_mean, audio_tower/.*which config.trainable leaves out"):
        Base(store).adapt(*into, frozen=jax.tree.map(lambda x: x + 1, rest), say=quiet)


def test_hf_out(run, trained, tmp_path):
    out = tmp_path / "hf"
    done = convert_weights("--export=hf", f"--checkpoint={trained}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    ids = np.random.default_rng(1).integers(0, run.assembly.model.llama.pretrained, (2, 7))
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids)).logits.numpy()
    mine = ours(run, ids)[..., : run.assembly.model.llama.pretrained]
    np.testing.assert_allclose(mine, theirs[..., : mine.shape[-1]], **tolerance("logits"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_tokens_to_ids("<image>") == run.assembly.model.llama.pretrained


def test_a_run_without_published_words_has_no_adapter(finished, tmp_path):
    done = convert_weights("--export=peft", f"--checkpoint={finished}", f"--out={tmp_path / 'x'}")
    assert done.returncode == 2 and "--export=hf" in done.stderr, done.stderr
