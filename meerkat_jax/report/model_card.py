"""The model card of an export: README.md as the hub shows it, made of what is known.

What it is, what it was made from, and under whose licence; tasks, data, steps and scores; how to
load it. Where a licence is not known, the card says what its reader must fill in. Its front matter
is `huggingface_hub.ModelCardData`; the text is put together here and not by that library's Jinja
template, since most sections depend on what is known of the run.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from meerkat_jax.data.example import TASKS
from meerkat_jax.evaluation.benchmark import main_metric
from meerkat_jax.models.llama import Llama
from meerkat_jax.report.tables import METRICS, TASK_NAMES, by_split, number, split_words
from meerkat_jax.weights.adapters import ADDED, model_name
from meerkat_jax.weights.export import About
from meerkat_jax.weights.modules import CONFIG, LLAMA, WEIGHTS

FILE = "README.md"
# A part of a published model's name -> the hub's name of its licence, and the notice it asks for.
LICENCES: dict[str, tuple[str, str]] = {
    "llama-2": (
        "llama2",
        "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, "
        "Inc. All Rights Reserved.",
    ),
    **{
        f"llama-{version}": (
            f"llama{version}",
            f"Built with Llama. Llama {version} is licensed under the Llama {version} Community "
            "License, Copyright © Meta Platforms, Inc. All Rights Reserved.",
        )
        for version in ("3.1", "3.2", "3.3")
    },
    "llama-3": (
        "llama3",
        "Built with Meta Llama 3. Meta Llama 3 is licensed under the Meta Llama 3 Community "
        "License, Copyright © Meta Platforms, Inc. All Rights Reserved.",
    ),
    "tinyllama": ("apache-2.0", "TinyLlama is licensed under the Apache License 2.0."),
    "smollm": ("apache-2.0", "SmolLM is licensed under the Apache License 2.0."),
}
UNKNOWN = (
    "FILL IN before you publish this: the licences of the models named above, and the notices that "
    "they ask for."
)
LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def write_card(
    folder: Path, kind: str, model: Llama, kept: Mapping[str, Sequence[int]], about: About
) -> None:
    """Write README.md into `folder`, and copies of the licences that lie beside the base.

    kind: "peft" or "hf"; model: the decoder; kept: shapes of what meerkat_modules.safetensors has.
    """
    licences = _copied(folder, about)
    sections = [
        _front(kind, about),
        _what(kind, about),
        _origin(about, licences),
        _training(model, about),
        _scores(about.benchmark),
        _loading(kind, model, kept, about),
    ]
    (folder / FILE).write_text("\n\n".join(filter(None, sections)) + "\n")


def licence(base: str) -> tuple[str, str] | None:
    """(the hub's name of a base's licence, its notice), None where it is not known."""
    name = model_name(base).lower().replace("_", "-")
    name = name.replace("llama2", "llama-2").replace("llama3", "llama-3")
    return next((found for part, found in LICENCES.items() if part in name), None)


def _copied(folder: Path, about: About) -> list[str]:
    """Copy the licence files of the base's folder; their names."""
    if about.source is None or not about.source.is_dir():
        return []
    files = [file for part in LEGAL for file in sorted(about.source.glob(part)) if file.is_file()]
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return [file.name for file in files]


def _front(kind: str, about: About) -> str:
    """The block by which the hub sorts models."""
    known = licence(about.base)
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", about.base) and not Path(about.base).exists()
    data = ModelCardData(
        library_name="peft" if kind == "peft" else "transformers",
        base_model=about.base if on_hub else None,
        license=known[0] if known else "other",
        pipeline_tag="text-generation",
        language="en",
        tags=["meerkat_jax", "audio-visual", "grounding"] + ["lora"] * (kind == "peft"),
    )
    return f"---\n{data.to_yaml()}\n---"


def _what(kind: str, about: About) -> str:
    model = f"`{about.base}`" if about.base else "a language model trained from scratch"
    what = {
        "peft": f"This folder holds a LoRA adapter of {model}, and the modules that let it see and "
        "hear.",
        "hf": f"This folder holds {model} with its training merged in, and the modules that let it "
        "see and hear.",
    }[kind]
    return (
        f"# Meerkat, {about.config.get('name', 'unnamed')}\n\n{what} Together they answer "
        "questions about an image and a sound, with boxes in the one and seconds in the other "
        "(Chowdhury et al., *Meerkat: Audio-Visual Large Language Model for Grounding in Space and "
        "Time*, ECCV 2024, arXiv 2407.01851). Made with meerkat_jax.\n\n"
        "In PyTorch the language model reads and writes text; to see and hear, it takes "
        "meerkat_jax."
    )


def _origin(about: About, licences: Sequence[str]) -> str:
    """What it was made from, and the notices that go with it."""
    lines = ["## Made from", ""]
    for name, part in about.parts.items():
        at = about.base if name == "llama" else part.get("source", {}).get("path", "")
        what = "language model" if name == "llama" else name.replace("_", " ")
        lines.append(f"- {what}: `{model_name(at)}`")
    if about.hash:
        lines.append(f"- hash of the converted weights: `{about.hash}`")
    if not about.parts:
        lines.append("Nothing: all weights were trained from scratch.")
    lines += ["", "## Licence", ""]
    known = licence(about.base)
    others = [name for name in about.parts if name != "llama"]
    lines += [known[1]] if known else []
    if others or (about.base and not known):
        lines.append(UNKNOWN)
    if not about.parts:
        lines.append("FILL IN before you publish this: your licence.")
    if licences:
        lines += ["", f"Licence files of the base: {', '.join(licences)}."]
    return "\n".join(lines)


def _training(model: Llama, about: About) -> str:
    lora = model.lora
    adapted = "no LoRA"
    if lora:
        adapted = f"LoRA: rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}"
    weights = about.config.get("data", {}).get("task_weights", {})
    tasks = [task for task in TASKS if weights.get(task, 1.0) > 0]
    return "\n".join(
        [
            "## Training",
            "",
            f"- steps: {about.step if about.step is not None else 'unknown'}",
            f"- data: {about.data or about.config.get('data', {}).get('kind', 'unknown')}",
            f"- {adapted}",
            f"- tasks: {'; '.join(f'{task} ({TASK_NAMES[task]})' for task in tasks)}",
        ]
    )


def _scores(benchmark: Mapping[str, Any]) -> str:
    """The main score of each task; "" when there are none."""
    lines = []
    for split, entries in by_split(benchmark).items():
        lines += ["", f"{split_words(split)[0]}:", "", "| task | score | n |", "|---|---|---|"]
        for task, entry in entries.items():
            metric = main_metric(entry) or ""
            told = f"{METRICS.get(metric, metric)}: {number(entry.get(metric))}"
            lines.append(f"| {TASK_NAMES.get(task, task)} | {told} | {entry.get('n', '')} |")
    return "\n".join(["## Scores", *lines]) if lines else ""


def _loading(kind: str, model: Llama, kept: Mapping[str, Sequence[int]], about: About) -> str:
    """Code that loads it."""
    where = f'"{about.base}"'
    if about.base.endswith(".gguf"):
        file = Path(about.base)
        where = f'"{file.parent}", gguf_file="{file.name}"'
    code = [_HF] if kind == "hf" else [_PEFT.format(base=where)]
    if kind == "peft" and LLAMA + ADDED in kept:
        code.append(_ROWS.format(file=WEIGHTS, path=LLAMA + ADDED, pieces=model.pretrained))
    roots = ", ".join(dict.fromkeys(path.split("/")[0] for path in kept))
    return "\n".join(
        [
            "## Loading",
            "",
            "The language model, with transformers" + (" and peft:" if kind == "peft" else ":"),
            "",
            "```python",
            *code,
            "```",
            "",
            f"`{WEIGHTS}` has arrays under the paths of meerkat_jax ({len(kept)}, of {roots}), "
            f"`{CONFIG}` the settings from which it builds the model:",
            "",
            "```python",
            _MODULES,
            "```",
        ]
    )


_HF = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this one
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)"""

_PEFT = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this one
base = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, folder)
tokenizer = AutoTokenizer.from_pretrained(folder)"""

_ROWS = """\

# The tokens that frame images and audio clips, which the base does not have:
from safetensors.torch import load_file

rows = load_file(f"{{folder}}/{file}")["{path}"]
model.resize_token_embeddings({pieces} + len(rows))
model.get_input_embeddings().weight.data[{pieces}:] = rows"""

_MODULES = """\
from meerkat_jax.weights.modules import read_modules

config, params = read_modules(".")  # params["image_connector/outer/kernel"] ..."""
