"""What a published model's small files say of its tokens, and in which form it was taught to talk.

Source: the files that transformers' `save_pretrained` writes (tokenizer_config.json,
special_tokens_map.json, added_tokens.json, chat_template.jinja, generation_config.json,
config.json), of which each may be missing; params.json is Meta's own.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.tokenizer import ROLES_FILE, Roles

SIGNS = {  # what a chat template of each style holds
    "llama2": ("[INST]", "<<SYS>>"),
    "llama3": ("<|start_header_id|>", "<|eot_id|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "alpaca": ("### Instruction:", "### Response:"),
}
ENDS = {"llama3": "<|eot_id|>", "chatml": "<|im_end|>"}  # of an answer; elsewhere of a text too
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """What is known of a vocabulary beside its pieces.

    begins: whether a text begins with the begin token; end: the end token, or its id; pad: the
    padding token, if it has no other part; template: the chat template; style: where there is none;
    markers: the names of our markers in an export of ours; added: tokens behind the vocabulary, by
    id;
    special: names of special tokens; rows: of the model's token table; metas: whether it lies in
    Meta's own layout, which does not tell the models that chat from the others.
    """

    begins: bool = True
    end: str | int | None = None
    pad: str | None = None
    template: str | None = None
    style: str | None = None
    markers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    added: Mapping[int, str] = dataclasses.field(default_factory=dict)
    special: frozenset[str] = frozenset()
    rows: int | None = None
    metas: bool = False

    def filled(self, **known: Any) -> TokenizerConfig:
        """With `known` for what is None so far."""
        new = {name: value for name, value in known.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **new)


def beside(folder: Path) -> TokenizerConfig:
    """What the files in `folder` tell; UserError for one that cannot be read."""
    tokens = {
        **_json(folder / "special_tokens_map.json"),
        **_json(folder / "tokenizer_config.json"),
    }
    model, says = _json(folder / "config.json"), _json(folder / "generation_config.json")
    more = tokens.get("additional_special_tokens") or []
    special = [_name(tokens.get(key)) for key in NAMED] + [_name(token) for token in more]
    ends = says.get("eos_token_id", model.get("eos_token_id"))
    listed = {i: _name(token) for i, token in tokens.get("added_tokens_decoder", {}).items()}
    listed |= {i: name for name, i in _json(folder / "added_tokens.json").items()}
    pad = _name(tokens.get("pad_token"))
    others = {_name(tokens.get(name)) for name in NAMED if name != "pad_token"}
    return TokenizerConfig(
        pad=None if pad in others else pad,
        markers=_json(folder / ROLES_FILE).get("markers", {}),
        begins=tokens.get("add_bos_token", True) is not False,
        end=_name(tokens.get("eos_token")) or (ends[0] if isinstance(ends, list) else ends),
        template=_template(folder, tokens),
        added={int(i): name for i, name in listed.items()},
        special=frozenset(name for name in special if name),
        rows=model.get("vocab_size"),
        metas=(folder / "params.json").is_file(),
    )


def roles_of(raw: tokenizers.Tokenizer, told: TokenizerConfig, rows: int, pad: str) -> Roles:
    """The roles of the tokens of `raw`; UserError if no token ends an answer."""
    style = _style(told.template) or told.style
    end = raw.id_to_token(told.end) if isinstance(told.end, int) else told.end
    if ENDS.get(style) and raw.token_to_id(ENDS[style]) is not None:
        end = ENDS[style]
    if end is None or raw.token_to_id(end) is None:
        raise UserError(
            f"no token ends an answer (it is {end!r}); expected eos_token in tokenizer_config.json"
        )
    begins = raw.encode("", add_special_tokens=True).tokens[:1] if told.begins else []
    begin = begins[0] if begins and begins[0] != end else None
    return Roles(begin, end, pad, rows, style, _system(told.template))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); download it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, expected an object")
    return found


def _name(token: Any) -> str | None:
    """A token as the files write it: its text, or an object with its text as content."""
    return token["content"] if isinstance(token, dict) else token


def _template(folder: Path, tokens: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = tokens.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = {one["name"]: one["template"] for one in found}.get("default")
    return found


def _style(template: str | None) -> str | None:
    """The style whose signs a chat template holds, None for another one."""
    holds = [name for name, signs in SIGNS.items() if all(s in (template or "") for s in signs)]
    return holds[0] if holds else None


def _system(template: str | None) -> str:
    """The system message that a chat template puts where nobody gives one."""
    text = (template or "").replace("\\n", "\n")
    if found := re.search(r"<\|im_start\|>system\n([^<>{}']+)<\|im_end\|>", text):
        return found[1]
    # Llama 3.1 and later begin with dates; the second is of the template, not of today.
    known = re.search(r"Cutting Knowledge Date: ([\w ]+)", text)
    today = re.search(r"""date_string = ["']([\w ]+)["']""", text)
    if known and today:
        return f"Cutting Knowledge Date: {known[1]}\nToday Date: {today[1]}\n\n"
    return ""
