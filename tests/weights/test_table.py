"""Tables lead every number there and back, and one error names all that does not fit."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights.table import (
    CONV,
    LINEAR,
    LISTED,
    SAME,
    Change,
    Row,
    assembled,
    dense,
    norm,
    plan,
    published,
)

ROWS = (
    Row("embed.weight", "embedding"),
    *dense("layers.{i}.mlp.fc", "layers/fc"),
    *norm("stages.{s}.blocks.{b}.norm", "stage_{s}/block_{b}/norm"),
    Row("conv.weight", "conv/kernel", CONV),
    Row("logit", "logit"),
    Row("layers.{i}.index", None),
    Row("text.*", None),
)
DEPTH, STAGES = 3, ((0, 0), (0, 1), (1, 0))
TARGET = {
    "embedding": (5, 3),
    "layers/fc/kernel": (DEPTH, 3, 4),
    "layers/fc/bias": (DEPTH, 4),
    **{
        f"stage_{s}/block_{b}/norm/{leaf}": (2 + s,)
        for s, b in STAGES
        for leaf in ("scale", "bias")
    },
    "conv/kernel": (2, 5, 3, 4),
    "logit": (),
}
KEPT = {
    "embed.weight": (5, 3),
    **{f"layers.{i}.mlp.fc.weight": (4, 3) for i in range(DEPTH)},
    **{f"layers.{i}.mlp.fc.bias": (4,) for i in range(DEPTH)},
    **{f"stages.{s}.blocks.{b}.norm.{x}": (2 + s,) for s, b in STAGES for x in ("weight", "bias")},
    "conv.weight": (4, 3, 2, 5),
    "logit": (),
}
SOURCE = KEPT | {"layers.1.index": (7,), "text.layers.0.weight": (9, 9), "text.": (1,)}
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def refusal(rows, source, target=TARGET) -> str:
    with pytest.raises(UserError) as error:
        plan(rows, source, target, "some/folder")
    assert str(error.value).startswith("some/folder ") and "\n" not in str(error.value)
    return str(error.value)


def named(text: str, names) -> set[str]:
    """Those of `names` that a text holds, as whole words."""
    return {name for name in names if re.search(rf"(?<![\w./]){re.escape(name)}(?![\w.])", text)}


def random_tensors(shapes, dtype, seed) -> dict[str, np.ndarray]:
    """Any bits at all, NaNs and infinities among them."""
    rng, size = np.random.default_rng(seed), np.dtype(dtype).itemsize

    def tensor(shape):
        flat = rng.integers(0, 256, int(np.prod(shape)) * size, np.uint8)
        return flat.view(dtype).reshape(shape)

    return {name: tensor(shape) for name, shape in shapes.items()}


def assert_same_bits(got, expected) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
        assert got[name].tobytes() == value.tobytes(), name


# ---- what fits ----


def test_every_tensor_has_its_place():
    pieces = {piece.source: piece for piece in plan(ROWS, SOURCE, TARGET, "x")}
    assert list(pieces) == list(KEPT)
    last = pieces["layers.2.mlp.fc.weight"]
    assert (last.target, last.index, last.change) == ("layers/fc/kernel", 2, LINEAR)
    block = pieces["stages.0.blocks.1.norm.bias"]
    assert (block.target, block.index, block.change) == ("stage_0/block_1/norm/bias", None, SAME)


@given(st.permutations(sorted(SOURCE)))
def test_pieces_come_in_the_order_of_the_source(names):
    pieces = plan(ROWS, {name: SOURCE[name] for name in names}, TARGET, "x")
    assert [piece.source for piece in pieces] == [name for name in names if name in KEPT]


@given(st.sampled_from(DTYPES), st.integers(0, 2**32), st.permutations(sorted(SOURCE)))
def test_there_and_back_is_the_same_bits(dtype, seed, order):
    tensors = random_tensors(KEPT, dtype, seed)
    pieces = plan(ROWS, {name: SOURCE[name] for name in order}, TARGET, "x")
    leaves = assembled(pieces, tensors.__getitem__)
    assert {path: leaf.shape for path, leaf in leaves.items()} == TARGET
    np.testing.assert_array_equal(  # bits as numbers: NaN is not itself
        leaves["layers/fc/kernel"][1].view(np.uint8),
        np.ascontiguousarray(tensors["layers.1.mlp.fc.weight"].T).view(np.uint8),
    )
    assert_same_bits(published(ROWS, leaves), tensors)


@given(st.sampled_from(DTYPES), st.integers(0, 2**32))
def test_back_and_there_is_the_same_bits(dtype, seed):
    leaves = random_tensors(TARGET, dtype, seed)
    tensors = published(ROWS, leaves)
    pieces = plan(ROWS, {name: value.shape for name, value in tensors.items()}, TARGET, "x")
    assert_same_bits(assembled(pieces, tensors.__getitem__), leaves)


# ---- what does not ----


def dropped(source, name):
    del source[name]
    return {name}


def renamed(source, name):
    source[name + "s"] = source.pop(name)
    return {name, name + "s"}


def doubled(source, name):
    """Once more, under a number that is written otherwise or with another ending."""
    copy = re.sub(r"\.(\d)\.", r".0\1.", name, count=1) if "." in name else f"{name}.copy"
    copy = copy if copy != name else f"{name}.copy"
    source[copy] = source[name]
    return {copy}


def misshaped(source, name):
    source[name] = (*source[name][:-1], source[name][-1] + 1) if source[name] else (2,)
    return {name}


def turned(source, name):
    """With an axis of one number in front."""
    source[name] = (1, *source[name])
    return {name}


FAULTS = (dropped, renamed, doubled, misshaped, turned)


@given(st.dictionaries(st.sampled_from(sorted(KEPT)), st.sampled_from(FAULTS), min_size=1))
def test_all_faults_are_named_in_one_error_and_nothing_else(faults):
    source = dict(SOURCE)
    wrong = set().union(*(fault(source, name) for name, fault in faults.items()))
    text = refusal(ROWS, source)
    found = named(text, {*SOURCE, *source})
    assert found <= wrong and (found == wrong or " more" in text)


@given(st.text("abc_.019", min_size=1, max_size=12), st.integers(0, 3))
def test_an_extra_tensor_is_named(name, axes):
    name = f"layers.{name}"
    if name in SOURCE or re.fullmatch(r"layers\.[0-9]+\.index", name):
        return
    text = refusal(ROWS, SOURCE | {name: (2,) * axes})
    assert f"unknown: {name} {[2] * axes}" in text


def test_another_layer_is_named_whether_it_is_too_many_or_missing():
    further = {f"layers.{DEPTH}.mlp.fc.bias": (4,)}
    assert "unknown: layers.3.mlp.fc.bias [4]" in refusal(ROWS, SOURCE | further)
    source = {name: shape for name, shape in SOURCE.items() if name != "layers.1.mlp.fc.bias"}
    assert "missing: layers.1.mlp.fc.bias (for layers/fc/bias)" in refusal(ROWS, source)


def test_a_renamed_tensor_is_brought_together_with_what_is_missing():
    source = dict(SOURCE)
    source["vision.conv.weight"] = source.pop("conv.weight")
    text = refusal(ROWS, source)
    assert "unknown: vision.conv.weight [4, 3, 2, 5] (is it conv.weight?)" in text


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        (
            "conv.weight",
            (4, 3, 2, 6),
            "[4, 3, 2, 6], as [2, 6, 3, 4] (conv/kernel takes [2, 5, 3, 4])",
        ),
        ("conv.weight", (4, 3), "conv.weight [4, 3] (conv/kernel takes [2, 5, 3, 4])"),
        ("layers.1.mlp.fc.bias", (5,), "layers.1.mlp.fc.bias [5] (layers/fc/bias takes [4])"),
    ],
)
def test_a_shape_is_told_as_found_and_as_expected(name, shape, said):
    assert said in refusal(ROWS, SOURCE | {name: shape})


def test_a_long_list_ends_with_a_count():
    text = refusal(ROWS, SOURCE | {f"x.{i}": (1,) for i in range(LISTED + 5)} | {"logit": (3,)})
    assert text.count("x.") == LISTED and "and 5 more; of another shape: logit" in text


def test_large_shapes_take_no_memory():
    huge = {"w": (1 << 20, 1 << 20)}
    change = Change(lambda x: x.T.reshape(2, -1)[:, 1:], lambda x: x)
    target = {"leaf": (2, (1 << 39) - 1)}
    assert len(plan([Row("w", "leaf", change)], huge, target, "x")) == 1


# ---- tables that are wrong themselves ----


def test_a_tensor_that_two_rows_claim_is_named():
    twice = (*ROWS, Row("logit", "other"))
    assert named(refusal(twice, SOURCE, TARGET | {"other": ()}), SOURCE) == {"logit"}
    assert named(refusal((*ROWS, Row("em*", None)), SOURCE), SOURCE) == {"embed.weight"}


def test_a_leaf_without_a_row_or_with_two_is_named():
    text = refusal(ROWS, SOURCE, TARGET | {"lora_a": (2,)})
    assert text.endswith("in the table: lora_a")
    assert "in the table: logit" in refusal((*ROWS, Row("other", "logit")), SOURCE)
    with pytest.raises(UserError, match="published.*: lora_a$"):
        published(ROWS, {"lora_a": np.zeros(2), "logit": np.zeros(())})
