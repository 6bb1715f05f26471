"""The house rules that a machine can check: rooms, sizes, docstrings, links, the README, the cost of an import."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "coterie"

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "arrays": {"errors"},
    "formats": {"errors", "arrays"},
    "checkpoint": {"errors", "arrays", "formats"},
    "ops": {"errors", "arrays", "formats"},
    "backends": {"errors", "arrays", "formats", "ops"},
    "moe": {"errors", "arrays", "formats", "ops"},
    "models": {"errors", "arrays", "formats", "checkpoint", "ops", "moe"},
    "runtime": {"errors", "arrays", "formats", "checkpoint", "ops", "moe", "models", "bundled"},
    "bundled": {"errors"},
    "inspect": {"errors", "arrays", "formats", "checkpoint", "ops", "moe", "models", "runtime"},
    "integrations": {"errors", "arrays", "formats", "checkpoint", "ops", "moe", "models", "runtime", "bundled"},
    "cli": {
        "errors",
        "arrays",
        "formats",
        "checkpoint",
        "ops",
        "moe",
        "models",
        "runtime",
        "bench",
        "doctor",
        "inspect",
        "integrations",
        "coterie",
    },
    "doctor": {"errors", "arrays", "formats", "checkpoint", "ops", "moe", "models", "runtime", "bundled"},
    "bench": {
        "errors",
        "arrays",
        "formats",
        "checkpoint",
        "ops",
        "backends",
        "moe",
        "models",
        "runtime",
        "bundled",
        "integrations",
    },
}
"""Room -> the rooms whose modules it may import. A room may always import itself; "coterie" is the package's top."""

HEAVY = (
    "torch",
    "jax",
    "cupy",
    "triton",
    "mlx",
    "numba",
    "llvmlite",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "rich",
    "typer",
    "jinja2",
    "matplotlib",
)
MAY_FIND_MODULES_BY_NAME = {"ops/dispatch.py", "__init__.py"}


def room_of(module: str) -> str:
    """The room of a dotted module name: its first part below `coterie`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "coterie"


def imported_modules(source: str, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, module) of every `coterie` import in the source: at the top, in functions, under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = _from_targets(node, module, is_package=is_package)
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "coterie")


def _from_targets(node: ast.ImportFrom, module: str, *, is_package: bool) -> list[str]:
    base = node.module or ""
    if node.level:
        anchor = module.split(".")
        anchor = anchor[: len(anchor) - node.level + is_package]
        base = ".".join([*anchor, base] if base else anchor)
    if base != "coterie":
        return [base]
    rooms = {alias.name for alias in node.names} & MAY_IMPORT.keys()
    return [f"coterie.{name}" for name in rooms] + ["coterie"] * (len(rooms) < len(node.names))


def wrong_way(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Descriptions of the imports in `source` that its room may not make."""
    room = room_of(module)
    faults = []
    for line, target in imported_modules(source, module, is_package=is_package):
        if room_of(target) != room and room_of(target) not in MAY_IMPORT[room]:
            faults.append(f"{module}:{line} imports {target}; the room {room} may import {sorted(MAY_IMPORT[room])}")
        both_backends = room == room_of(target) == "backends"
        if both_backends and len(target.split(".")) > 2 and target.split(".")[2] != module.split(".")[2]:
            faults.append(f"{module}:{line} imports {target}; one back end may not lean on another")
    return faults


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_files() -> list[Path]:
    return sorted(chain(sources(), *((ROOT / folder).rglob("*.py") for folder in ("tests", "training", "scripts"))))


def documents() -> list[Path]:
    folders = ("docs", "src", "training", "tests")
    return sorted(chain(ROOT.glob("*.md"), *((ROOT / folder).rglob("*.md") for folder in folders)))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# Rooms ---------------------------------------------------------------------------------------------------------------


def test_every_file_stands_in_a_known_room() -> None:
    rooms = {room_of(module_name(path)) for path in sources()} - {"coterie", "__main__"}
    assert rooms <= MAY_IMPORT.keys()


def test_the_allowed_imports_have_no_cycle() -> None:
    order: list[str] = []
    while len(order) < len(MAY_IMPORT):
        ready = [room for room in MAY_IMPORT if room not in order and MAY_IMPORT[room] - {"coterie"} <= set(order)]
        assert ready, f"a cycle among {sorted(MAY_IMPORT.keys() - set(order))}"
        order += ready


@pytest.mark.parametrize("path", [p for p in sources() if p.parent != PACKAGE or p.stem in MAY_IMPORT], ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    assert wrong_way(path.read_text("utf-8"), module_name(path), is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("coterie.ops.route", "import coterie.models.decoder"),
        ("coterie.ops.route", "from coterie.backends.cpu import kernels"),
        ("coterie.ops.route", "def f():\n    from coterie.checkpoint import reader"),
        (
            "coterie.formats.spec",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from coterie.ops import route",
        ),
        ("coterie.formats.spec", "from ..moe import Experts"),
        ("coterie.errors", "from . import arrays"),
        ("coterie.moe", "from coterie import load"),
        ("coterie.models.decoder", "from coterie import errors, runtime"),
        ("coterie.backends.cpu.moe", "from coterie.backends.mlx import verbs"),
    ],
)
def test_an_import_the_wrong_way_is_found(module: str, source: str) -> None:
    assert len(wrong_way(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("coterie.models.decoder", "from coterie.checkpoint import Checkpoint\nimport coterie.moe"),
        ("coterie.formats.spec", "from .packed import Packed\nfrom ..errors import CoterieError"),
        ("coterie.cli.app", "import coterie\nfrom coterie import load"),
        (
            "coterie.backends.cpu.moe",
            "from coterie.backends.cpu.kernels import dot\nfrom coterie.ops.route import Spec",
        ),
    ],
)
def test_an_import_the_right_way_is_allowed(module: str, source: str) -> None:
    assert wrong_way(source, module) == []


def test_modules_are_found_by_name_in_one_place_only() -> None:
    found = set()
    for path in sources():
        names = {node.attr for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute)}
        names |= {node.id for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Name)}
        if names & {"import_module", "__import__"}:
            found.add(path.relative_to(PACKAGE).as_posix())
    assert found <= MAY_FIND_MODULES_BY_NAME


# Files ---------------------------------------------------------------------------------------------------------------


def test_no_file_is_over_500_lines() -> None:
    sizes = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in python_files()}
    assert {name: size for name, size in sizes.items() if size > 500} == {}


def test_no_work_is_left_as_a_mark_in_the_text() -> None:
    marks = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)))
    texts = [*python_files(), *documents(), *ROOT.glob("*.toml"), *ROOT.glob("*.yaml"), ROOT / ".ci" / "run"]
    found = [f"{name_of(path)}: {mark}" for path in texts for mark in marks.findall(path.read_text("utf-8"))]
    assert found == []


def test_public_names_have_docstrings() -> None:
    missing = []
    for path in sources():
        tree = ast.parse(path.read_text("utf-8"))
        missing += [f"{name_of(path)}: {name}" for name in undocumented(tree, path)]
    assert missing == []


def undocumented(tree: ast.Module, path: Path) -> Iterator[str]:
    """Public modules, classes, functions and methods without a docstring; a back end's verbs have theirs in `ops/`."""
    if ast.get_docstring(tree) is None:
        yield "the module"
    if "backends" in path.parts:
        return
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield node.name
        for member in node.body if isinstance(node, ast.ClassDef) else ():
            is_public = isinstance(member, ast.FunctionDef) and not member.name.startswith("_")
            if is_public and ast.get_docstring(member) is None:
                yield f"{node.name}.{member.name}"


# Import --------------------------------------------------------------------------------------------------------------


def fresh_python(code: str, **environment: str) -> str:
    """Run `code` in a fresh interpreter and return what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = fresh_python("import coterie, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))").split()
    assert "coterie" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_import_takes_under_300_ms() -> None:
    code = "import time; start = time.perf_counter(); import coterie; print(time.perf_counter() - start)"
    seconds = min(float(fresh_python(code)) for _ in range(7))
    assert seconds < 0.3


def test_every_exported_name_exists_and_has_a_docstring() -> None:
    code = (
        "import coterie\n"
        "for name in coterie.__all__:\n"
        "    value = getattr(coterie, name)\n"
        "    if not isinstance(value, str) and not value.__doc__: print(name)"
    )
    assert fresh_python(code).split() == []


def test_importing_the_module_moe_leaves_the_function_in_place() -> None:
    fresh_python("import coterie.moe; assert callable(coterie.moe); from coterie import moe; assert moe is coterie.moe")


# Documents -----------------------------------------------------------------------------------------------------------

LINK = re.compile(r"\[[^\]]*\]\(<?([^)>\s]+)>?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def headings(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


@pytest.mark.parametrize("path", documents(), ids=name_of)
def test_links_between_documents_resolve(path: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", path.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)
    assert broken == []


def code_blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language in a document."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_example_in_the_readme_runs() -> None:
    example = code_blocks(ROOT / "README.md", "python")[0]
    assert len(example.splitlines()) <= 5
    assert fresh_python(example).strip()


@pytest.mark.parametrize("path", documents(), ids=name_of)
def test_every_python_block_in_the_documents_runs(path: Path) -> None:
    for block in code_blocks(path, "python"):
        fresh_python(block)


def test_ci_runs_the_commands_of_the_readme_word_for_word() -> None:
    commands = [line for block in code_blocks(ROOT / "README.md", "bash")[:2] for line in block.splitlines()]
    assert len(commands) == 2
    assert all(command.startswith("python3 -m venv .venv && ") for command in commands)
    ci = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert [command for command in commands if command not in ci] == []


def files_of_tree(text: str) -> set[str]:
    """The paths of all .py files in an indented tree, two spaces a level."""
    folders: list[str] = []
    files = set()
    for line in text.splitlines():
        level, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[level:] = [name]
        if name.endswith(".py"):
            files.add("".join(folders))
    return files


def test_the_tree_in_the_architecture_page_is_the_tree() -> None:
    tree = next(block for block in code_blocks(ROOT / "docs" / "architecture.md", "text") if "errors.py" in block)
    shown = files_of_tree(tree)
    there = {name_of(path) for path in sources() if not path.stem.startswith("__")}
    assert sorted(there - shown) == []
    assert sorted(shown - there) == []


def test_contributing_stays_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines()) < 100
