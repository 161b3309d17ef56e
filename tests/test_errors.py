"""Config fields that do not fit what they are given to, and what a command does not import."""

import dataclasses
import subprocess
import sys

import flax.linen as nn
import pytest

from meerkat_jax.core.errors import UserError, construct


@dataclasses.dataclass
class Plain:
    width: int
    depth: int = 2


class Module(nn.Module):
    width: int
    depth: int = 2


@pytest.mark.parametrize("kind", [Plain, Module])
def test_fields_reach_the_object(kind):
    made = construct(kind, {"width": 3}, "model.image")
    assert (made.width, made.depth) == (3, 2)


@pytest.mark.parametrize("kind", [Plain, Module])
@pytest.mark.parametrize("key, near", [("widht", "width"), ("deep", "depth"), ("parent", "")])
def test_an_unknown_field_is_named_with_the_nearest(kind, key, near):
    with pytest.raises(UserError, match=rf"model\.image\.{key} is unknown.*model\.image\.{near}"):
        construct(kind, {"width": 3, key: 1}, "model.image")


def test_a_missing_field_is_named():
    with pytest.raises(UserError, match="model.image.width is missing"):
        construct(Plain, {"depth": 3}, "model.image")


def test_a_door_opens_without_what_only_some_runs_need():
    """Seconds of every command: torch, which TensorBoard's writer takes along, and OTT-JAX."""
    check = "import sys, meerkat_jax.train; print({'torch', 'ott'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
