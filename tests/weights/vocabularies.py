"""Small vocabularies of both kinds, made on the spot, and chat templates as published models have.

The templates are written anew with the text that the published ones give.
"""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import trainers

from meerkat_jax.mini import templates
from meerkat_jax.weights.bpe import SPLITS

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set lead = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set rest = messages %}{% set lead = '' %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + "
    "((lead if loop.first else '') + m['content']).strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a small test, made by nobody<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
BYTE_SPECIALS = {
    CHATML: ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    LLAMA3: (
        "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
        "<|eot_id|>",
    ),
}  # fmt: skip


def corpus() -> list[str]:
    """Text with what odd spacing needs: runs of spaces, tabs, line breaks."""
    texts = [t for parts in templates.TEMPLATES.values() for ts in parts.values() for t in ts]
    spaced = ["    if a:\n        b  =  1\n\n\n", "a\t\tb", "=====", "naïve café, дом", "。、"]
    return texts + spaced * 20 + ["[INST] <<SYS>>\n<</SYS>>\n\n [/INST]"] * 5


@functools.cache
def sentencepiece_model(**changes) -> bytes:
    """A tokenizer.model with Llama-2's settings, 560 pieces."""
    settings = {
        "model_type": "bpe", "vocab_size": 560, "byte_fallback": True, "split_digits": True,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True, "character_coverage": 0.9999,
        "max_sentence_length": 10000, "num_threads": 1, "minloglevel": 2,
    }  # fmt: skip
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=out, **(settings | changes)
    )
    return out.getvalue()


def write_sentencepiece(folder: Path, model: bytes | None = None, **config) -> Path:
    """A hub folder with a tokenizer.model and a tokenizer_config.json with Llama-2's template."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model or sentencepiece_model())
    told = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    told |= {"chat_template": LLAMA2} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def write_bytes(folder: Path, template: str, **config) -> Path:
    """A hub folder with a tokenizer.json of BPE on bytes that speaks the form of `template`."""
    folder.mkdir(parents=True, exist_ok=True)
    specials = BYTE_SPECIALS[template]
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer = SPLITS["smollm" if template == CHATML else "llama-bpe"][0]
    raw.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(vocab_size=500, special_tokens=list(specials), show_progress=False,
                            initial_alphabet=alphabet),
    )  # fmt: skip
    if template == LLAMA3:
        raw.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{specials[0]} $A", special_tokens=[(specials[0], 0)]
        )
    raw.save(str(folder / "tokenizer.json"))
    told = {"bos_token": specials[0], "eos_token": specials[-1], "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(told | config))
    return folder
