"""Exports against transformers: the merged model, its tokenizer, modules, card, round trips."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.tokenizer import Roles, Tokenizer
from meerkat_jax.models.llama import Llama
from meerkat_jax.nn.rotary import RopeScaling
from meerkat_jax.report.model_card import licence, write_card
from meerkat_jax.weights import adapters, convert, modules, table
from meerkat_jax.weights.bpe import sentencepiece_tokenizer
from meerkat_jax.weights.export import About, export, write_tokenizer
from meerkat_jax.weights.merged import split, write_hf
from meerkat_jax.weights.pretrained import ADDED
from tests.weights import published
from tests.weights.decoders import (
    CONFIG,
    IDS,
    KINDS,
    about,
    arrays,
    exported,
    logits,
    same,
    sample,
    torch_logits,
    whole,
)  # fmt: skip

ONE = pytest.mark.parametrize("base", ["tied"], indirect=True)
TEXTS = ("Where is the dog?", "  two  spaces,\n\nlines ", "é 象 <|im", " ", "")
# What only the rest of a published model needs: words, and what its torch code keeps.
DROPPED = re.compile(
    r"^text_|^logit_scale|_projection|position_ids|index$|num_batches|post_layernorm"
)


@pytest.fixture(params=KINDS)
def base(request, bases):
    """Each kind of decoder; or, with indirect parameters, one."""
    return bases(request.param)


def test_transformers_loads_ours_with_equal_logits(base, tmp_path):
    out = exported(base, "hf", tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    ids, pieces = sample(base.model, added=True), base.model.pretrained
    theirs = torch_logits(loaded, ids)
    assert theirs.shape[-1] == base.model.vocab_size
    same(logits(base.model, base.leaves, ids), theirs, pieces)
    share = np.asarray(jax.nn.softmax(theirs))[..., pieces:]
    assert share.max() <= 1 / pieces and theirs.argmax(-1).max() < pieces
    said = loaded.generate(torch.tensor(ids), do_sample=True, max_new_tokens=20, temperature=100.0)
    end = loaded.generation_config.eos_token_id
    for row in said[:, ids.shape[1] :].tolist():  # behind its end a row is filled up with padding
        assert max(row[: row.index(end) + 1 if end in row else None]) < pieces


def same_ids(loaded, tokenizer: Tokenizer) -> None:
    """Is transformers' tokenizer ours?"""
    for text in TEXTS:
        assert loaded(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    for i, token in enumerate(ADDED, tokenizer.pretrained):
        assert loaded.convert_tokens_to_ids(token) == i
    assert loaded.eos_token_id == tokenizer.eos_id
    assert loaded.pad_token_id == tokenizer.pad_id


@ONE
@pytest.mark.parametrize("kind", ["peft", "hf"])
def test_autotokenizer_gives_our_ids(base, kind, tmp_path):
    loaded = transformers.AutoTokenizer.from_pretrained(exported(base, kind, tmp_path / "out"))
    same_ids(loaded, base.tokenizer)
    talk = [{"role": "user", "content": "Where?"}]
    plain = transformers.AutoTokenizer.from_pretrained(base.folder)
    told = (tok.apply_chat_template(talk, tokenize=False) for tok in (loaded, plain))
    assert next(told) == next(told) != ""


def test_autotokenizer_keeps_the_spaces_of_sentencepiece(tmp_path):
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "▁▁", "Wh", "▁Wh"]
    kinds = [2, 3, 3] + [6] * 256 + [1] * 4
    raw = sentencepiece_tokenizer(words, [0.0] * 259 + [-1.0, -2.0, -3.0, -4.0], kinds, "<s>", True)
    raw.add_special_tokens(list(ADDED))
    tokenizer = Tokenizer(raw, Roles("<s>", "</s>", "<pad>", len(words)))
    write_tokenizer(tmp_path, tokenizer)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    same_ids(loaded, tokenizer)
    for text in TEXTS:
        assert loaded(text)["input_ids"] == [1, *tokenizer.encode(text)]


@pytest.mark.parametrize("base", ["scaled"], indirect=True)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_are_rounded_once(base, dtype, tmp_path):
    for name, kind in (("whole", "float32"), ("half", dtype)):
        (tmp_path / name).mkdir()
        write_hf(tmp_path / name, base.model, base.leaves, IDS, kind, base.hub, say=len)
    whole, half = (load_file(tmp_path / x / "model.safetensors") for x in ("whole", "half"))
    kind = getattr(torch, dtype)
    assert all(torch.equal(half[name], value.to(kind)) for name, value in whole.items())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert loaded.dtype == kind


@pytest.mark.parametrize("base", ["own head"], indirect=True)
def test_shards_hold_what_one_file_does(base, tmp_path):
    most = 60_000
    for name, size in (("one", 10**9), ("many", most)):
        (tmp_path / name).mkdir()
        write_hf(tmp_path / name, base.model, base.leaves, IDS, shard=size, say=len)
    files = sorted((tmp_path / "many").glob("model-*"))
    assert len(files) > 2 and all(file.stat().st_size < most + 5000 for file in files)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    one, many = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / x).state_dict()
        for x in ("one", "many")
    )
    assert all(torch.equal(many[name], value) for name, value in one.items())


def test_shards_are_filled_layer_by_layer():
    sizes = {"model.layers.10.a": 4, "model.layers.9.b": 4, "model.layers.9.a": 2, "lm_head": 30}
    assert split(sizes, 6) == [
        ["lm_head"], ["model.layers.9.a", "model.layers.9.b"], ["model.layers.10.a"]
    ]  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_from_scratch_is_exported_too(tied, tmp_path):
    model = Llama(
        vocab_size=64, width=24, depth=2, heads=4, kv_heads=2, head_dim=8, mlp_dim=40, tied=tied,
        rope_theta=1e6, rope_scaling=RopeScaling("linear", 2.0),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    leaves = {p: rng.standard_normal(s, np.float32) for p, s in adapters.shapes(model).items()}
    write_hf(tmp_path, model, leaves, {"eos": 2, "pad": 3}, say=len)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = np.random.default_rng(1).integers(0, 64, (2, 9))
    same(logits(model, leaves, ids), torch_logits(loaded, ids), 64)
    assert loaded.config.tie_word_embeddings == tied and loaded.config.bos_token_id is None


# Refusals ----------------------------------------------------------------------------------------


def trained_norm(base, params, given):
    return "peft", base.model, params, given - {"llama/norm/scale"}, "norm/scale.*--export=hf"


def no_lora(base, params, given):
    return "peft", base.model.clone(lora=None), params, given, "no LoRA"


def misshaped(base, params, given):
    bent = params | {"llama/layers/q/lora_a": params["llama/layers/q/lora_a"][:, 1:]}
    return "peft", base.model, bent, given, "layers/q/lora_a: expected .3, 32, 3.*31"


def missing(base, params, given):
    less = {path: leaf for path, leaf in params.items() if path != "llama/layers/up/kernel"}
    return "hf", base.model, less, given, "layers/up/kernel: expected .*found nothing"


def too_large(base, params, given):
    big = params | {"llama/norm/scale": params["llama/norm/scale"] * 1e6}
    return "hf", base.model, big, given, "beyond the range of float16"


def unknown(base, params, given):
    return "onnx", base.model, params, given, "--export=onnx.*peft, hf"


@ONE
@pytest.mark.parametrize("fault", [trained_norm, no_lora, misshaped, missing, too_large, unknown])
def test_what_cannot_be_exported_leaves_nothing(base, fault, tmp_path):
    kind, model, params, given, words = fault(base, *whole(base))
    with pytest.raises(UserError, match=words):
        export(
            kind, tmp_path / "out", model, params, given, base.tokenizer, about(base), write_card,
            "float16",
            say=len,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


# What goes with both -----------------------------------------------------------------------------


@ONE
def test_modules_are_all_that_no_base_gives(base, tmp_path):
    out = exported(base, "hf", tmp_path / "out")
    config, found = modules.read_modules(out)
    params, _ = whole(base)
    assert config == CONFIG
    assert set(found) == {
        "llama/added",
        "image_connector/outer/kernel",
        "avace/audio_score/bias",
        "audio_tower/norm/scale",
    }
    assert all(found[path].tobytes() == params[path].tobytes() for path in found)
    (out / modules.WEIGHTS).write_bytes(b"short")
    with pytest.raises(UserError, match=modules.WEIGHTS):
        modules.read_modules(out)


@ONE
def test_card_tells_what_is_known_and_what_must_be_filled_in(base, tmp_path):
    scores = {"compositions/arig": {"ciou": 0.8765, "n": 12, "unparsed": 0, "baselines": {}}}
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "LICENSE.txt").write_text("the licence")
    parts = about(base).parts
    source = {"path": str(tmp_path / "base")}
    parts["llama"]["source"] = source
    parts = parts | {"image_tower": {"kind": "clip", "source": {"path": "/x/clip-vit"}}}
    name = "meta-llama/Llama-2-7b-chat-hf"
    card = write_card(
        tmp_path, "peft", base.model, {}, About(CONFIG, 7, name, "abc", parts, "d", scores)
    )
    told = (tmp_path / "README.md").read_text()
    front = told.split("---")[1]
    assert "base_model: meta-llama/Llama-2-7b-chat-hf\n" in front and "license: llama2\n" in front
    for words in (
        "LLAMA 2 Community License, Copyright (c) Meta", "FILL IN", "clip-vit", "steps: 7", "`abc`",
        "data: d", "arig (Point at what sounds)", "0.876", "rank 3, alpha 6, on q, v, down",
    ):  # fmt: skip
        assert words in told
    assert "avc" not in told  # its weight is 0
    assert (tmp_path / "LICENSE.txt").read_text() == "the licence" and card is None


# Round trips -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["llama", "clip", "clap"])
def test_torch_to_ours_to_torch_is_bitwise(kind, dtype, tmp_path):
    theirs = getattr(published, kind)(tmp_path).to(getattr(torch, dtype))
    state = arrays(theirs.state_dict())
    module = convert.KINDS[kind][1]
    fields = module.fields(json.loads((tmp_path / "config.json").read_text()), "test")
    rows, sizes = module.rows(fields), {name: value.shape for name, value in state.items()}
    leaves = table.assembled(
        table.plan(rows, sizes, convert.shapes(kind, fields), kind), state.__getitem__
    )
    found = table.published(rows, leaves)
    for name, value in found.items():
        assert value.dtype == state[name].dtype and value.shape == state[name].shape, name
        assert value.tobytes() == state[name].tobytes(), name
    left = [name for name in set(state) - set(found) if not DROPPED.search(name)]
    assert not left and len(found) > 20


@pytest.mark.parametrize(
    ("base", "found"),
    [
        ("meta-llama/Llama-2-13b-hf", "llama2"),
        ("/hub/models--meta-llama--Llama-3.1-8B-Instruct/snapshots/0e9e39f", "llama3.1"),
        ("meta-llama/Meta-Llama-3-8B", "llama3"),
        ("/data/llama-2/other-model", None),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
        ("", None),
    ],
)
def test_licences_go_by_the_model_s_own_name(base, found):
    assert (licence(base) or (None,))[0] == found
