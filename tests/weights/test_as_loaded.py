"""What transformers makes of a checkpoint is what we convert: ties, buffers, wrapped names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights import adapters, convert, llama, store
from meerkat_jax.weights.convert import plan_part
from meerkat_jax.weights.store import Store
from meerkat_jax.weights.table import assembled
from meerkat_jax.weights.verify import verify
from tests.weights import decoders, published, released, test_gguf, test_laion, test_meta

EMBED, HEAD = llama.EMBEDDING, llama.HEAD
INDEX = "audio_model.audio_encoder.layers.0.blocks.0.attention.self.relative_position_index"
NEAR = 1e-4


def changed(folder: Path, change) -> Path:
    """The one safetensors file of `folder`, its tensors changed by a function."""
    file = folder / "model.safetensors"
    tensors = change(load_file(file))
    save_file({n: t.clone() for n, t in tensors.items()}, file, {"format": "pt"})
    return folder


def other_head(tensors):
    torch.manual_seed(7)
    return tensors | {HEAD: torch.randn_like(tensors[EMBED])}


def head_alone(tensors):
    return {HEAD if name == EMBED else name: tensor for name, tensor in tensors.items()}


def inner_alone(tensors):
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


TIED = {
    "no head": (lambda tensors: tensors, True, None),
    "equal head": (lambda tensors: tensors | {HEAD: tensors[EMBED]}, True, None),
    "other head": (other_head, False, "stay apart"),
    "head alone": (head_alone, True, "serves as"),
    "inner model alone": (inner_alone, True, "saved without its head"),
}


@pytest.mark.parametrize("case", TIED)
def test_tied_heads_are_what_transformers_loads(case, tmp_path):
    change, tied, told = TIED[case]
    published.llama(tmp_path, shards="5GB", tie_word_embeddings=True)
    part = plan_part("llama", changed(tmp_path, change), None)
    assert part.fields["tied"] is tied
    notes = " ".join(part.source.notes)
    assert told in notes if told else not notes
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    model = convert.build("llama", part.fields)
    leaves = assembled(part.pieces, lambda name: part.source.tensors[name].read())
    leaves["added"] = np.zeros((model.added_rows, model.width), np.float32)
    ids = decoders.sample(model)
    ours = decoders.logits(model, leaves, ids)
    decoders.same(ours, decoders.torch_logits(theirs.eval(), ids), model.pretrained)


def test_verify_sees_a_head_that_was_dropped(tmp_path):
    """A store that was converted with the wrong head must not verify."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder in (good, bad):
        published.llama(folder, shards="5GB", tie_word_embeddings=True)
    lines: list[str] = []
    made = convert.convert({"llama": good}, tmp_path / "store", say=lines.append)
    assert errors(made, good)["logits"] < NEAR
    changed(bad, other_head)
    found = errors(made, bad)
    assert found["logits"] > 1 and found["layer 0"] < NEAR
    made = convert.convert({"llama": bad}, tmp_path / "apart", say=lines.append)
    assert errors(made, bad)["logits"] < NEAR and "tied" in str(made.parts["llama"]["config"])
    assert any("note: tie_word_embeddings is true, but lm_head.weight differs" in x for x in lines)


def errors(store: Store, folder: Path) -> dict[str, float]:
    rows = verify(store, {"llama": folder}, say=len)
    return {row.module.removeprefix("llama: "): row.largest for row in rows}


def test_a_position_index_with_which_transformers_computes_is_refused(tmp_path):
    published.clap(tmp_path)
    plan_part("clap", tmp_path, None)
    changed(tmp_path, lambda tensors: tensors | {INDEX: tensors[INDEX].flip(0)})
    theirs = transformers.ClapModel.from_pretrained(tmp_path)
    loaded = theirs.state_dict()[INDEX]
    assert (loaded == load_file(tmp_path / "model.safetensors")[INDEX]).all()
    with pytest.raises(UserError, match="relative_position_index .*transformers computes with it"):
        plan_part("clap", tmp_path, None)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_rotary_turns_that_transformers_ignores_are_told(factor, tmp_path):
    published.llama(tmp_path, shards="5GB")
    turns = factor * 1e4 ** (-torch.arange(0, 8, 2) / 8)
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    changed(tmp_path, lambda tensors: tensors | {name: turns.half()})
    notes = " ".join(plan_part("llama", tmp_path, None).source.notes)
    assert (name in notes and "ignores it too" in notes) is (factor != 1.0)


def test_position_ids_that_are_no_numbering_are_told(tmp_path):
    published.clip(tmp_path)
    name = "vision_model.embeddings.position_ids"
    changed(tmp_path, lambda tensors: tensors | {name: torch.arange(17)[None]})
    assert not plan_part("clip", tmp_path, None).source.notes
    changed(tmp_path, lambda tensors: tensors | {name: torch.arange(17).flip(0)[None]})
    assert name in plan_part("clip", tmp_path, None).source.notes[0]


def test_an_adapter_beside_the_weights_is_refused(tmp_path):
    published.llama(tmp_path)
    (tmp_path / adapters.CONFIG).write_text("{}")
    with pytest.raises(UserError, match="adapter_config.json lies beside the weights"):
        plan_part("llama", tmp_path, None)


def as_gguf(folder):
    return {"llama": test_gguf.write(folder / "m.gguf", test_gguf.model().state_dict())}


def as_metas(folder):
    state = test_meta.model(torch.bfloat16).state_dict()
    return {"llama": test_meta.write(folder / "meta", state, 2)}


def as_laions(folder):
    return {"clap": test_laion.write(folder / "x.pt", published.clap(folder / "hub").state_dict())}


def as_the_authors(folder):
    theirs = released.Release(lora=False)
    folder = released.save(folder / "r", theirs.state_dict(), theirs.sizes)
    return dict.fromkeys(convert.KINDS, folder)


@pytest.mark.parametrize("write", [as_gguf, as_metas, as_laions, as_the_authors])
def test_every_layout_is_verified_by_transformers_own_loading(write, tmp_path):
    paths = write(tmp_path)
    parts = convert.plan_parts(paths, None)
    with store.staged(tmp_path / "store") as folder:  # without a tokenizer, which these lack
        writers = [convert._write(part, folder, len) for part in parts.values()]
        told = {part.name: convert._write_part(part, len) for part in parts.values()}
        store.write_record(folder, writers, told, [])
    rows = verify(Store.open(tmp_path / "store"), paths, say=len)
    assert {row.module.split(":")[0] for row in rows} == {part.name for part in parts.values()}
    for row in rows:
        assert row.size > 0.01 and row.largest <= NEAR * max(row.size, 1.0), row


# ---- names ----


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod."])
def test_wrappers_of_torch_are_taken_off_and_told(wrapper, tmp_path):
    published.llama(tmp_path, shards="5GB")
    plain = plan_part("llama", tmp_path, None)
    changed(tmp_path, lambda tensors: {wrapper + name: x for name, x in tensors.items()})
    part = plan_part("llama", tmp_path, None)
    assert set(part.source.tensors) == set(plain.source.tensors)
    assert "wrapper is taken off the names of 30 (" in part.source.notes[0]
    store = convert.convert({"llama": tmp_path}, tmp_path / "store", say=len)
    assert errors(store, tmp_path)["logits"] < NEAR


def nested(name):
    return name.replace("model.", "model.language_model.", 1)


def test_another_prefix_is_one_line_with_the_remedy(tmp_path):
    published.llama(tmp_path, shards="5GB")
    cases = {
        nested: r"29 names begin with 'model.language_model.' where 'model.' is expected",
        lambda name: f"llm.{name}": r"30 names have 'llm.' before them",
    }
    original = load_file(tmp_path / "model.safetensors")
    for rename, told in cases.items():
        changed(tmp_path, lambda _, rename=rename: {rename(n): x for n, x in original.items()})
        with pytest.raises(UserError, match=told) as error:
            plan_part("llama", tmp_path, None)
        assert "save the inner model by itself" in str(error.value)
        assert len(str(error.value)) < 500


def test_lists_of_names_are_a_count_and_a_few(tmp_path):
    published.llama(tmp_path, shards="5GB")
    changed(tmp_path, lambda tensors: {f"x{i}": x for i, x in enumerate(tensors.values())})
    with pytest.raises(UserError, match=r"missing \(30\): .*unknown \(30\): ") as error:
        plan_part("llama", tmp_path, None)
    assert len(str(error.value)) < 1000
