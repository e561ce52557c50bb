"""The floors of the house: imports point down, and importing the package is cheap."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import spark_vision

PACKAGE = Path(spark_vision.__file__).parent

# The floor of each module or folder; a longer name wins over its folder's.
FLOORS = {
    "spark_vision.errors": 0,
    "spark_vision._version": 0,
    "spark_vision.operators": 0,
    "spark_vision.images": 1,
    "spark_vision.models": 2,
    "spark_vision.model_server": 3,
    "spark_vision.executor": 3,
    "spark_vision.spark": 4,
    "spark_vision.session": 4,
    "spark_vision.functions": 5,
    "spark_vision.notebook": 5,
    "spark_vision.sql": 5,
    "spark_vision.unity_catalog": 5,
    "spark_vision.tables": 5,
    "spark_vision.search": 6,
    "spark_vision.cli": 7,
    "spark_vision.demo": 7,
    "spark_vision.search_page": 7,
    "spark_vision.jobs": 8,
    # The public face imports of all floors, and none of them imports it.
    "spark_vision": 9,
}
FORBIDDEN = {
    0: {"torch", "transformers", "pyspark", "pandas", "pyarrow", "numpy", "torchvision", "delta"},
    1: {"transformers", "pyspark", "pandas", "delta"},
    2: {"pyspark", "pandas", "delta"},
    3: {"pyspark", "delta"},
}
ALLOWED_EXCEPTIONS = {("spark_vision.executor.task", "pyspark")}


@cache
def modules() -> dict[str, Path]:
    named = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def floor_of(module: str) -> int | None:
    parts = module.split(".")
    for length in range(len(parts), 1, -1):
        if ".".join(parts[:length]) in FLOORS:
            return FLOORS[".".join(parts[:length])]
    # A name that is no module is one of the public face.
    return FLOORS["spark_vision"] if module == "spark_vision" else None


def imported_by(path: Path) -> set[str]:
    """Every module that a file imports, in functions too; names only for type checkers left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # `from package import module` imports the module.
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            is_whole = node.module == "spark_vision" and named <= modules().keys()
            names |= named if is_whole else {node.module or "", *named}
    return names


def violations(module: str, path: Path) -> list[str]:
    floor = floor_of(module)
    assert floor is not None, f"{module} has no floor: name it in FLOORS"
    found = []
    for name in imported_by(path):
        above = floor_of(name) if name.split(".")[0] == "spark_vision" else None
        if above is not None and above > floor:
            found.append(f"{module} (floor {floor}) imports {name} (floor {above})")
        package = name.split(".")[0]
        if package in FORBIDDEN.get(floor, set()) and (module, package) not in ALLOWED_EXCEPTIONS:
            found.append(f"{module} (floor {floor}) imports {package}")
    return found


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module):
    assert violations(module, modules()[module]) == []


def test_an_import_that_points_up_is_found(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "def f():\n    from spark_vision.executor import task\n    import pyspark\n"
        "    import spark_vision\n    from spark_vision import write_vision_columns, errors\n"
    )
    found = violations("spark_vision.images.wrong", wrong)
    assert any("spark_vision.executor.task" in each for each in found)
    assert any("imports pyspark" in each for each in found)
    # The package's own root is the top floor, whichever way it is imported.
    assert any(f"imports spark_vision (floor {FLOORS['spark_vision']})" in each for each in found)
    lone = tmp_path / "lone.py"
    lone.write_text("from spark_vision import __version__\n")
    assert violations("spark_vision.tables.lone", lone)
    lone.write_text("from spark_vision import errors\n")
    assert not violations("spark_vision.tables.lone", lone)


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, spark_vision; from spark_vision import ImageViTEmbedding; ImageViTEmbedding();"
        "print([m for m in ('torch', 'transformers', 'pyspark', 'pandas', 'pyarrow', 'numpy')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_imported():
    for name in spark_vision.__all__:
        assert getattr(spark_vision, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        spark_vision.no_such_name  # noqa: B018
