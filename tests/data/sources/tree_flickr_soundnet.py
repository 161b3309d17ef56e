"""A small Flickr-SoundNet tree: an XML file for each picture, boxes of three people.

The evaluation codes tell what stands where, but not what the elements are called: beside `bbox`,
names are made up here.
"""

from __future__ import annotations

from pathlib import Path

FILES = {
    "10000130166": [[(10, 20, 128, 256)], [(12, 18, 130, 250)], [(0, 0, 256, 256)]],
    "2432219254": [[(0, 0, 64, 64), (128, 128, 192, 192)], [(0, 0, 64, 64)], []],
    "9992787425": [[], [], []],
    "9992947874": [[(1, 2, 300, 4)], [(5, 5, 5, 9)], [("a", 1, 2, 3)]],
    "9999999999": [[(128, 0, 257, 64)], [(1, 2, 3)], [(0, 0, 0, 0), (200, 64, 128, 0)]],
}


def write(folder: Path) -> list[dict]:
    """Write the annotation files; tell which media belong to them."""
    home = folder / "Annotations"
    home.mkdir(parents=True, exist_ok=True)
    for ident, people in FILES.items():
        (home / f"{ident}.xml").write_bytes(xml(ident, people).encode("utf-8-sig"))
    (home / "broken.xml").write_text("<annotation><person>")
    return [
        media("Data/0/10000130166.jpg", "Data/0/10000130166.wav"),
        media("frames/2432219254.jpg", "audio/2432219254.wav"),
        media("Data/9/9999999999.jpg", "Data/9/9999999999.wav"),
    ]


def media(image: str, audio: str) -> dict:
    """A picture and its sound."""
    return {"image": image, "audio": audio, "video": None, "seconds": 20.0}


def xml(ident: str, people: list) -> str:
    """What a file of one picture holds."""
    drawn = "".join(f"<person>{''.join(map(bbox, boxes))}</person>\r\n" for boxes in people)
    return f"<annotation>\r\n<filename>{ident}.jpg</filename>\r\n{drawn}</annotation>"


def bbox(corners: tuple) -> str:
    """One box: something, then corners in pixels of 256."""
    values = "".join(f"<value>{corner}</value>" for corner in corners)
    return f"<bbox><kind>a &lt;b&gt;, c</kind>{values}</bbox>"
