"""The names in a caption are given to sight and hearing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.evaluation.captions import Named, caption_samples, read_caption
from meerkat_jax.mini.templates import evidence

NAMES = ["dog", "owl", "sea lion", "lion", "bee", "saw"]


@pytest.mark.parametrize(
    ("text", "image_labels", "audio_labels"),
    [
        ("I see a dog and a sea lion. I hear a dog.", {"dog", "sea lion"}, {"dog"}),
        ("I see nothing. I hear nothing.", set(), set()),
        ("I hear a bee, a dog and an owl; I see a lion", {"lion"}, {"bee", "dog", "owl"}),
        ("A dog is seen while an owl is heard.", {"dog"}, {"owl"}),
        ("In the picture, a dog is seen; a bee can be heard.", {"dog"}, {"bee"}),
        ("The picture shows a dog, and the sound is that of a bee.", {"dog"}, {"bee"}),
        ("A dog. An owl.", {"dog", "owl"}, set()),
        ("I see: a dog. A saw.", {"dog", "saw"}, set()),
        ("", set(), set()),
    ],
)
def test_read_caption(text, seen, heard):
    assert read_caption(text, NAMES) == Named(frozenset(seen), frozenset(heard))


@given(st.sets(st.sampled_from(NAMES), max_size=3), st.sets(st.sampled_from(NAMES)))
def test_our_own_captions_are_read_back(seen, heard):
    text = evidence([("on the left", name) for name in seen], sorted(heard)) + "."
    assert read_caption(text, NAMES) == Named(frozenset(seen), frozenset(heard))


@given(st.text(max_size=100))
def test_any_text_is_read(text):
    named = read_caption(text, NAMES)
    assert (named.image_labels | named.audio_labels) <= set(NAMES)


def test_shares_of_right_captions():
    right = Named(frozenset({"dog"}), frozenset({"owl"}))
    unseen = Named(frozenset(), frozenset({"owl"}))
    more = Named(frozenset({"dog"}), frozenset({"owl", "bee"}))
    found = caption_samples([right, unseen, more, right], [right] * 4)
    shares = {name: sum(each) / 4 for name, each in found.items()}
    assert shares == {"names_right": 0.5, "seen_right": 0.75, "heard_right": 0.75}
