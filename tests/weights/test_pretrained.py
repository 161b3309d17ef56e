"""Published tokenizers: exact ids, markers behind them, nothing special from text, clear errors."""

from __future__ import annotations

import base64
import json
import pickle

import gguf
import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.tokenizer import ROLES_FILE, Roles, Tokenizer
from meerkat_jax.inference.sampling import suppress_mask
from meerkat_jax.mini.tokenizer import build_mini_tokenizer
from meerkat_jax.weights.bpe import merges, spelled_bytes
from meerkat_jax.weights.pretrained import ADDED, pretrained_tokenizer
from tests.weights.vocabularies import (
    CHATML,
    LLAMA3,
    corpus,
    sentencepiece_model,
    write_bytes,
    write_sentencepiece,
)

KINDS = ("llama2", "chatml", "llama3")
ENDS = {"llama2": "</s>", "chatml": "<|im_end|>", "llama3": "<|eot_id|>"}
BEGINS = {"llama2": "<s>", "chatml": None, "llama3": "<|begin_of_text|>"}
TEXTS = st.one_of(
    st.text(),
    st.text(" \t\n▁=a.", max_size=60),
    st.text(" abcehiorst.,[]<>/INS0123456789é\n", max_size=80),
    st.lists(st.sampled_from([" ", "  ", "\n", "image", "sound", " the", "дом", "🦙", "\0"]))
    .map("".join),
)  # fmt: skip
many = settings(max_examples=100, deadline=None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    return {
        "llama2": write_sentencepiece(root / "llama2"),
        "chatml": write_bytes(root / "chatml", CHATML),
        "llama3": write_bytes(root / "llama3", LLAMA3),
    }


@pytest.fixture(scope="module")
def ours(folders):
    return {kind: pretrained_tokenizer(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def published(folders):
    """Ids of a text by the library that each was made with."""
    file = folders["llama2"] / "tokenizer.model"
    found = {"llama2": sentencepiece.SentencePieceProcessor(model_file=str(file)).encode}
    for kind in ("chatml", "llama3"):
        raw = tokenizers.Tokenizer.from_file(str(folders[kind] / "tokenizer.json"))
        raw.encode_special_tokens = True
        found[kind] = lambda text, raw=raw: raw.encode(text, add_special_tokens=False).ids
    return found


# ---- ids ----


@pytest.mark.parametrize("changes", [{}, {"add_dummy_prefix": False}, {"byte_fallback": False}])
def test_ids_are_those_of_sentencepiece(changes, tmp_path):
    model = sentencepiece_model(**changes)
    tokenizer = pretrained_tokenizer(write_sentencepiece(tmp_path, model))
    other = sentencepiece.SentencePieceProcessor(model_proto=model)

    @many
    @example("")
    @example("  a   b ")
    @example("</s><s> <0x0A><unk>")
    @given(TEXTS)
    def check(text):
        ids = tokenizer.encode(text)
        assert ids == other.encode(text)
        if "unk" not in other.decode(ids) and not changes:
            assert tokenizer.decode(ids) == other.decode(ids)

    check()
    assert all(tokenizer.encode(text) == other.encode(text) for text in corpus())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_our_markers_is_added(kind, ours, published):
    tokenizer, rows = ours[kind], {"llama2": 560}.get(kind, 500)
    assert tokenizer.pretrained == rows
    assert [tokenizer.token_id(name) for name in ADDED] == list(range(rows, rows + 7))
    assert ADDED[:6] == ("<image>", "</image>", "<audio>", "</audio>", "<video>", "</video>")
    assert tokenizer.pad_id == rows + 6 == tokenizer.vocab_size - 1

    @settings(max_examples=50, deadline=None)
    @given(TEXTS)
    def check(text):
        assert tokenizer.encode(text) == published[kind](text)
        assert tokenizer.encode_batch([text]) == [tokenizer.encode(text)]
        same = text.replace("▁", " ") if kind == "llama2" else text
        assert tokenizer.decode(tokenizer.encode(text)) == same

    check()


@many
@given(TEXTS)
def test_a_part_of_a_text_gets_no_space_before_it(ours, text):
    tokenizer = ours["llama2"]
    if text:
        assert tokenizer.encode_part(" " + text) == tokenizer.encode(text)
    assert ours["llama3"].encode_part(text) == ours["llama3"].encode(text)


def test_a_tokenizer_json_of_transformers_becomes_exact(folders, ours, tmp_path):
    """Its own Llama tokenizer forgets the space before a text that begins with one."""
    theirs = transformers.LlamaTokenizer.from_pretrained(folders["llama2"])
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()
    tokenizer = pretrained_tokenizer(tmp_path)
    assert tokenizer.roles == ours["llama2"].roles
    assert theirs.encode(" a  b", add_special_tokens=False) != ours["llama2"].encode(" a  b")
    for text in [" a  b", "▁a", "a", *corpus()]:
        assert tokenizer.encode(text) == ours["llama2"].encode(text)
        assert tokenizer.encode_part(text) == ours["llama2"].encode_part(text)


@pytest.mark.parametrize("kind", ["llama2", "llama3"])
def test_the_same_vocabulary_in_a_gguf_file(kind, folders, ours, tmp_path):
    file = tmp_path / "model.gguf"
    write_gguf(file, kind, folders[kind])
    tokenizer = pretrained_tokenizer(file)
    assert tokenizer.roles == ours[kind].roles
    assert pretrained_tokenizer(tmp_path).sha256 == tokenizer.sha256
    for text in ["", "  a  b", "</s><|eot_id|>", *corpus()]:
        assert tokenizer.encode(text) == ours[kind].encode(text)


def write_gguf(file, kind, folder):
    """The vocabulary of `folder` as llama.cpp's converter writes it."""
    out = gguf.GGUFWriter(file, "llama")
    if kind == "llama2":
        model = ModelProto.FromString((folder / "tokenizer.model").read_bytes())
        out.add_tokenizer_model("llama")
        out.add_token_list([piece.piece for piece in model.pieces])
        out.add_token_scores([piece.score for piece in model.pieces])
        out.add_token_types([piece.type for piece in model.pieces])
        out.add_bos_token_id(1)
        out.add_eos_token_id(2)
    else:
        data = json.loads((folder / "tokenizer.json").read_text())
        specials = {token["content"] for token in data["added_tokens"]}
        ids = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
        out.add_tokenizer_model("gpt2")
        out.add_tokenizer_pre("llama-bpe")
        out.add_token_list(ids)
        out.add_token_types([3 if token in specials else 1 for token in ids])
        out.add_token_merges([" ".join(pair) for pair in data["model"]["merges"]])
        out.add_bos_token_id(0)
        out.add_eos_token_id(1)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    out.add_chat_template(told["chat_template"])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.close()


def test_llama_3_in_metas_own_form(folders, tmp_path):
    """Lines of a piece and its rank, joined as they say: the lowest rank first, the leftmost."""
    data = json.loads((folders["llama3"] / "tokenizer.json").read_text())
    letters = {letter: byte for byte, letter in spelled_bytes().items()}
    specials = {token["content"] for token in data["added_tokens"]}
    vocabulary = data["model"]["vocab"]
    ordinary = sorted(set(vocabulary) - specials, key=vocabulary.get)
    pieces = [bytes(map(letters.get, piece)) for piece in ordinary]
    lines = [base64.b64encode(piece) + b" %d\n" % i for i, piece in enumerate(pieces)]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    (tmp_path / "params.json").write_text("{}")
    tokenizer = pretrained_tokenizer(tmp_path)
    assert (tokenizer.style, tokenizer.pretrained) == ("llama3", len(pieces) + 256)
    assert tokenizer.bos_id == len(pieces) and tokenizer.eos_id == len(pieces) + 9
    ranks = {piece: i for i, piece in enumerate(pieces)}
    split = tokenizers.Tokenizer.from_file(str(folders["llama3"] / "tokenizer.json")).pre_tokenizer

    def joined(word):
        parts = [bytes([byte]) for byte in word]
        while True:
            pairs = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:], strict=False)]
            if word in ranks or not pairs or min(pairs) == len(ranks):
                return [ranks[word]] if word in ranks else [ranks[part] for part in parts]
            i = pairs.index(min(pairs))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]

    @many
    @given(TEXTS)
    def check(text):
        words = [bytes(map(letters.get, word)) for word, _ in split.pre_tokenize_str(text)]
        assert tokenizer.encode(text) == [i for word in words for i in joined(word)]

    check()


def test_merges_list_every_cut_the_best_piece_first():
    assert merges(["a", "b", "abc", "ab", "c", "bc"]) == [
        ("a", "bc"), ("ab", "c"), ("a", "b"), ("b", "c"),
    ]  # fmt: skip


# ---- special tokens ----


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_becomes_a_special_token_and_none_is_decoded(kind, ours, tmp_path):
    tokenizer = ours[kind]
    tokenizer.save(tmp_path)
    special = set(tokenizer.specials.values())
    assert {tokenizer.eos_id, tokenizer.pad_id, tokenizer.token_id("<video>")} < special
    for copy in (tokenizer, Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        for name in tokenizer.specials:
            for text in (name, f"a{name}b", f" {name} {name}"):
                assert not special & {*copy.encode(text), *copy.encode_part(text)}
                assert copy.decode(copy.encode(text)) == text
        ids = copy.encode("the image")
        assert copy.decode([*special, *ids, copy.padded_vocab_size - 1]) == "the image"


@pytest.mark.parametrize("kind", KINDS)
def test_roles(kind, ours):
    tokenizer = ours[kind]
    assert (tokenizer.roles.begin, tokenizer.roles.end) == (BEGINS[kind], ENDS[kind])
    assert tokenizer.style == kind
    assert tokenizer.system == ("You are a small test, made by nobody" if kind == "chatml" else "")
    table = suppress_mask(tokenizer)
    assert table.shape == (tokenizer.padded_vocab_size,)
    assert not table[[tokenizer.eos_id, *tokenizer.encode("a [dog, 0.5] 🦙")]].any()
    assert all(table[i] for name, i in tokenizer.specials.items() if name != ENDS[kind])


def test_llama_3_1_begins_with_dates(tmp_path):
    dated = "Cutting Knowledge Date: December 2023\n{% set date_string = '26 Jul 2024' %}"
    write_bytes(tmp_path, LLAMA3, chat_template=dated + LLAMA3)
    dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    assert pretrained_tokenizer(tmp_path).system == dates


def test_tokens_that_were_added_to_a_model_are_special(tmp_path):
    listed = {"560": {"content": "<|user|>", "special": False}, "561": {"content": "<|bot|>"}}
    write_sentencepiece(tmp_path, added_tokens_decoder=listed)
    (tmp_path / "config.json").write_text('{"vocab_size": 564}')
    tokenizer = pretrained_tokenizer(tmp_path)
    names = ("<|user|>", "<|bot|>", "<unused_562>", "<unused_563>", *ADDED)
    assert [tokenizer.specials[name] for name in names] == list(range(560, 571))
    assert 560 not in tokenizer.encode("<|user|>")


def test_tokens_that_only_the_settings_name_are_special(ours, tmp_path):
    write_bytes(tmp_path, CHATML, additional_special_tokens=["<|endoftext|>"])
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["added_tokens"] = [token | {"special": False} for token in data["added_tokens"][1:]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert pretrained_tokenizer(tmp_path).specials == ours["chatml"].specials


def test_a_merge_that_spells_a_special_token_is_left_out(folders, tmp_path):
    """As in files in which every cut of every piece is listed, special ones too."""
    theirs = transformers.LlamaTokenizer.from_pretrained(folders["llama2"])
    theirs.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["model"]["vocab"]["s>"] = 560
    data["model"]["merges"] = [["s", ">"], ["<", "s>"], *data["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    raw = tokenizers.Tokenizer.from_str(json.dumps(data))
    raw.encode_special_tokens = True
    assert 1 in raw.encode("a<s>b", add_special_tokens=False).ids
    assert 560 in pretrained_tokenizer(tmp_path).encode("a<s>b")


# ---- files ----


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_loads_back(kind, ours, tmp_path):
    ours[kind].save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.roles, again.sha256) == (ours[kind].roles, ours[kind].sha256)
    raw = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    raw.encode_special_tokens = True
    begin = [] if ours[kind].bos_id is None else [ours[kind].bos_id]
    for text in corpus()[::7]:
        assert again.encode(text) == ours[kind].encode(text)
        assert raw.encode(text).ids == [*begin, *again.encode(text)]  # as others will read it
    build_mini_tokenizer(["a"], ["dog"]).save(tmp_path)
    assert not (tmp_path / ROLES_FILE).exists() and not Tokenizer.load(tmp_path).pretrained


def test_the_hash_tells_roles_apart(ours):
    assert (
        Tokenizer(ours["llama2"]._raw, Roles(pretrained=560, style=None)).sha256
        != ours["llama2"].sha256
    )


@pytest.mark.parametrize("content", ["", "[]", '{"begin": "<s>", "colour": 1}', "not json"])
def test_broken_roles_are_named(content, ours, tmp_path):
    ours["llama2"].save(tmp_path)
    (tmp_path / ROLES_FILE).write_text(content)
    with pytest.raises(UserError, match=ROLES_FILE):
        Tokenizer.load(tmp_path)


def changed_model(change):
    model = ModelProto.FromString(sentencepiece_model())
    change(model)
    return model.SerializeToString()


def piece_type(model, kind):
    model.pieces[500].type = kind


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: b"<html>not found</html>", "not a sentencepiece model.*download it again"),
        (lambda: sentencepiece_model()[:3000], "not a sentencepiece model|cut short"),
        (lambda: b"IQ== 0\nIg== 2\n", "not lines of a piece and its rank"),
        (
            lambda: sentencepiece_model(model_type="unigram", vocab_size=380),
            "model_type is 1, expected 2",
        ),
        (
            lambda: sentencepiece_model(normalization_rule_name="nmt_nfkc"),
            "normalised by 'nmt_nfkc', expected not at all; a tokenizer.json is read instead",
        ),
        (lambda: sentencepiece_model(remove_extra_whitespaces=True), "remove_extra_whitespaces"),
        (
            lambda: sentencepiece_model(treat_whitespace_as_suffix=True),
            "treat_whitespace_as_suffix is set",
        ),
        (lambda: sentencepiece_model(user_defined_symbols="ab"), "'ab', was added by a user"),
        (lambda: changed_model(lambda model: piece_type(model, 5)), "piece 500, .* of type 5"),
        (lambda: changed_model(lambda m: m.pieces.add(piece="a", score=-1)), "'a' twice"),
    ],
)
def test_a_model_that_cannot_be_had_exactly_is_refused(model, message, tmp_path):
    write_sentencepiece(tmp_path, model())
    with pytest.raises(UserError, match=f"tokenizer.model: .*({message})"):
        pretrained_tokenizer(tmp_path)


def test_a_marker_that_was_added_to_sentencepiece_is_special(tmp_path):
    model = sentencepiece_model(user_defined_symbols="<|user|>")
    tokenizer = pretrained_tokenizer(write_sentencepiece(tmp_path, model))
    assert tokenizer.specials["<|user|>"] not in tokenizer.encode("<|user|>")


def edited(name, change):
    def edit(folder):
        file = folder / name
        data = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(change(data) or data))

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer; expected a folder with"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json: not a tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("<html>"), "tokenizer.json: not a tokenizer"),
        (
            edited("tokenizer.json", lambda d: d["model"].update(type="WordLevel")),
            "tokenizer.json: model.type is 'WordLevel'",
        ),
        (
            edited("config.json", lambda d: {"vocab_size": 499}),
            "tokenizer.json: 500 tokens, but the model's table has 499 rows",
        ),
        (
            edited("tokenizer_config.json", lambda d: {"bos_token": "<|endoftext|>"}),
            "tokenizer.json: no token ends an answer",
        ),
        (
            lambda f: (f / "tokenizer_config.json").write_text("{"),
            "tokenizer_config.json cannot be read as JSON",
        ),
        (
            lambda f: (f / "generation_config.json").write_text("[1]"),
            "generation_config.json holds a list",
        ),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(edit, message, tmp_path):
    write_bytes(tmp_path, CHATML)
    edit(tmp_path)
    with pytest.raises(UserError, match=message):
        pretrained_tokenizer(tmp_path)


def test_a_broken_gguf_file_is_named(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(UserError, match=r"m.gguf: it ends within its head"):
        pretrained_tokenizer(tmp_path / "m.gguf")


def test_the_end_of_an_answer_by_its_number(tmp_path):
    write_bytes(tmp_path, CHATML, eos_token=None, chat_template=None)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    tokenizer = pretrained_tokenizer(tmp_path)
    assert (tokenizer.roles.end, tokenizer.style) == ("<|endoftext|>", None)
