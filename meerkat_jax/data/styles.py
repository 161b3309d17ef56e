"""Prompt styles: how a conversation is written down for a language model, as plain text.

A style is the text around what is said. In it stand

    {begin} {end}               the tokenizer's begin token (if it has one) and end token
    {image} {audio}             an image's or a sound's features between their two markers
    {system} {instruction} {response}   what somebody says
    ▁                           the space that sentencepiece puts before a text; nothing for others
    <|...|>                     a special token of that name

and between special tokens, markers included, the text is tokenised in one stretch, what is said
with all that stands around it. Without image and audio that gives the ids of the published chat
template; the markers stand where they cut no word, so that without them the ids are the same
(for what begins with neither a space nor a line break).

Sources: `llama2` the chat template of Llama-2-chat (Touvron et al. 2023; its tokenizer_config.json
on the hub); `chatml` that of SmolLM2-Instruct (Allal et al. 2025); `llama3` that of Llama 3 (Dubey
et al. 2024); `release` the order of the authors' code, modeling.py; `alpaca` that order with the
text that its preprocess_data_supervised.py gives every question, which is Stanford Alpaca's (Taori
et al. 2023). The release's own answers have no end token; ours do, or they would never end.
"""

from __future__ import annotations

from typing import NamedTuple


class Style(NamedTuple):
    """The text around a conversation.

    user: around a question, up to where the answer begins; answer: around an answer, up to its end
    token; after: what follows that; first: before all; system: around a system message, before the
    first question, or inner: within it, before the instruction; strips: whether what is said loses
    the white space around it.
    """

    user: str
    answer: str
    after: str = ""
    first: str = ""
    system: str = ""
    inner: str = ""
    strips: bool = False


ALPACA = (
    "▁Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)
STYLES = {
    "llama2": Style(
        user="{begin}▁[INST]{image}{audio} {instruction} [/INST]",
        answer=" {response} {end}",
        inner="<<SYS>>\n{system}\n<</SYS>>\n\n",
        strips=True,
    ),
    "release": Style(
        user="{begin}{audio}{image}▁{instruction}",
        answer=" {response}{end}",
    ),
    "alpaca": Style(
        user="{begin}{audio}{image}" + ALPACA,
        answer="\n {response} \n\n{end}",
    ),
    "llama3": Style(
        first="{begin}",
        system="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{image}{audio}{instruction}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        answer="{response}{end}",
        strips=True,
    ),
    "chatml": Style(
        system="<|im_start|>system\n{system}<|im_end|>\n",
        user="<|im_start|>user\n{image}{audio}{instruction}<|im_end|>\n<|im_start|>assistant\n",
        answer="{response}{end}",
        after="\n",
    ),
}
