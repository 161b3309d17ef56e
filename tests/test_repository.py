"""The repository keeps its own rules: small files, imports that go down, a README that is true."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "meerkat_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
OTHERS = ("experiments", "tools", "benchmarks", "tests")
SOURCES = sorted({*MODULES, *(path for part in OTHERS for path in (ROOT / part).glob("**/*.py"))})
TEXTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]

# Floors from the top down: each imports from those below it, and its own files.
COMMANDS = ("train", "evaluate", "generate", "serve", "demo", "preflight", "__init__")
FLOORS = (
    "api", "demo_page", "serving", "aot", "report", "from_config", "mini", "evaluation",
    "inference", "training", "weights", "build", "meerkat", "models", "alignment", "data",
    "parallel", "nn", "core",
)  # fmt: skip


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """Dotted names below meerkat_jax that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {dotted.split(".", 1)[1] for dotted in found if dotted.startswith("meerkat_jax.")}


def outside(path: Path) -> set[str]:
    """First names of all absolute imports of a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


def module_graph() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, wherever in it."""
    paths = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in MODULES}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph = {}
    for module, path in paths.items():
        found = {
            dotted if dotted in paths else dotted.rpartition(".")[0] for dotted in imports(path)
        }
        graph[module] = (found & paths.keys()) - {module}
    return graph


# ---- layout ----


def test_files_are_short():
    lengths = {name(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: count for path, count in lengths.items() if count > 450} == {}


def test_every_package_has_a_floor():
    assert {module.split(".")[0] for module in module_graph()} == {*COMMANDS, *FLOORS}


def test_imports_go_down():
    floor = {room: i for i, room in enumerate(reversed(FLOORS))} | dict.fromkeys(COMMANDS, 99)
    upward = [
        f"{module} imports {other}"
        for module, others in module_graph().items()
        for other in others
        if (mine := module.split(".")[0]) != (theirs := other.split(".")[0])
        and floor[mine] <= floor[theirs]
    ]
    assert upward == []


def test_no_files_import_each_other():
    """Neither directly nor round a circle."""
    graph = module_graph()
    assert list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_the_papers_model_knows_nothing_of_the_mini():
    rooms = ("nn", "models", "alignment", "training", "parallel", "inference", "weights")
    words = re.compile(r"\bmini\b|from scratch|\btoy", re.IGNORECASE)
    lines = [
        f"{name(path)}:{number}"
        for path in (path for room in rooms for path in (PACKAGE / room).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if words.search(line)
    ]
    assert lines == []


@pytest.mark.parametrize(
    ("room", "foreign"),
    [
        ("models", {"absl", "ml_collections", "json", "pathlib", "grain"}),
        ("alignment", {"absl", "ml_collections", "json", "pathlib", "grain"}),
        ("data", {"flax", "optax", "orbax", "absl", "ml_collections"}),
    ],
)
def test_lower_rooms_know_nothing_of_configs_and_files(room, foreign):
    for path in (PACKAGE / room).rglob("*.py"):
        if path.name != "__main__.py":
            assert not outside(path) & foreign, path


def test_nothing_is_evaluated_or_unpickled():
    for path in MODULES:
        assert not outside(path) & {"pickle", "marshal", "shelve", "dill"}, path
        calls = (
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        )
        names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
        assert not names & {"eval", "exec"}, path


def test_every_room_says_what_it_is():
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


# ---- what is promised ----


def requirement_names(lines) -> set[str]:
    names = (re.match(r"[A-Za-z0-9_.-]+", line) for line in lines if line and line[0] != "#")
    return {found.group().lower().replace("_", "-") for found in names}


def test_what_is_imported_is_required():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    runtime = requirement_names((ROOT / "requirements.txt").read_text().splitlines())
    extras = project["optional-dependencies"]
    converting = runtime | requirement_names(extras["convert"])
    reading = runtime | requirement_names([*extras["data"], *extras["tfds"]])
    scoring = runtime | requirement_names(extras["eval"])
    serving = runtime | requirement_names(extras["serve"])
    showing = runtime | requirement_names(extras["demo"])
    testing = converting | reading | scoring | serving | showing
    testing |= requirement_names(extras["test"])
    # where the name of the package is not that of the distribution
    called = {"absl": "absl-py", "PIL": "pillow", "ott": "ott-jax", "orbax": "orbax-checkpoint"}
    called |= {"ot": "pot", "array_record": "array-record", "ml_collections": "ml-collections"}
    called |= {"ml_dtypes": "ml-dtypes", "google": "protobuf", "sklearn": "scikit-learn"}
    called |= {"sed_eval": "sed-eval", "prometheus_client": "prometheus-client"}
    called |= {"huggingface_hub": "huggingface-hub"}
    called |= {"gradio_client": "gradio", "pydantic_core": "pydantic"}  # come with these
    called |= {"tensorflow_datasets": "tensorflow-datasets"}
    ours = {"meerkat_jax", *OTHERS}
    rooms = {"tests": testing, "benchmarks": testing, "weights": converting}
    rooms |= {"data": reading, "evaluation": scoring}
    rooms |= {"serving": serving, "serve.py": serving, "demo_page": showing}
    for path in SOURCES:
        known = next((rooms[part] for part in path.parts if part in rooms), runtime)
        for package in outside(path) - ours - sys.stdlib_module_names:
            assert called.get(package, package).lower() in known, f"{path} imports {package}"


def test_every_requirement_has_a_tested_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if line and line[0] != "#"]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", line) for line in pinned)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = requirement_names((ROOT / "requirements.txt").read_text().splitlines())
    extras = project["optional-dependencies"]
    wanted |= requirement_names(
        [
            line
            for extra in ("convert", "data", "demo", "eval", "serve", "tfds", "test")
            for line in extras[extra]
        ]
    ) - {"meerkat-jax"}
    assert not wanted - requirement_names(pinned)


def commands(text: str) -> tuple[set[str], set[str]]:
    """(make targets, modules) that a text names in its code."""
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    return set(re.findall(r"\bmake ([a-z][a-z-]*)", code)), set(
        re.findall(r"(?<!\w)(meerkat_jax\.[a-z]+)(?= -)", code)
    )


def test_commands_of_the_readme_exist():
    targets, modules = commands((ROOT / "README.md").read_text())
    assert {"demo", "test", "lint"} <= targets and "meerkat_jax.train" in modules
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets <= made
    for module in modules:
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert 'if __name__ == "__main__":' in source


def test_flags_of_the_readme_exist():
    for line in (ROOT / "README.md").read_text().replace("\\\n", " ").splitlines():
        for module, rest in re.findall(r"meerkat_jax\.([a-z]+)((?: +\[?--\w+[^`]*)?)", line):
            known = (PACKAGE / f"{module}.py").read_text() if rest else ""
            for flag in re.findall(r"--(\w+)", rest):
                assert f'"{flag}"' in known, f"meerkat_jax.{module} has no flag --{flag}"


def test_links_lead_somewhere():
    links = {
        f"{name(path)}: {target}": "://" in target or (path.parent / target).exists()
        for path in TEXTS
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text())
    }
    assert [link for link, good in links.items() if not good] == []


def test_no_path_of_one_machine():
    places = "|".join(("work", "tmp", "root", "home/[a-z]+", "opt"))  # not written as such here
    pattern = re.compile(rf"(?<![\w~.>}}/-])/(?:{places})/\w")
    files = [*SOURCES, *TEXTS, ROOT / "Makefile", ROOT / ".ci" / "run"]
    assert [name(path) for path in files if pattern.search(path.read_text())] == []
