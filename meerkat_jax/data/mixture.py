"""Several built data sets as one: a folder that names them, and their records in one stream.

    root/                     config.data.root
      vggss/  valor/ ...      built folders (data/build), named in config.data.sources

Each source has a number of `repeats`: how often its examples come while those of a source with one
repeat come once. A stream of all sources takes from each in proportion to its size and repeats, the
same mixture all the way; every source is shuffled anew each time that it begins again, and no
example of it comes twice before all have come. Sources without the split that is read are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from meerkat_jax.core.errors import UserError, nearest
from meerkat_jax.data import leaks
from meerkat_jax.data.split import read_manifest


def mix(root: Path, sources: Mapping[str, float], cache: Path) -> Path:
    """The folder below `cache` that stands for a mixture of built folders.

    Raises UserError when one of `sources` is not built below `root`, and when something would be
    trained on that is in a test split of any of them.
    """
    if not sources:
        raise UserError("config key data.sources is empty; name built folders below data.root")
    there = sorted(path.parent.name for path in Path(root).glob("*/manifest.json"))
    for name, repeats in sources.items():
        if name not in there:
            near = f"did you mean {nearest(name, there, 1)[0]!r}? " if there else ""
            raise UserError(
                f"data.sources: {name!r} is not built below data.root={root}; {near}"
                f"(there: {', '.join(there) or 'none'}; docs/data.md tells how to build it)"
            )
        if not repeats >= 0:
            raise UserError(
                f"data.sources.{name}={repeats}: expected a number of repeats from 0 up"
            )
    folders = [Path(root) / name for name in sources]
    leaks.refuse(folders)
    manifests = [read_manifest(folder) for folder in folders]
    facts = {
        "sources": [[str(folder.resolve()), sources[folder.name]] for folder in folders],
        "classes": sorted({name for manifest in manifests for name in manifest["classes"]}),
        "builds": [leaks.file_hash(folder / "manifest.json") for folder in folders],
    }
    # The name is of what is in the folders, not of where they are: a checkpoint keeps it.
    said = json.dumps([list(sources.items()), facts["classes"], facts["builds"]])
    home = Path(cache) / f"avfit-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    home.mkdir(parents=True, exist_ok=True)
    temporary = home / ".manifest.json.tmp"
    temporary.write_text(json.dumps(facts, indent=1))
    temporary.replace(home / "manifest.json")
    return home
