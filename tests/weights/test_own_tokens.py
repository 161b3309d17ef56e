"""A base that has tokens of our names: it keeps them, and ours are used or added beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.prompt import make_prompt
from meerkat_jax.data.tokenizer import ROLES_FILE, Tokenizer
from meerkat_jax.inference.sampling import suppress_mask
from meerkat_jax.weights.convert import convert
from meerkat_jax.weights.export import write_tokenizer
from meerkat_jax.weights.pretrained import check_ids, pretrained_tokenizer
from tests.weights import decoders, published
from tests.weights.vocabularies import CHATML, write_bytes, write_sentencepiece

PLAIN = ["<image>", "</image>", "<audio>", "</audio>", "<video>", "</video>", "<pad>"]
RENAMED = ["<image_1>", "</image_1>"]


def with_tokens(kind: str, folder: Path, names: list[str], rows: int, **config) -> int:
    """A base whose vocabulary of V tokens ends with `names`, and a table of V + `rows`; V."""
    if kind == "sentencepiece":
        write_sentencepiece(folder, **config)
        count = 560
        added = {name: count + i for i, name in enumerate(names)}
        (folder / "added_tokens.json").write_text(json.dumps(added))
    else:
        write_bytes(folder, CHATML, **config)
        raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        count = raw.get_vocab_size()
        raw.add_special_tokens(names)
        raw.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"vocab_size": count + rows}))
    return count


def tokens_of(tokenizer: Tokenizer, first: int) -> list[str]:
    """The names of all tokens from id `first`."""
    return [tokenizer._raw.id_to_token(i) for i in range(first, tokenizer.vocab_size)]


KINDS = pytest.mark.parametrize("kind", ["sentencepiece", "bytes"])
ROWS = pytest.mark.parametrize("rows", [0, 1, 64])


@KINDS
@ROWS
def test_the_padding_of_a_base_is_its_own(kind, rows, tmp_path):
    lines: list[str] = []
    count = with_tokens(kind, tmp_path, ["<pad>"], rows)
    tokenizer = pretrained_tokenizer(tmp_path, say=lines.append)
    fill = [f"<unused_{i}>" for i in range(count + 1, count + rows)]
    assert tokens_of(tokenizer, count) == ["<pad>", *fill, *PLAIN[:-1]]
    assert (tokenizer.pad_id, tokenizer.pretrained) == (count, count + rows)
    assert any("padding is the base's own <pad>" in line for line in lines)
    assert any("no rows for <pad>" in line for line in lines) is (rows == 0)
    assert count not in tokenizer.encode("<pad> <image>") and suppress_mask(tokenizer)[count]


@KINDS
@ROWS
def test_an_image_token_alone_is_not_our_marker(kind, rows, tmp_path):
    """As LLaVA's, which stands for the features themselves."""
    lines: list[str] = []
    count = with_tokens(kind, tmp_path, ["<image>"], rows)
    tokenizer = pretrained_tokenizer(tmp_path, say=lines.append)
    ours = [*RENAMED, *PLAIN[2:]]
    assert tokens_of(tokenizer, max(count + 1, count + rows)) == ours
    assert any("ours are <image_1> for <image>" in line for line in lines)
    assert tokenizer.roles.marker("<image>") == "<image_1>"
    first = [i for part in make_prompt(tokenizer).prefix for i in part if not isinstance(part, str)]
    assert {tokenizer.specials[name] for name in (*RENAMED, "<audio>", "</audio>")} <= set(first)
    assert tokenizer.specials["<image>"] == count and count not in first


@KINDS
@ROWS
def test_a_base_with_all_our_tokens_gets_none(kind, rows, tmp_path):
    count = with_tokens(kind, tmp_path, PLAIN, rows + 6)
    tokenizer = pretrained_tokenizer(tmp_path, say=len)
    assert tokens_of(tokenizer, count)[:7] == PLAIN and not tokenizer.roles.markers
    assert [tokenizer.specials[name] for name in PLAIN] == list(range(count, count + 7))
    assert len([name for name in tokenizer.specials if "_1>" in name]) == 0


@KINDS
def test_names_that_are_taken_twice_get_the_next_number(kind, tmp_path):
    with_tokens(kind, tmp_path, ["<image>", "</image_1>"], 64)
    tokenizer = pretrained_tokenizer(tmp_path, say=len)
    assert tokenizer.roles.markers == {"<image>": "<image_2>", "</image>": "</image_2>"}


@pytest.mark.parametrize("name", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_a_padding_with_another_part_is_not_used(name, tmp_path):
    with_tokens("bytes", tmp_path, [], 0, pad_token=name, unk_token="<|endoftext|>")
    tokenizer = pretrained_tokenizer(tmp_path, say=len)
    assert tokenizer.roles.pad == "<pad>" and tokenizer.pad_id == tokenizer.vocab_size - 1


def test_a_padding_of_another_name_is_used(tmp_path):
    count = with_tokens("bytes", tmp_path, ["<|right_pad|>"], 1, pad_token="<|right_pad|>")
    tokenizer = pretrained_tokenizer(tmp_path, say=len)
    assert (tokenizer.roles.pad, tokenizer.pad_id) == ("<|right_pad|>", count)
    assert tokens_of(tokenizer, count + 1) == PLAIN[:-1]


@pytest.mark.parametrize("rows", [0, 1, 64])
def test_a_store_and_an_export_reload_to_the_same_ids(rows, tmp_path):
    """Base -> store -> export -> store: each has the ids of the first."""
    folder, names = tmp_path / "base", ["<image>", "<pad>"]
    folder.mkdir()
    count = published.tokenizer(folder)
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.add_special_tokens(names)
    theirs = published.llama(folder, shards="5GB", vocab_size=count + rows)
    raw.save(str(folder / "tokenizer.json"))
    store = convert({"llama": folder}, tmp_path / "store", say=len)
    first = Tokenizer.load(store.folder)
    assert json.loads((store.folder / ROLES_FILE).read_text())["markers"]["<image>"] == "<image_1>"
    write_tokenizer(tmp_path / "export", first)
    again = pretrained_tokenizer(tmp_path / "export", first.vocab_size, say=len)
    assert again.roles.markers == first.roles.markers and again.specials == first.specials
    assert again.pad_id == first.pad_id
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    assert auto.convert_tokens_to_ids("<image_1>") == first.specials["<image_1>"]
    assert auto.pad_token_id == first.pad_id
    assert theirs.config.vocab_size == first.pretrained


def test_a_merged_export_is_a_base_again(bases, tmp_path):
    """Its markers are its own: nothing is added, and the logits are those of the export."""
    base = bases("own head")
    out = decoders.exported(base, "hf", tmp_path / "hf")
    store = convert({"llama": out}, tmp_path / "store", say=len)
    tokenizer = Tokenizer.load(store.folder)
    assert tokenizer.pretrained == base.model.vocab_size and not tokenizer.roles.markers
    assert tokenizer.specials["<image>"] == base.tokenizer.specials["<image>"]
    assert tokenizer.pad_id == base.tokenizer.pad_id
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(
        theirs.model.embed_tokens.weight.detach(),
        torch.from_numpy(store.read("llama/embedding")[: tokenizer.pretrained].copy()),
    )


def test_the_authors_ids_are_asked_for(tmp_path):
    with_tokens("sentencepiece", tmp_path / "plain", [], 0)
    check_ids(pretrained_tokenizer(tmp_path / "plain", say=len))
    with_tokens("sentencepiece", tmp_path / "padded", ["<pad>"], 0)
    with pytest.raises(UserError, match="--tokenizer"):
        check_ids(pretrained_tokenizer(tmp_path / "padded", say=len))


def test_a_vocabulary_of_another_model_is_still_refused(tmp_path):
    with_tokens("bytes", tmp_path, [], -3)
    with pytest.raises(UserError, match="the model's table has .* rows"):
        pretrained_tokenizer(tmp_path, say=len)
