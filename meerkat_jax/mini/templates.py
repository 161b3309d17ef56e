"""Instruction templates, several per task, and the sentences that answer them.

Train and test paraphrases are disjoint sets. A test paraphrase uses only words that some train
paraphrase uses too, because a language model made from scratch knows no others.

Answers give the evidence first, and a verdict, boxes or times last ("I see one, on the left a bee.
I hear a dog out of sight: False."). What is to be said is then read off words that are already
written. Asked for the verdict first, a small model has to compare picture and sound before it has
named either, and stays at chance; asked for boxes first, it leaves out the second of two. Of what
is seen the number comes first, then from left to right each thing's place and its name, which is
read at the place that is written by then. What is heard is told as it begins, and of each thing,
right after its name, whether it is in sight (or comes from the box that is asked about) and
whether it is heard in the time that is asked about (NOTES.md).

Source: the paper's task figure (ARIG asks for a category and a box in 0..1); its list of tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

BOX_FORM = "Give [object, x_left, y_top, x_right, y_bottom]."
TIME_FORM = "Give [object, start, end]."
FACT_FORM = "True or False?"
# Where things are, by column and row: told from left to right and from top to bottom.
PLACES = (
    ("at the top left", "on the left", "at the bottom left"),
    ("at the top", "in the middle", "at the bottom"),
    ("at the top right", "on the right", "at the bottom right"),
)
SIDES = ("left", "middle", "right")
# Of what is heard: whether it is seen; whether the box of the question holds it; and when it is
# heard, if the question names a time.
SIGHTS = ("in sight", "out of sight")
SOURCES = ("from the box", "from elsewhere")
TIMES = ("too early", "in time", "too late")


def at_place(place: str) -> str:
    """What stands before the name of a thing: ", on the left a "; one token for a mini model."""
    return f", {place} a "


# Pieces that many instructions and answers share; the mini tokenizer makes each a token, so that a
# list of things is names with one token between any two.
PHRASES = (
    *(f" {form}" for form in (BOX_FORM, TIME_FORM, FACT_FORM)),
    *(f"I see{number}" for number in ("", " one", " two", " three")),
    *("The box holds", "It is", "I hear a ", ". I hear a ", ". A ", ". The "),
    *(", a ", " and a ", ": [", " makes the sound.", " comes first."),
    *(f" {sight}" for sight in SIGHTS),
    *(f" {source} {time}" for source in (*SIGHTS, *SOURCES) for time in TIMES),
    *(at_place(place) for column in PLACES for place in column),
    *(f": {verdict}." for verdict in ("yes", "no", "True", "False", "one", "two", "three", *SIDES)),
)

# kind -> split -> paraphrases; {label}, {box}, {start} and {end} are filled in
TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "arig": {
        "train": (
            f"Point to the object that makes the sound. {BOX_FORM}",
            f"Show the object that is heard. {BOX_FORM}",
            f"Find what makes the sound in the picture. {BOX_FORM}",
            f"Find the box of the object that is heard. {BOX_FORM}",
            f"Which object in the picture makes the sound? {BOX_FORM}",
            f"Listen and point to what is heard. {BOX_FORM}",
            f"What makes this sound? {BOX_FORM}",
        ),
        "test": (
            f"Find the object that makes the sound. {BOX_FORM}",
            f"Listen and show what makes this sound. {BOX_FORM}",
            f"Point to what is heard in the picture. {BOX_FORM}",
        ),
    },
    "igatl": {
        "train": (
            f"When does the object in the picture sound? {TIME_FORM}",
            f"When is what you see heard? {TIME_FORM}",
            f"Find the time at which the object in the picture is heard. {TIME_FORM}",
            f"From when to when does what you see make a sound? {TIME_FORM}",
            f"Listen and find when the object is heard. {TIME_FORM}",
            f"At which time is it heard? {TIME_FORM}",
            f"When is the object heard? {TIME_FORM}",
            f"Find when the object in the picture makes a sound. {TIME_FORM}",
            f"From when to when is what you see heard? {TIME_FORM}",
        ),
        "test": (
            f"When is the object in the picture heard? {TIME_FORM}",
            f"Find when what you see makes a sound. {TIME_FORM}",
            f"From when to when is the object heard? {TIME_FORM}",
        ),
    },
    "avfact1": {
        "train": (
            f"The object in {{box}} makes the sound. {FACT_FORM}",
            f"What is in the box {{box}} is heard. {FACT_FORM}",
            f"Check: the box {{box}} shows what makes this sound. {FACT_FORM}",
            f"The sound is made by the object in {{box}}. {FACT_FORM}",
            f"You hear what is in {{box}}. {FACT_FORM}",
        ),
        "test": (
            f"The object in the box {{box}} is heard. {FACT_FORM}",
            f"Check: what is in {{box}} makes the sound. {FACT_FORM}",
        ),
    },
    "avfact2": {
        "train": (
            f"Something in the picture makes the sound. {FACT_FORM}",
            f"The clip holds the sound of something in the picture. {FACT_FORM}",
            f"Check: something that you see is heard. {FACT_FORM}",
            f"The picture shows something that is heard in the clip. {FACT_FORM}",
            f"You hear something that you see. {FACT_FORM}",
            f"Check: the picture shows something that is heard. {FACT_FORM}",
            f"Check: the clip holds the sound of something in the picture. {FACT_FORM}",
        ),
        "test": (
            f"Something that you see makes the sound. {FACT_FORM}",
            f"Check: the clip holds the sound of something that you see. {FACT_FORM}",
        ),
    },
    "avfact3": {
        "train": (
            f"The object in {{box}} is heard between {{start}} and {{end}}. {FACT_FORM}",
            f"Between {{start}} and {{end}} what is in {{box}} makes a sound. {FACT_FORM}",
            f"Check: the box {{box}} is heard from {{start}} to {{end}}. {FACT_FORM}",
            f"From {{start}} to {{end}} you hear what is in {{box}}. {FACT_FORM}",
            f"Between {{start}} and {{end}} the object in {{box}} makes the sound. {FACT_FORM}",
        ),
        "test": (
            f"From {{start}} to {{end}} the object in {{box}} makes a sound. {FACT_FORM}",
            f"Check: what is in {{box}} is heard between {{start}} and {{end}}. {FACT_FORM}",
        ),
    },
    "avfact4": {
        "train": (
            f"Something in the picture is heard between {{start}} and {{end}}. {FACT_FORM}",
            f"Between {{start}} and {{end}} something that you see makes a sound. {FACT_FORM}",
            f"Check: from {{start}} to {{end}} something in the picture sounds. {FACT_FORM}",
            f"From {{start}} to {{end}} you hear something that you see. {FACT_FORM}",
            f"The picture shows something that is heard from {{start}} to {{end}}. {FACT_FORM}",
            f"Check: something in the picture is heard from {{start}} to {{end}}. {FACT_FORM}",
            f"Check: between {{start}} and {{end}} something that you see sounds. {FACT_FORM}",
        ),
        "test": (
            f"From {{start}} to {{end}} something in the picture makes a sound. {FACT_FORM}",
            f"Check: something that you see is heard between {{start}} and {{end}}. {FACT_FORM}",
        ),
    },
    "which": {
        "train": (
            "Which object makes the sound?",
            "Which object in the picture is heard?",
            "Which object do you see and hear?",
            "Say which object makes this sound.",
            "Say which object in the picture makes the sound.",
            "Which object makes this sound?",
            "Listen: which object is it?",
        ),
        "test": ("Which object in the picture makes this sound?", "Say which object is heard."),
    },
    "count": {
        "train": (
            "How many objects are in the picture?",
            "How many objects do you see?",
            "Count the objects in the picture.",
            "How many things does the picture show?",
            "Say how many objects you see.",
            "Count what you see.",
            "Count the things in the picture.",
            "Count the objects that you see.",
            "How many things are in the picture?",
            "How many things do you see?",
            "How many objects are there in the picture?",
            "How many objects does the picture hold?",
            "Say how many things the picture shows.",
        ),
        "test": ("How many objects does the picture show?", "Count the things that you see."),
    },
    "where": {
        "train": (
            "Where is the object that makes the sound: left, middle or right?",
            "Is what you hear on the left, in the middle or on the right?",
            "On which side is the object that is heard: left, middle or right?",
            "Where in the picture is what makes the sound: left, middle or right?",
            "Say where the sound is made: left, middle or right.",
        ),
        "test": (
            "Where is the object that is heard: left, middle or right?",
            "Is the object that makes the sound on the left, in the middle or on the right?",
        ),
    },
    "exists": {
        "train": (
            "Is there a {label} in the picture?",
            "Do you see a {label}?",
            "Does the picture show a {label}?",
            "Look at the picture: is a {label} in it?",
            "Say if a {label} is in the picture.",
            "Is a {label} seen?",
            "Is a {label} in what you see?",
            "Is a {label} there in the picture?",
            "Is a {label} one of the objects in the picture?",
            "Look: is there a {label}?",
            "Look: does the picture show a {label}?",
        ),
        "test": ("Is a {label} in the picture?", "Look: do you see a {label}?"),
    },
    "first": {
        "train": (
            "Which sound comes first?",
            "Which object is heard first?",
            "What do you hear first?",
            "Say which sound is first in the clip.",
            "Listen: what comes first?",
        ),
        "test": ("Which object do you hear first?", "Say what comes first in the clip."),
    },
    "heard_and_seen": {
        "train": (
            "Is the {label} both heard and seen?",
            "Do you both see and hear a {label}?",
            "Is a {label} both in the picture and in the clip?",
            "Say if the {label} is both seen and heard.",
            "Do both picture and sound hold a {label}?",
            "Is a {label} both heard and seen?",
            "Do you hear and see a {label}?",
        ),
        "test": ("Is a {label} both seen and heard?", "Do you both hear and see the {label}?"),
    },
    "avc": {
        "train": (
            "Describe what you see and hear.",
            "Describe the picture and the sound.",
            "Say what is seen and what is heard.",
            "Describe the clip.",
            "What do you see, and what do you hear?",
            "Say what you see and what you hear.",
            "Say what is seen and heard.",
            "Say all that you see and hear.",
            "Describe what you hear and see.",
            "Describe all that is seen and heard.",
        ),
        "test": ("Say what you see and hear.", "Describe what is seen and heard."),
    },
}

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five")


def instruction(kind: str, split: str, choice: int, **fields: str) -> str:
    """Fill the paraphrase `choice` (modulo their number) of `kind` in `split`."""
    paraphrases = TEMPLATES[kind]["train" if split == "train" else "test"]
    return paraphrases[choice % len(paraphrases)].format(**fields)


def listing(names: Sequence[str]) -> str:
    """("owl", "dog", "bee") -> "a owl, a dog and a bee"; nothing -> "nothing".

    Always with "a": one article for one name, so that a right answer is one text.
    """
    items = [f"a {name}" for name in names]
    if not items:
        return "nothing"
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


Thing = tuple[str, str]  # where it is and what: ("on the left", "bee")


def place_of(x: float, y: float) -> tuple[int, int]:
    """(column, row) in `PLACES` of a point in 0..1."""
    return min(int(x * 3), 2), min(int(y * 3), 2)


def placed(things: Sequence[Thing]) -> str:
    """(("on the left", "bee"),) -> ", on the left a bee"."""
    return "".join(at_place(place) + name for place, name in things)


def sight(seen: Sequence[Thing]) -> str:
    """How many things are seen, and each at its place: "I see one, on the left a bee"."""
    return f"I see {NUMBER_WORDS[len(seen)]}{placed(seen)}" if seen else "I see nothing"


def hearing(
    heard: Sequence[str],
    near: Sequence[str],
    words: tuple[str, str],
    times: Sequence[str] | None = None,
) -> str:
    """What is heard, and of each whether it is one of `near`: "I hear a dog out of sight".

    `words` are what to say of one that is and of one that is not: `SIGHTS` or `SOURCES`. `times`,
    one of `TIMES` for each, say whether it is heard in the time that the question names: "a dog out
    of sight too early".
    """
    told = [f"{name} {words[name not in near]}" for name in heard]
    if times is not None:
        told = [f"{sound} {time}" for sound, time in zip(told, times, strict=True)]
    return f"I hear {listing(told)}"


def evidence(
    seen: Sequence[Thing], heard: Sequence[str], times: Sequence[str] | None = None
) -> str:
    """What is seen, then what is heard: "I see one, on the left a bee. I hear a bee in sight"."""
    names = [name for _, name in seen]
    return f"{sight(seen)}. {hearing(heard, names, SIGHTS, times)}"


def yes_no(value: bool) -> str:
    """The verdict word of a yes/no question."""
    return "yes" if value else "no"
