"""README and docs say what is true: their tables are the code's, and their examples run."""

import ast
import re
from pathlib import Path

import pytest

import spark_vision
from documented_places import DOCS, ROOT, blocks_of, replacing
from spark_vision.cli.option_table import option_table, write_option_table
from spark_vision.cli.statements import split_statements
from spark_vision.errors import Status
from spark_vision.operators import OPERATORS

# Examples go on where those of the pages before ended.
PAGES = [ROOT / "README.md", DOCS / "functions.md", DOCS / "tables.md", DOCS / "search.md"]


def read(name):
    return (DOCS / name).read_text()


def blocks(language):
    return [block for page in PAGES for block in blocks_of(page, language)]


def test_examples_are_only_on_pages_that_are_run():
    others = {*DOCS.glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"} - {*PAGES}
    others -= {DOCS / "index.md", *DOCS.glob("recipe_*.md"), *DOCS.glob("migrate_*.md")}
    assert [page.name for page in others if re.search(r"^```(python|sql)$", page.read_text())] == []


def test_links_between_pages_lead_somewhere():
    for page in [*DOCS.glob("*.md"), *ROOT.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_lists_every_operator():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGES[0].read_text(), re.MULTILINE)
    assert dict(rows) == {name: operator.function for name, operator in OPERATORS.items()}


def test_the_table_of_options_is_that_of_the_operators():
    assert option_table() in read("options.md"), "run python -m spark_vision.cli.option_table"


def test_the_table_of_a_writes_options_is_the_codes():
    assert write_option_table() in read("tables.md"), "run python -m spark_vision.cli.option_table"


def test_every_status_is_explained_once():
    named = re.findall(
        r"^\| `([a-z0-9_]+)` \| [^|]+ \| [^|]+ \|$", read("statuses.md"), re.MULTILINE
    )
    assert named == [status.value for status in Status]


def nodes():
    """The syntax of the package's code."""
    for path in Path(spark_vision.__file__).parent.rglob("*.py"):
        yield from ast.walk(ast.parse(path.read_text()))


def texts_in(nodes):
    """The texts of strings; `…` in the place of what is filled in."""
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "…" for part in node.values
            )


def quoted_messages():
    """The messages in the tables of the troubleshooting page, without those of Spark."""
    ours = read("troubleshooting.md").partition("## Messages of Spark")[0]
    cells = re.findall(r"^\| (.*?) \| .* \|$", ours, re.MULTILINE)
    return [each for cell in cells for each in re.findall(r"`(.+?)`", cell)]


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_package():
    quoted = quoted_messages()
    known = list(texts_in(nodes()))
    assert len(quoted) > 40
    assert [each for each in quoted if not any(each in text for text in known)] == []
    assert "a message that nobody writes" not in "".join(known)


def test_an_error_says_what_to_change_or_the_troubleshooting_page_does():
    kinds = ("SessionError", "TableError", "InputTypeError", "ModelServerError")
    raised = [
        next(texts_in(ast.walk(node.args[0])))
        for node in nodes()
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in kinds
    ]
    quoted = quoted_messages()
    # The first is clear; the second ends with the advice for the table's problem.
    quoted += ["metadata got a column twice: …", "… cannot be indexed: …"]
    assert len(raised) > 90
    unexplained = [
        text
        for text in raised
        if not re.search(r"; |allowed: ", text) and not any(each in text for each in quoted)
    ]
    assert unexplained == []


@pytest.fixture
def localize(tmp_path, checkpoints):
    """Puts small checkpoints and a folder of images in the place of those that the pages name."""
    from spark_vision.demo import write_scenes

    write_scenes(tmp_path / "photos", 4, seed=0)
    return replacing(tmp_path, checkpoints)


def test_the_examples_run(spark, tmp_path, localize, capsys):
    names = {"spark": spark}
    for block in blocks("python"):
        exec(localize(block), names)
    for block in blocks("sql"):
        for statement in split_statements(localize(block)):
            given = spark.sql(statement).first().asDict()
            given.pop("path", None)
            assert given
            assert all(len(value) > 0 for value in given.values())
    assert "'ok': 4" in capsys.readouterr().out
    table = spark.read.format("delta").load(str(tmp_path / "photo_vectors"))
    assert {"path", "length", "embedding", "embedding_status"} <= set(table.columns)
    assert table.where("embedding_status = 'ok' AND clip_status = 'ok'").count() == 4
    streamed = spark.read.format("delta").load(str(tmp_path / "streamed_vectors"))
    assert streamed.where("embedding_status = 'ok'").count() == 4
    index = spark.read.format("delta").load(str(tmp_path / "photo_index"))
    written = index.where("caption_status = 'ok'").collect()
    assert len({row["caption"] for row in written}) == len(written) == 4
