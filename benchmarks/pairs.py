"""The towers of ours and of transformers with the same weights: forward, training, generation.

torch's model is made with random weights, which go through the tables of `meerkat_jax.weights` as a
checkpoint's would. Before a pair is timed its results are compared; float32 must agree to rounding,
bfloat16 to the few digits that it has.

Letters: B batch, S sequence, N new tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from benchmarks import lora
from benchmarks.measure import Pair
from meerkat_jax.core.trees import flatten, split, unflatten
from meerkat_jax.inference.sampling import choose, decode_loop
from meerkat_jax.models.clap import CROPS, ClapAudio
from meerkat_jax.models.clip import ClipVision
from meerkat_jax.models.llama import Llama, init_cache
from meerkat_jax.weights import clap, clip, llama, table

CLIP = {  # transformers' names; "real" is openai/clip-vit-base-patch16
    "real": {"patch_size": 16},
    "tiny": {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 2, "intermediate_size": 40, "projection_dim": 20},
}  # fmt: skip
CLAP = {  # "real" is laion/clap-htsat-*
    "real": {},
    "tiny": {"patch_embeds_hidden_size": 16, "hidden_size": 128, "depths": [1, 2, 1, 1],
             "num_attention_heads": [2, 2, 4, 4]},
}  # fmt: skip
LLAMA = {  # "real" is SmolLM2-135M
    "real": {"vocab_size": 49152, "width": 576, "depth": 30, "heads": 9, "kv_heads": 3,
             "mlp_dim": 1536, "rope_theta": 1e5, "tied": True},
    "tiny": {"vocab_size": 128, "width": 48, "depth": 2, "heads": 3, "kv_heads": 1,
             "mlp_dim": 64, "rope_theta": 1e5, "tied": True},
}  # fmt: skip
FRAMES = 1001  # of ten seconds of sound
ROWS, TOKENS = 2, {"real": 256, "tiny": 24}  # of a training step
PROMPT, NEW = {"real": 64, "tiny": 8}, {"real": 64, "tiny": 8}
STEPS = 3  # of training that are compared
# Bounds of the relative error. float32: sums in another order, through a stack of layers;
# bfloat16: eight bits of mantissa, as many layers.
WITHIN = {False: 1e-4, True: 1e-1}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes "real" or "tiny", device "cpu" or "gpu", bfloat16 or float32."""

    size: str
    device: str
    narrow: bool

    @property
    def torch_device(self) -> str:
        """What torch calls the device."""
        return "cuda" if self.device == "gpu" else "cpu"

    @property
    def dtype(self) -> Any:
        """jax's dtype of weights and computation."""
        return jnp.bfloat16 if self.narrow else jnp.float32

    def module(self, model: torch.nn.Module) -> torch.nn.Module:
        """torch's model where it runs, in the dtype that it runs in."""
        return model.to(self.torch_device, torch.bfloat16 if self.narrow else torch.float32).eval()

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """A torch tensor on the device, floats in the dtype."""
        found = torch.tensor(array, device=self.torch_device)
        return found.bfloat16() if self.narrow and found.is_floating_point() else found

    def agreed(self, **found: tuple[Any, Any]) -> dict[str, float]:
        """Relative errors (in norm) of {what: (ours, theirs)}; ValueError above `WITHIN`."""
        errors = {what: relative(*two) for what, two in found.items()}
        bound = WITHIN[self.narrow]
        if wrong := [what for what, error in errors.items() if not error <= bound]:
            raise ValueError(f"{', '.join(wrong)} differ by more than {bound}: {errors}")
        return errors


def relative(ours: Any, theirs: Any) -> float:
    """Norm of the difference, in parts of theirs; NaN in either gives NaN."""
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    if ours.shape != theirs.shape:
        raise ValueError(f"ours has shape {ours.shape}, theirs {theirs.shape}")
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def copied(
    part: ModuleType, fields: Mapping, state: Mapping[str, torch.Tensor], init: Callable
) -> dict[str, np.ndarray]:
    """{path: leaf} of ours from a torch state dict, by the table of `part` (weights/clip.py ...).

    init() -> the parameter tree of ours, of which the shapes are read.
    """
    target = {path: leaf.shape for path, leaf in flatten(jax.eval_shape(init)).items()}
    rows = part.rows(fields)
    tensors = {name: value.detach().float().cpu().numpy() for name, value in state.items()}
    shapes = {name: array.shape for name, array in tensors.items()}
    return table.assembled(table.plan(rows, shapes, target, "torch's model"), tensors.get)


def tower(
    part: ModuleType,
    kind: type,
    theirs: torch.nn.Module,
    inputs: tuple,
    setting: Setting,
    before="",
) -> Callable[[], dict[str, jax.Array]]:
    """Our tower with torch's weights, compiled, as a call without arguments that waits.

    before: what stands before torch's names in the hub's whole checkpoint.
    """
    fields = part.fields(theirs.config.to_dict(), "benchmark")
    model = kind(**fields, dtype=setting.dtype)
    state = {before + name: value for name, value in theirs.state_dict().items()}
    leaves = copied(part, fields, state, lambda: model.init(jax.random.key(0), *inputs)["params"])
    params = unflatten({path: jnp.asarray(x, setting.dtype) for path, x in leaves.items()})
    inputs = [jnp.asarray(x) for x in inputs]
    run = jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs))
    return lambda: jax.block_until_ready(run(params, *inputs))


def waited(setting: Setting, call: Callable[[], Any]) -> Callable[[], Any]:
    """A torch call without gradients that returns when all is computed."""

    def run() -> Any:
        with torch.inference_mode():
            out = call()
        if setting.device == "gpu":
            torch.cuda.synchronize()
        return out

    return run


def numbers(x: torch.Tensor) -> np.ndarray:
    """A tensor as a float32 array."""
    return x.detach().float().cpu().numpy()


def image_pair(setting: Setting, batch: int = 8) -> Pair:
    """CLIP-B/16's image tower, forward."""
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(**CLIP[setting.size])
    theirs = setting.module(transformers.CLIPVisionModelWithProjection(config))
    shape = (batch, config.image_size, config.image_size, 3)
    pixels = np.random.default_rng(0).standard_normal(shape, np.float32)
    ours = tower(clip, ClipVision, theirs, (pixels,), setting)
    given = setting.tensor(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    peer = waited(setting, lambda: theirs(pixel_values=given))
    mine, gold = ours(), peer()
    agreement = setting.agreed(
        hidden=(mine["hidden"], numbers(gold.last_hidden_state)),
        embedding=(mine["embedding"], numbers(gold.image_embeds)),
    )
    return Pair(ours, peer, agreement, {"batch": batch})


def audio_pair(setting: Setting, fused: bool, batch: int = 4) -> Pair:
    """CLAP's audio tower, forward; when `fused`, every second clip is longer than the window."""
    torch.manual_seed(0)
    config = transformers.ClapAudioConfig(**CLAP[setting.size], enable_fusion=fused)
    theirs = setting.module(transformers.ClapAudioModel(config))
    views = 1 + CROPS if fused else 1
    mel = (
        np.random.default_rng(0).normal(-30.0, 15.0, (batch, views, FRAMES, 64)).astype(np.float32)
    )
    longer = np.arange(batch) % 2 == 0
    inputs = (mel, longer) if fused else (mel[:, 0],)
    ours = tower(clap, ClapAudio, theirs, inputs, setting, "audio_model.")
    given = setting.tensor(mel), setting.tensor(longer[:, None]) if fused else None
    peer = waited(setting, lambda: theirs(input_features=given[0], is_longer=given[1]))
    mine, gold = ours(), numbers(peer().last_hidden_state)
    tokens = gold.reshape(*gold.shape[:2], -1).swapaxes(1, 2)
    return Pair(ours, peer, setting.agreed(tokens=(mine["tokens"], tokens)), {"batch": batch})


def language_model(
    theirs: transformers.LlamaForCausalLM, **changes: Any
) -> tuple[Llama, dict[str, np.ndarray]]:
    """Our decoder of torch's config, and torch's weights by path."""
    fields = llama.fields(theirs.config.to_dict(), "benchmark")
    model = Llama(**llama.as_module(fields))
    ids = jnp.zeros((1, 2), jnp.int32)
    init = functools.partial(model.init, jax.random.key(0), ids, method=lora.logits)
    leaves = copied(llama, fields, theirs.state_dict(), lambda: init()["params"])
    return model.clone(**changes), leaves


def adapter(theirs: torch.nn.Module) -> dict[str, np.ndarray]:
    """LoRA's leaves by path, from peft's model."""
    state = {
        name.replace(".default", ""): numbers(value)
        for name, value in theirs.state_dict().items()
        if "lora_" in name
    }
    rows, found = llama.adapter_rows(lora.TARGETS), {}
    for row in rows:
        layers = [name for i in range(len(state)) if (name := row.source.format(i=i)) in state]
        found[row.target] = np.stack([row.change.forward(state[name]) for name in layers])
    return found


def training_pair(setting: Setting) -> Pair:
    """A LoRA step of the 135 M model against peft and torch's AdamW."""
    sizes, sequence = LLAMA[setting.size], TOKENS[setting.size]
    theirs = lora.peer_model(sizes, setting.torch_device, setting.narrow)
    changes = {"lora": lora.LORA, "dtype": setting.dtype, "remat": "weights"}  # as `small` trains
    model, leaves = language_model(theirs, **changes)
    theirs = lora.adapted(theirs)
    base = {path: jnp.asarray(leaf, setting.dtype) for path, leaf in leaves.items()}
    params = split(unflatten(base | adapter(theirs)), [lora.ADAPTED])
    ids = np.random.default_rng(0).integers(0, sizes["vocab_size"], (ROWS, sequence), np.int32)
    start, step = lora.our_step(model)
    state = start(jax.tree.map(jnp.asarray, params["trainable"]))
    ours = lora.OurTraining(step, state, params["frozen"], jnp.asarray(ids))
    peer = lora.TheirTraining(theirs, ids, setting.narrow)
    losses = np.array([[ours(), peer()] for _ in range(STEPS)])
    agreement = setting.agreed(losses=(losses[:, 0], losses[:, 1]))
    tokens = ids.size
    return Pair(
        ours,
        peer,
        agreement,
        {"batch": ROWS, "sequence": sequence, "losses": losses.tolist()},
        lambda seconds: {"tokens_per_second": tokens / seconds},
    )


def generation_pair(setting: Setting) -> Pair:
    """Greedy generation of the 135 M model, one row, against `generate` with its cache."""
    sizes, prompt, new = LLAMA[setting.size], PROMPT[setting.size], NEW[setting.size]
    theirs = lora.peer_model(sizes, setting.torch_device, setting.narrow)
    model, leaves = language_model(theirs, dtype=setting.dtype)
    params = unflatten({path: jnp.asarray(x, setting.dtype) for path, x in leaves.items()})
    ids = np.random.default_rng(0).integers(0, sizes["vocab_size"], (1, prompt), np.int32)
    run = jax.jit(functools.partial(greedy, model, new))
    tokens, given = jnp.asarray(ids), setting.tensor(ids.astype(np.int64))
    ours = lambda: jax.block_until_ready(run(params, tokens))  # noqa: E731
    mask = torch.ones_like(given)
    fixed = {"max_new_tokens": new, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    peer = waited(setting, lambda: theirs.generate(given, attention_mask=mask, **fixed))
    mine, gold = np.asarray(ours())[0], peer()[0, prompt:].cpu().numpy()
    differ = float((mine != gold).mean()) if mine.shape == gold.shape else 1.0
    if differ and not setting.narrow:  # in bfloat16 the first near tie parts the two texts
        raise ValueError(f"texts differ: ours {mine.tolist()}, theirs {gold.tolist()}")
    return Pair(
        ours,
        peer,
        {"tokens that differ": differ},
        {"prompt": prompt, "new": new},
        lambda seconds: {"tokens_per_second": new / seconds},
    )


def greedy(model: Llama, new: int, params: dict, tokens: jax.Array) -> jax.Array:
    """The likeliest continuation int32[B, N] of int32[B, S], by the library's own loop."""
    count, length = tokens.shape

    def extend(tokens, positions, valid, cache, slot, last):
        return model.apply(
            {"params": params}, tokens, positions, valid, cache, slot, last, method=_extend
        )

    rows = {
        "tokens": tokens,
        "lengths": jnp.full(count, length, jnp.int32),
        "idle": jnp.zeros(count, bool),
    }
    pick = functools.partial(choose, False, jnp.zeros(model.vocab_size, bool), 1.0, None)
    never = -1  # a token that ends the text: none does
    return decode_loop(extend, pick, init_cache(model, count, length + new), 0, rows, new, never)[0]


def _extend(model: Llama, tokens, positions, valid, cache, slot, last):
    out = model(model.embed(tokens), positions, None, valid, cache, slot)
    hidden = jnp.take_along_axis(out["hidden"], last[:, None, None], axis=1)[:, 0]
    return model.logits(hidden), out["cache"]


def cases(size: str, device: str, dtype: str) -> dict[str, Callable[[], Pair]]:
    """{case: function that makes its pair}."""
    setting = Setting(size, device, dtype == "bfloat16")
    return {
        "clip": functools.partial(image_pair, setting),
        "clap": functools.partial(audio_pair, setting, fused=False),
        "clap_fused": functools.partial(audio_pair, setting, fused=True),
        "lora": functools.partial(training_pair, setting),
        "generate": functools.partial(generation_pair, setting),
    }
