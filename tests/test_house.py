"""The house rules that no linter knows: who may know the embedded world, and how the tests are laid out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "src" / "snapgen"
WORDS = re.compile("emoji|sprite|glyph", re.IGNORECASE)

# Who may import the embedded world; a folder stands for all of its files. Whoever adds to this list should have tried
# to do without, for example by an entry in a registry.
KNOW_THE_WORLD = {
    "cli/",
    "data/sources.py",
    "evaluation/features.py",
    "evaluation/suites/fid.py",
    "evaluation/suites/psnr.py",
    "evaluation/suites/scenes.py",
    "reproduce/",
    "train/stages/classifier.py",
    "train/stages/text.py",
}


def files_outside_the_world(pattern: str = "*") -> list[Path]:
    """The package's files but for weights, world/, the models in bundled/ with their card, and the built web app."""
    return [
        file
        for file in sorted(PACKAGE.rglob(pattern))
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".safetensors"
        if file.relative_to(PACKAGE).parts[0] not in ("world", "bundled")
        if file.relative_to(PACKAGE).parts[:2] != ("web", "app")
    ]


def names_in(file: Path) -> set[str]:
    """The modules that `file` imports, and those that its registries name as "module:attribute"."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ":" in node.value:
            names.add(node.value.partition(":")[0])
    return names


def test_the_general_parts_know_no_emoji() -> None:
    files = files_outside_the_world()
    assert len(files) > 100
    assert [file.relative_to(PACKAGE).as_posix() for file in files if WORDS.search(file.read_text())] == []


def test_only_these_import_the_world() -> None:
    found = set()
    for file in files_outside_the_world("*.py"):
        path = file.relative_to(PACKAGE).as_posix()
        if any(f"{name}.".startswith("snapgen.world.") for name in names_in(file)):
            found.add(next((entry for entry in KNOW_THE_WORLD if path.startswith(entry)), path))
    assert found == KNOW_THE_WORLD


def test_no_test_module_imports_another() -> None:
    """What several need stands in tests/support or in a conftest.py."""
    modules = list(TESTS.rglob("test_*.py"))
    assert len(modules) > 50
    others = {f"{file.stem}" for file in modules} | {"tests", "conftest"}
    imports = {file.name: {part for name in names_in(file) for part in name.split(".")} for file in modules}
    assert {name: sorted(parts & others) for name, parts in imports.items() if parts & others} == {}


def test_the_tests_mirror_the_package() -> None:
    """Every folder of tests is a folder of the package, and no two test modules share a name."""
    folders = {file.parent.relative_to(TESTS).as_posix() for file in TESTS.rglob("test_*.py")} - {"."}
    assert sorted(folder for folder in folders if not (PACKAGE / folder).is_dir()) == []
    names = [file.name for file in TESTS.rglob("test_*.py")]
    assert len(names) == len(set(names))
    code = {file.parent.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py")}
    tested = {folder for folder in code if any((TESTS / folder).rglob("test_*.py"))}
    assert sorted(code - tested - {"."}) == []
