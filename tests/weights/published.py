"""Small checkpoints in the hub's own layout, made here with random weights: CLIP, CLAP, Llama."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter and statistic random, so that none can be left out unseen."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point():
                center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                value.copy_(center + 0.1 * torch.randn_like(value))
    return model.eval()


def clip(folder: Path, dtype: torch.dtype = torch.float32) -> transformers.CLIPModel:
    """A whole CLIPModel: text tower, projections and temperature are there to be dropped."""
    vision = {
        "image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 40,
    }  # fmt: skip
    text = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 24, "vocab_size": 99, "max_position_embeddings": 8,
    }  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    model = randomised(transformers.CLIPModel(config)).to(dtype)
    model.save_pretrained(folder)
    return model


def clap(folder: Path, fused: bool = True) -> transformers.ClapModel:
    """A whole ClapModel."""
    audio = {
        "patch_embeds_hidden_size": 16, "hidden_size": 128, "depths": [1, 2, 1, 1],
        "num_attention_heads": [2, 2, 4, 4], "enable_fusion": fused, "projection_dim": 20,
    }  # fmt: skip
    text = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 24, "vocab_size": 99, "max_position_embeddings": 10,
    }  # fmt: skip
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=20)
    model = randomised(transformers.ClapModel(config))
    model.save_pretrained(folder)
    return model


def llama(
    folder: Path, dtype: torch.dtype = torch.float32, shards: str = "20KB", **changes
) -> transformers.LlamaForCausalLM:
    """A LlamaForCausalLM in several shards, with a tokenizer that speaks ChatML."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = tokenizer(folder)
    config = transformers.LlamaConfig(
        **{
            "vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
            "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
        }
        | changes
    )  # fmt: skip
    model = randomised(transformers.LlamaForCausalLM(config)).to(dtype)
    model.save_pretrained(folder, max_shard_size=shards)
    return model


def tokenizer(folder: Path) -> int:
    """A byte-level BPE in `folder`; returns its size, which is no multiple of 64."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = ["Where is the dog that barks?", "The dog is on the left.", "system user assistant"]
    raw.train_from_iterator(texts * 3, trainer)
    raw.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>",
        "chat_template": TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return raw.get_vocab_size()
