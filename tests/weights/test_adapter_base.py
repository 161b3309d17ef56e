"""An adapter goes only onto the base that it was made on, and nothing beside it is lost."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights import adapters
from meerkat_jax.weights.adapters import AdapterBase, base_digest, read_peft, write_peft

MINE = AdapterBase(("/models/Llama-2-7b-chat-hf",), "d1")
ALLOWED = dataclasses.replace(MINE, allowed="lmsys/vicuna-7b-v1.5")


@pytest.fixture
def base(bases):
    return bases("tied")


def read(folder, base, published=MINE):
    """(how it adapts, its leaves, what is said)."""
    lines: list[str] = []
    lora, leaves = read_peft(folder, base.model, published, say=lines.append)
    return lora, leaves, "\n".join(lines)


CASES = {  # name of the adapter's base, its digest, ours -> what is said
    "its own": ("/models/Llama-2-7b-chat-hf", "", MINE, ""),
    "same files under another name": ("renamed", "d1", MINE, ""),
    "equal by name": ("meta-llama/Llama-2-7b-chat-hf", "", MINE, "equal by name alone"),
    "equal name, other files": ("x/llama-2-7B-chat-hf", "d2", MINE, "of other files"),
    "unnamed": ("", "", MINE, "names no base"),
    "allowed": ("lmsys/vicuna-7b-v1.5", "d2", ALLOWED, "as config.adapter_base allows"),
    "named in the base's config": ("a/b", "", AdapterBase(("/models/x", "a/b")), ""),
}


@pytest.mark.parametrize("case", CASES)
def test_a_base_that_fits_is_taken_and_a_difference_told(case, base, tmp_path):
    name, digest, mine, told = CASES[case]
    write_peft(tmp_path, base.model, base.halves, name, digest)
    _, leaves, said = read(tmp_path, base, mine)
    assert leaves.keys() == base.halves.keys()
    assert told in said and bool(told) == bool(said)


@pytest.mark.parametrize("digest", ["", "d2"])
def test_an_adapter_of_vicuna_does_not_go_onto_llama(digest, base, tmp_path):
    write_peft(tmp_path, base.model, base.halves, "lmsys/vicuna-7b-v1.5", digest)
    with pytest.raises(UserError) as error:
        read(tmp_path, base)
    for told in (
        "'lmsys/vicuna-7b-v1.5'",
        "'/models/Llama-2-7b-chat-hf'",
        "--config.adapter_base=lmsys/vicuna-7b-v1.5",
    ):
        assert told in str(error.value)


def test_the_digest_is_that_of_the_files_whatever_their_names():
    assert base_digest({"a": "1", "b": "2"}) == base_digest({"x": "2", "y": "1"})
    assert base_digest({"a": "1"}) != base_digest({"a": "2"}) and base_digest({}) == ""


@pytest.mark.parametrize(
    "name", ["non_lora_trainables.bin", "extra.safetensors", "pytorch_model.bin", "more.pt"]
)
def test_other_weights_beside_an_adapter_are_refused_by_their_names(name, base, tmp_path):
    write_peft(tmp_path, base.model, base.halves, MINE.name)
    key = "base_model.model.model.mm_projector.0.weight"
    if name.endswith("safetensors"):
        save_file({key: np.ones(3, np.float32)}, tmp_path / name)
    else:
        torch.save({key: torch.ones(3)}, tmp_path / name)
    with pytest.raises(UserError, match=f"{name} beside the adapter holds {key}"):
        read(tmp_path, base)


def test_what_a_trainer_keeps_and_empty_files_are_no_weights(base, tmp_path):
    write_peft(tmp_path, base.model, base.halves, MINE.name)
    torch.save({}, tmp_path / "non_lora_trainables.bin")
    for name in ("optimizer.pt", "rng_state_0.pth", "training_args.bin"):
        (tmp_path / name).write_bytes(b"not read")
    assert read(tmp_path, base)[2] == ""


def test_every_key_of_peft_is_honoured_or_refused(base, tmp_path):
    """A value in any of its fields that is not read or silent must raise."""
    write_peft(tmp_path, base.model, base.halves, MINE.name)
    file = tmp_path / adapters.CONFIG
    plain = json.loads(file.read_text())
    for field in dataclasses.fields(peft.LoraConfig):
        if field.name in adapters.READ | adapters.SILENT:
            continue
        file.write_text(json.dumps(plain | {field.name: "x"}))
        with pytest.raises(UserError, match=f"{field.name} is 'x'"):
            read(tmp_path, base)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("base_model.model.model.", "base_model.model.model.language_model.",
         "18 names begin with 'base_model.model.model.language_model.'"),
        ("base_model.model.", "", r"18 names lack 'base_model.model.' before them; put it there"),
    ],
)  # fmt: skip
def test_another_prefix_of_an_adapter_is_one_line(old, new, told, base, tmp_path):
    write_peft(tmp_path, base.model, base.halves, MINE.name)
    file = tmp_path / adapters.WEIGHTS
    save_file({name.replace(old, new, 1): x for name, x in load_file(file).items()}, file)
    with pytest.raises(UserError, match=told) as error:
        read(tmp_path, base)
    assert len(str(error.value)) < 500


def test_an_adapter_of_a_compiled_model_is_read_and_told(base, tmp_path):
    write_peft(tmp_path, base.model, base.halves, MINE.name)
    file = tmp_path / adapters.WEIGHTS
    save_file({f"_orig_mod.{name}": x for name, x in load_file(file).items()}, file)
    _, leaves, said = read(tmp_path, base)
    assert leaves.keys() == base.halves.keys() and "wrapper is taken off" in said
