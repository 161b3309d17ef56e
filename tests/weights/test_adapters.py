"""LoRA adapters against peft: ours loaded there, theirs loaded here, and faults by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights import adapters
from meerkat_jax.weights.adapters import AdapterBase, read_peft, write_peft
from meerkat_jax.weights.merged import write_hf
from tests.tolerances import tolerance
from tests.weights.decoders import (
    IDS,
    KINDS,
    LORA,
    arrays,
    exported,
    logits,
    same,
    sample,
    torch_logits,
)  # fmt: skip

ONE = pytest.mark.parametrize("base", ["tied"], indirect=True)


@pytest.fixture(params=KINDS)
def base(request, bases):
    """Each kind of decoder; or, with indirect parameters, one."""
    return bases(request.param)


def test_peft_loads_ours_with_equal_logits(base, tmp_path):
    out = exported(base, "peft", tmp_path / "out")
    plain = transformers.AutoModelForCausalLM.from_pretrained(base.folder)
    ids = sample(base.model)
    before = torch_logits(plain, ids)
    theirs = torch_logits(peft.PeftModel.from_pretrained(plain, out).eval(), ids)
    same(logits(base.model, base.leaves, ids), theirs, base.model.pretrained)
    assert np.abs(theirs - before).max() > 0.1
    assert {file.suffix for file in out.iterdir()} == {".json", ".safetensors", ".md"}


def test_card_of_an_adapter_loads_added_tokens(base, tmp_path):
    out = exported(base, "peft", tmp_path / "out")
    code = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    found: dict = {}
    for block in code:
        exec(block.replace('"."', repr(str(out))), found)
    ids = sample(base.model, added=True)
    theirs = torch_logits(found["model"].eval(), ids)
    same(logits(base.model, base.leaves, ids), theirs, base.model.pretrained)
    assert "image_connector/outer/kernel" in found["params"]
    assert found["tokenizer"].convert_tokens_to_ids("<image>") >= base.model.pretrained


def test_adapter_comes_back_bit_for_bit(base, tmp_path):
    write_peft(tmp_path, base.model, base.halves, "some/base")
    lora, leaves = read_peft(tmp_path, base.model.clone(lora=None), AdapterBase(("of/Base",)))
    assert lora == LORA
    assert as_bytes(leaves) == as_bytes(base.halves)


def as_bytes(leaves: dict[str, np.ndarray]) -> dict[str, bytes]:
    """To compare bit for bit."""
    return {path: leaf.tobytes() for path, leaf in leaves.items()}


def saved(base, folder: Path, **changes) -> np.ndarray:
    """An adapter that peft saves; its logits of `sample`."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(base.folder)
    settings = {"r": 4, "lora_alpha": 5, "target_modules": ["k_proj", "o_proj", "gate_proj"]}
    config = peft.LoraConfig(**settings | changes, init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(1)
    adapted = peft.get_peft_model(plain, config).eval()
    adapted.save_pretrained(folder)
    return torch_logits(adapted, sample(base.model))


@ONE
@pytest.mark.parametrize(
    "changes",
    [{}, {"use_rslora": True}, {"target_modules": "all-linear", "r": 1, "lora_dropout": 0.5}],
)
def test_adapter_of_peft_gives_equal_logits(base, changes, tmp_path):
    theirs = saved(base, tmp_path, **changes)
    lora, leaves = read_peft(tmp_path, base.model, AdapterBase((str(base.folder),)))
    model = base.model.clone(lora=lora)
    own = base.given() | {"added": base.leaves["added"]} | leaves
    same(logits(model, own, sample(base.model)), theirs, base.model.pretrained)


FAULTS = {
    "use_dora": True,
    "rank_pattern": {"q_proj": 8},
    "alpha_pattern": {"q_proj": 8},
    "bias": "all",
    "modules_to_save": ["lm_head"],
    "peft_type": "IA3",
    "task_type": "SEQ_CLS",
    "layers_to_transform": [0],
    "trainable_token_indices": [3],
    "init_lora_weights": "pissa",
    "a_key_of_tomorrow": {"x": 1},
    "lora_dropout": 1.5,
    "base_model_name_or_path": "other/model",
    "target_modules": ["q_proj", "embed_tokens", "lm_head"],
}


def written(base, folder: Path, **changes) -> dict[str, torch.Tensor]:
    """Our adapter with another config; its tensors."""
    write_peft(folder, base.model, base.halves, "some/base")
    file = folder / adapters.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return load_file(folder / adapters.WEIGHTS)


@ONE
@pytest.mark.parametrize("keys", [*([key] for key in FAULTS), list(FAULTS)])
def test_an_adapter_of_another_kind_is_refused_by_its_keys(base, keys, tmp_path):
    written(base, tmp_path, **{key: FAULTS[key] for key in keys})
    with pytest.raises(UserError) as error:
        read_peft(tmp_path, base.model, AdapterBase(("some/base",)))
    told = str(error.value)
    assert str(tmp_path) in told and f"{len(keys)} problem" in told or "target_modules" in keys
    for key in keys:
        assert f"{key} " in told
    if "target_modules" in keys:
        assert "'embed_tokens'" in told and "'lm_head'" in told


@ONE
def test_wrong_tensors_are_named_together(base, tmp_path):
    tensors = written(base, tmp_path, use_dora=True)
    name = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.weight"
    gone, moved, bent, strange = (
        name.format(*place)
        for place in ((0, "q", "A"), (1, "q", "B"), (2, "v", "A"), (7, "q", "A"))
    )
    del tensors[gone]
    tensors["base_model.model.lm_head.lora_A.weight"] = tensors.pop(moved)
    tensors[bent] = tensors[bent][:, 1:].contiguous()
    tensors[strange] = torch.ones(3, 32)
    save_file(tensors, tmp_path / adapters.WEIGHTS)
    with pytest.raises(UserError) as error:
        read_peft(tmp_path, base.model)
    for told in ("use_dora", gone, moved, "lm_head.lora_A", bent, strange):
        assert told in str(error.value)


@ONE
def test_pickled_adapters_are_read_as_weights_alone(base, tmp_path):
    tensors = written(base, tmp_path)
    want = read_peft(tmp_path, base.model)[1]
    (tmp_path / adapters.WEIGHTS).unlink()
    torch.save(tensors, tmp_path / adapters.PICKLED)
    found = read_peft(tmp_path, base.model)[1]
    assert as_bytes(found) == as_bytes(want)
    torch.save({"x": Path("code")}, tmp_path / adapters.PICKLED)
    with pytest.raises(UserError, match="weights-only"):
        read_peft(tmp_path, base.model)


@pytest.mark.parametrize(
    ("remove", "words"), [(adapters.CONFIG, "config.json"), (adapters.WEIGHTS, "safetensors")]
)
@ONE
def test_half_an_adapter_is_refused(base, remove, words, tmp_path):
    written(base, tmp_path)
    (tmp_path / remove).unlink()
    with pytest.raises(UserError, match=f"{words} is missing"):
        read_peft(tmp_path, base.model)


def test_merging_is_what_peft_does(base, tmp_path):
    """The same file as torch's merge gives, but for the order of a sum."""
    write_hf(tmp_path, base.model, base.leaves, IDS, say=len)
    (tmp_path / "peft").mkdir()
    write_peft(tmp_path / "peft", base.model, base.halves, "some/base")
    plain = transformers.AutoModelForCausalLM.from_pretrained(base.folder)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "peft").merge_and_unload()
    found, touched = load_arrays(tmp_path / "model.safetensors"), 0
    for name, value in arrays(dict(theirs.named_parameters())).items():
        merged = name.split(".")[-2] in ("q_proj", "v_proj", "down_proj")
        near = tolerance("module" if merged else "bitwise")
        np.testing.assert_allclose(found[name][: len(value)], value, **near)
        touched += merged
    assert touched == 3 * base.model.depth
