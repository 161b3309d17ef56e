"""A small PASCAL Sound tree: VOC's XML, and the table of which sound goes with which picture."""

from __future__ import annotations

from pathlib import Path

PAIRS = (
    "image,audio,class\r\n"
    "2008_000008,-0SdAVK79lg_000030,horse\r\n"
    "2008_000008,-0SdAVK79lg_000030,horse\r\n"
    '2008_000008,"speech, 1",person\r\n'
    "2008_000008,speech.1,Person\r\n"
    "2007_000032,_0SdAVK79lg,aeroplane\r\n"
    "2007_000032,two of them,aeroplane\r\n"
    "2007_000032,two of them,person\r\n"
    "2007_000032,moo,cow\r\n"
    "2007_999999,moo,cow\r\n"
    "000005,moo,cow\r\n"
    "000006,moo,cow\r\n"
    "000007,moo,cow\r\n"
    "000007,moo,\r\n"
    "000007\r\n"
)
HORSE = """<annotation>
  <folder>VOC2012</folder>
  <filename>2008_000008.jpg</filename>
  <size><width>500</width><height>442</height><depth>3</depth></size>
  <segmented>0</segmented>
  <object>
    <name>horse</name><pose>Left</pose><truncated>0</truncated><occluded>1</occluded>
    <bndbox><xmin>51</xmin><ymin>1</ymin><xmax>500</xmax><ymax>442</ymax></bndbox>
    <difficult>0</difficult>
  </object>
  <object>
    <name>person</name><difficult>1</difficult>
    <bndbox><xmax>300.0</xmax><xmin>200.5</xmin><ymax>221</ymax><ymin>111.5</ymin></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
    </part>
  </object>
</annotation>"""


def write(folder: Path) -> list[dict]:
    """Write the annotation files; tell which media belong to them."""
    home = folder / "Annotations"
    home.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.csv").write_bytes(PAIRS.encode("utf-8-sig"))
    (home / "2008_000008.xml").write_text(HORSE)
    planes = [("aeroplane", 1, 1, 100, 50), ("aeroplane", 101, 51, 200, 100)]
    write_voc(home / "2007_000032.xml", 200, 100, [*planes, ("person", 1, 1, 20, 10)])
    write_voc(home / "000005.xml", 0, 100, [("cow", 1, 1, 2, 2)])
    write_voc(home / "000006.xml", 100, 100, [("cow", 1, 1, 200, 2), ("cow", 51, 51, 100, 101)])
    write_voc(home / "000007.xml", 100, 100, [("cow", "x", 1, 200, 2)])
    return [
        media("2008_000008", "-0SdAVK79lg_000030.flac"),
        media("2008_000008", "speech.1.wav"),
        media("2007_000032", "_0SdAVK79lg.wav"),
        media("2007_000032", "two of them.wav"),
        media("000006", "moo.wav"),
    ]


def media(image: str, audio: str) -> dict:
    """A picture and a sound."""
    files = {"image": f"JPEGImages/{image}.jpg", "audio": f"sounds/{audio}"}
    return files | {"video": None, "seconds": 10.0}


def write_voc(path: Path, width: int, height: int, objects: list) -> None:
    """Write the XML of one picture; an object is a class and corners."""
    text = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    for name, *corners in objects:
        tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        box = "".join(f"<{tag}>{corner}</{tag}>" for tag, corner in tags)
        text += f"\r\n<object><name>{name}</name><bndbox>{box}</bndbox></object>"
    path.write_text(f"<annotation>{text}</annotation>")
