"""Batches: right shapes, and one order whatever the number of workers and wherever one begins."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import grain
import numpy as np
import pytest
from absl import flags

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import TASKS, Box, Example, Question
from meerkat_jax.data.image import load_image
from meerkat_jax.data.pipeline import Encode, fixed_batches, numbers, train_batches
from meerkat_jax.data.prompt import make_prompt
from meerkat_jax.data.shapes import Shapes
from meerkat_jax.data.split import Split, open_split, read_manifest
from meerkat_jax.mini.build import MiniConfig, build
from meerkat_jax.mini.compose import SPLITS
from meerkat_jax.mini.tokenizer import build_mini_tokenizer

COUNTS = dict.fromkeys(SPLITS, 0) | {"train": 12, "compositions": 7}
CONFIG = MiniConfig("procedural", classes=6, **COUNTS)
SHAPES = Shapes(
    image_size=32,
    sample_rate=16000,
    seconds=10.0,
    num_packs=2,
    pack_length=130,
    max_target_tokens=100,
    max_answer_tokens=80,
)
BATCH = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # Grain's worker processes read absl's flags, which the commands parse
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return build(CONFIG, tmp_path_factory.mktemp("cache"), workers=1)


@pytest.fixture(scope="module")
def tokenizer(folder):
    texts = [
        text
        for split in ("train", "compositions")
        for example in open_split(folder, split)
        for question in example.questions
        for text in (question.instruction, question.response)
    ]
    return build_mini_tokenizer(texts, read_manifest(folder)["classes"])


@pytest.fixture(scope="module")
def encode(folder, tokenizer):
    return Encode(SHAPES, make_prompt(tokenizer), tuple(read_manifest(folder)["classes"]), {})


def first(batches, count=7):
    """Some batches: more than an epoch of this small split."""
    return list(itertools.islice(batches, count))


@pytest.fixture(scope="module")
def reference(folder, encode):
    return first(train_batches(Split(folder, "train"), encode, BATCH, seed=1))


def same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(np.array_equal(x[key], y[key]) for key in x)
        for x, y in zip(a, b, strict=True)
    )


# ---- order ----


@pytest.mark.parametrize("workers", [1, 2])
def test_order_does_not_depend_on_the_number_of_workers(folder, encode, reference, workers):
    found = first(train_batches(Split(folder, "train"), encode, BATCH, seed=1, workers=workers))
    assert same(found, reference)


@pytest.mark.parametrize(("start", "workers"), [(BATCH, 0), (3 * BATCH, 1), (5 * BATCH, 0)])
def test_beginning_later_goes_on_where_an_earlier_run_ended(
    folder, encode, reference, start, workers
):
    """Also behind the end of the first epoch; questions drawn and all."""
    left = len(reference) - start // BATCH
    found = first(train_batches(Split(folder, "train"), encode, BATCH, 1, start, workers), left)
    assert same(found, reference[start // BATCH :])


def test_another_seed_gives_another_order(folder, encode, reference):
    assert not same(first(train_batches(Split(folder, "train"), encode, BATCH, seed=2)), reference)


def test_an_epoch_holds_every_scene_once_and_the_next_is_shuffled_anew(folder, encode, reference):
    images = [row.tobytes() for batch in reference[:6] for row in batch["image"]]
    epochs = images[: CONFIG.train], images[CONFIG.train :]
    assert len(set(epochs[0])) == CONFIG.train and set(epochs[0]) == set(epochs[1])
    assert epochs[0] != epochs[1]


def test_the_order_of_the_mini_data_is_the_shuffle_alone(folder):
    """Its scores have floors. Nothing is known of its pairs beforehand, and none are rearranged."""
    split = Split(folder, "train")
    assert split.strata() is None
    plain = grain.MapDataset.range(CONFIG.train).seed(3).shuffle().repeat()
    assert [numbers(split, 3)[i] for i in range(30)] == [plain[i] for i in range(30)]


def test_fixed_batches_are_the_same_each_time_and_whole(folder, encode):
    once, again = (fixed_batches(Split(folder, "compositions"), encode, 3, 9) for _ in range(2))
    assert same(once, again)
    assert [len(batch["matched"]) for batch in once] == [3, 3]  # 7 scenes: one is left over
    assert len(fixed_batches(Split(folder, "compositions"), encode, 3, 1)) == 1


# ---- what is in a batch ----


def test_shapes_and_types(reference):
    n, s = BATCH, SHAPES
    wanted = {
        "image": ((n, 32, 32, 3), np.uint8),
        "audio": ((n, 160000), np.float32),
        "tokens": ((n, s.num_packs, s.pack_length), np.int32),
        "loss_mask": ((n, s.num_packs, s.pack_length), np.float32),
        "segment_ids": ((n, s.num_packs, s.pack_length), np.int32),
        "boxes": ((n, s.max_boxes, 4), np.float32),
        "matched": ((n,), np.bool_),
        "image_labels": ((n, s.max_labels), np.int32),
        "audio_labels": ((n, s.max_labels), np.int32),
    }
    assert {key: (array.shape, array.dtype.type) for key, array in reference[0].items()} == wanted


def test_rows_belong_to_the_scene_they_stand_with(folder, encode, tokenizer, reference):
    """Image, names, boxes and questions of a row are of one example."""
    examples = {
        load_image(example.image, SHAPES.image_size).tobytes(): example
        for example in open_split(folder, "train")
    }
    for batch in reference[:3]:
        for row in range(BATCH):
            example = examples[batch["image"][row].tobytes()]
            assert batch["matched"][row] == example.matched
            for key in ("image_labels", "audio_labels"):
                named = [encode.index[name] for name in getattr(example, key)]
                assert batch[key][row].tolist() == named + [-1] * (SHAPES.max_labels - len(named))
            found = [tuple(b) for b in batch["boxes"][row].tolist() if any(b)]
            wanted = [(b.x0, b.y0, b.x1, b.y1) for b in example.boxes]
            np.testing.assert_allclose(found, wanted, rtol=1e-6) if wanted else None
            assert len(found) == len(wanted)
            answers = [question.response for question in example.questions]
            tokens, loss_mask, segment_ids = (
                batch[key][row].reshape(-1) for key in ("tokens", "loss_mask", "segment_ids")
            )
            for owner in set(segment_ids.tolist()) - {-1}:
                ids = tokens[(segment_ids == owner) & (loss_mask > 0)].tolist()
                assert ids[-1] == tokenizer.eos_id and ids.count(tokenizer.eos_id) == 1
                assert tokenizer.decode(ids[:-1]) in answers


def test_questions_are_drawn_by_weight_without_repetition(encode, folder):
    example = max(open_split(folder, "train"), key=lambda e: len(e.questions))
    kinds = {f"{q.task}/{q.truth['kind']}" for q in example.questions}
    assert {"arig/arig", "avfact2/avfact2", "avqa/count"} <= kinds
    weights = {"arig": 4.0, "avqa": 0.0, "avqa/count": 2.0, "igatl": 0.0}
    drawn = Encode(SHAPES, encode.prompt, (), weights)
    counts = collections.Counter()
    for index in range(400):
        names = [q.truth["kind"] for q in drawn.draw(example, np.random.default_rng(index))]
        assert len(set(names)) == len(names)
        counts.update(names[:3])
    assert not counts["igatl"] and not counts["exists"] and not counts["which"]
    assert counts["arig"] > counts["count"] > counts["avc"] > 0


def test_one_question_leaves_a_run_without_targets(encode, folder, tokenizer):
    example = open_split(folder, "train")[0]
    example = dataclasses.replace(example, questions=example.questions[:1])
    row = encode.random_map(example, np.random.default_rng(0))
    assert row["loss_mask"][0].any() and not row["loss_mask"][1:].any()
    assert (row["tokens"][1:] == tokenizer.pad_id).all() and (row["segment_ids"][1:] == -1).all()


def test_as_many_questions_as_fit_are_asked(encode, folder):
    """None is left out that a run still has room for."""
    for example in (open_split(folder, "train")[i] for i in range(6)):
        row = encode.random_map(example, np.random.default_rng(0))
        free = SHAPES.pack_length - (row["segment_ids"] >= 0).sum(axis=1)
        spare = SHAPES.max_target_tokens - row["loss_mask"].sum(axis=1)
        drawn = encode.draw(example, np.random.default_rng(0))
        for number in set(range(len(drawn))) - set(row["segment_ids"].reshape(-1).tolist()):
            answer = len(encode.prompt.answer_ids(drawn[number].response))
            size = len(encode.prompt.question_ids(drawn[number].instruction)) + answer
            assert not ((free >= size) & (spare >= answer)).any()


def test_weights_that_leave_no_question_are_an_error(encode, folder):
    nothing = Encode(SHAPES, encode.prompt, (), dict.fromkeys(TASKS, 0.0))
    with pytest.raises(UserError, match="mini-train-000000: no question left"):
        nothing.draw(open_split(folder, "train")[0], np.random.default_rng(0))


def test_what_a_phase_does_not_need_is_left_out(folder, encode):
    """The images, names and order are those of a batch that holds everything."""
    args = (SHAPES, encode.prompt, tuple(encode.index), {})
    (whole,) = first(train_batches(Split(folder, "train"), encode, BATCH, seed=1), 1)
    looks = Encode(*args, needs_audio=False, needs_text=False)
    (bare,) = first(train_batches(Split(folder, "train"), looks, BATCH, seed=1), 1)
    for key in ("image", "image_labels", "audio_labels", "boxes", "matched"):
        assert np.array_equal(bare[key], whole[key]), key
    assert bare["audio"].shape == (BATCH, 0)
    assert not bare["loss_mask"].any() and bare["tokens"].shape == whole["tokens"].shape
    words = Encode(*args, needs_image=False, needs_audio=False)
    (spoken,) = first(train_batches(Split(folder, "train"), words, BATCH, seed=1), 1)
    assert spoken["image"].size == spoken["audio"].size == 0
    assert np.array_equal(spoken["tokens"], whole["tokens"]) and spoken["loss_mask"].any()


def test_names_that_are_no_classes_are_left_out(encode, folder):
    example = dataclasses.replace(open_split(folder, "train")[0], image_labels=("nobody",))
    assert (encode.random_map(example, np.random.default_rng(0))["image_labels"] == -1).all()


# ---- bad input ----


def test_a_split_that_is_not_there(folder):
    with pytest.raises(UserError, match="no split 'test'; it holds compositions, train"):
        open_split(folder, "test")
    with pytest.raises(UserError, match="no records"):
        open_split(folder / "nowhere", "train")


def test_a_folder_that_is_no_data_set(tmp_path):
    with pytest.raises(UserError, match="not a built data set"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: {"boxes": (Box("dog", 0, 0, 1, 1),) * 5}, "5 of them, .* room for 4"),
        (lambda e: {"image": e.image[:50]}, "mini-train-000000"),
        (lambda e: {"audio": b"RIFF"}, "mini-train-000000"),
        (
            lambda e: {"questions": (Question("avc", "Say.", "dog " * 30),)},
            "the answer .* has .* tokens",
        ),
        (
            lambda e: {"questions": (Question("avc", "Say. " * 90, "dog"),)},
            "raise data.pack_length or data.max_target_tokens",
        ),
    ],
    ids=["boxes", "image", "sound", "answer", "length"],
)
def test_a_bad_record_is_named(encode, folder, change, message):
    example: Example = open_split(folder, "train")[0]
    broken = dataclasses.replace(example, **change(example))
    with pytest.raises(UserError, match=message):
        encode.random_map(broken, np.random.default_rng(0))
