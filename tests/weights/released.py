"""The authors' model at a small size: torch modules under its names, saved as by its trainer."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import torch
import transformers

from meerkat_jax.weights.read_release import ADDED
from tests.weights.published import randomised

PIECES, WIDTH, HEADS = 61, 32, 4
# Our ids of the markers (image, audio) and theirs (video, audio): begin, end.
OURS = {"image": (PIECES, PIECES + 1), "audio": (PIECES + 2, PIECES + 3)}
THEIRS = {"image": (PIECES + 4, PIECES + 5), "audio": (PIECES + 2, PIECES + 3)}
TEXT = torch.tensor([[1, 5, 17, 40, 9], [1, 60, 3, 3, 8]])


def attention(width, heads):
    return torch.nn.MultiheadAttention(width, heads, add_bias_kv=True, add_zero_attn=True)


def linear_and_conv(width, out, window):
    return torch.nn.Linear(width, out), torch.nn.Conv1d(width, width, *window)


class Release(torch.nn.Module):
    """Modules under the release's names; those that answers depend on, and the others."""

    def __init__(self, lora: bool):
        super().__init__()
        vision = {
            "image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 40,
        }  # fmt: skip
        text = {
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 24, "vocab_size": 99, "max_position_embeddings": 8,
        }  # fmt: skip
        seen = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
        heard = transformers.ClapAudioConfig(
            spec_size=64, num_mel_bins=16, patch_embeds_hidden_size=8, hidden_size=16,
            depths=[1, 1], num_attention_heads=[1, 2], enable_fusion=False,
        )  # fmt: skip
        spoken = transformers.LlamaConfig(
            vocab_size=PIECES + len(ADDED), hidden_size=WIDTH, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=48, rms_norm_eps=1e-5,
        )  # fmt: skip
        self.image_encoder = transformers.CLIPModel(seen)
        self.video_encoder = transformers.CLIPModel(seen)
        self.audio_encoder = transformers.ClapAudioModel(heard)
        self.llm = transformers.LlamaForCausalLM(spoken)
        self.decoder = [self.llm]  # in a list, so that it is no second module
        for i, layer in enumerate(self.llm.model.layers):  # their Llama saves its turns
            layer.self_attn.rotary_emb = torch.nn.Module()
            layer.self_attn.rotary_emb.register_buffer("inv_freq", torch.ones(4) * i)
        if lora:
            names = ["q_proj", "k_proj", "v_proj", "o_proj"]
            config = peft.LoraConfig(
                r=3, lora_alpha=32, lora_dropout=0.1, target_modules=names, task_type="CAUSAL_LM"
            )
            self.llm = peft.get_peft_model(self.llm, config)

        self.transform_video_to_hidden, self.project_video = linear_and_conv(20, WIDTH, (6, 2))
        self.transform_image_to_hidden, self.project_image = linear_and_conv(20, WIDTH, (4, 3))
        self.transform_audio_to_hidden, self.project_audio = linear_and_conv(16, WIDTH, (12, 9))
        for name in ("video", "audio", "image"):
            setattr(self, f"{name}_align_attention", attention(WIDTH, HEADS))
        for name in ("temporal_self", "video_long_self", "video_audio_cross"):
            setattr(self, f"{name}_attention", attention(20, 2))
        self.temporal_position_embeddings = torch.nn.Embedding(1, 20)
        self.layer_norm = torch.nn.LayerNorm(20)
        self.logit_scale = torch.nn.Parameter(torch.ones([]))
        self.sizes = {
            "model_type": "mm_llms", "n_frames": 1, "attention_heads": HEADS // 2,
            "image_conv_kernel": 4, "image_conv_stride": 3, "video_conv_kernel": 6,
            "video_conv_stride": 2, "audio_conv_kernel": 12, "audio_conv_stride": 9,
            "hidden_size": WIDTH, "image_config": seen.to_dict(), "audio_config": heard.to_dict(),
            "llm_config": spoken.to_dict(),
        }  # fmt: skip
        randomised(self)

    def forward(self, pixels, mel, ids):
        """Connected tokens, and logits of all places of <s>, sound, image, text."""
        vision = self.video_encoder
        patches = vision.vision_model(pixels).last_hidden_state[:, 1:]
        tokens = {"video": vision.visual_projection(patches)}
        tokens["audio"] = self.audio_encoder(mel).last_hidden_state.flatten(2).mT
        connected = {name: self.connect(name, tokens[name]) for name in tokens}
        words = self.decoder[0].get_input_embeddings()(ids)
        row = torch.cat(
            [words[:, :1], *self.between("audio", connected["audio"]),
             *self.between("image", connected["video"]), words[:, 1:]], dim=1,
        )  # fmt: skip
        return connected, self.llm(inputs_embeds=row).logits

    def connect(self, name, tokens):
        fewer = getattr(self, f"project_{name}")(tokens.mT).mT
        queries = getattr(self, f"transform_{name}_to_hidden")(fewer).swapaxes(0, 1)
        table = self.decoder[0].get_input_embeddings().weight
        words = table[:, None].expand(-1, len(tokens), -1)
        return getattr(self, f"{name}_align_attention")(queries, words, words)[0].swapaxes(0, 1)

    def between(self, name, tokens):
        first, last = self.decoder[0].get_input_embeddings()(torch.tensor(THEIRS[name]))
        return [x.expand(len(tokens), -1, -1) if x.dim() == 3 else x.expand(len(tokens), 1, -1)
                for x in (first, tokens, last)]  # fmt: skip


def save(folder: Path, state: dict, config: dict) -> Path:
    """As their trainer does: two shards of a torch file, their index and config.json."""
    folder.mkdir(exist_ok=True)
    names = list(state)
    placed = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{i:05}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / file)
        placed |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": placed}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config, default=str))
    return folder
