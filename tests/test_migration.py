"""The pages for newcomers run, and what replaces other code computes the same as that code."""

import re

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

import checkpoints as write_checkpoints
from documented_places import DOCS, blocks_of, replacing
from spark_vision import ImageViTEmbedding, QwenVLImageUnderstanding, embed_image
from spark_vision.cli.command_line import describe_default
from spark_vision.demo import write_scenes
from spark_vision.demo.ground_truth import TRUTH_FILE
from spark_vision.operators.embedding import OPENAI_CLIP_NAMES
from spark_vision.operators.options import options_of

SCENE_COUNT = 4


@pytest.fixture
def folder(tmp_path):
    """Puts a folder with pictures in the place of /data."""
    write_scenes(tmp_path / "photos", SCENE_COUNT, seed=0)
    (tmp_path / "photos" / TRUTH_FILE).unlink()
    return tmp_path


@pytest.fixture
def run_page(spark, folder, checkpoints):
    """Runs a page's examples; gives the names that they define."""
    localize = replacing(folder, checkpoints)

    def run(page):
        names = {"spark": spark}
        for block in blocks_of(DOCS / page, "python"):
            exec(localize(block), names)
        return names

    return run


def column(rows):
    """The values of the second column, in the order of the first, as arrays."""
    return [np.array(row[1], np.float32) for row in sorted(rows.collect())]


def assert_near(ours, theirs):
    """Equal but for the decoders' rounding, and not by chance."""
    assert len(ours) == len(theirs) == SCENE_COUNT
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() < 0.02 * np.abs(other).max()
    assert np.abs(ours[0] - theirs[1]).max() > 0.05 * np.abs(theirs[1]).max()


def test_the_first_page_ends_in_a_table_that_can_be_searched(run_page, capsys):
    names = run_page("index.md")
    assert "4 rows computed: {'clip': {'ok': 4}}" in capsys.readouterr().out
    assert [row["rank"] for row in names["found"].collect()] == [1, 2, 3, 4]


def test_vectors_and_tokens_are_those_of_the_pipeline(run_page):
    names = run_page("migrate_from_pipeline.md")
    theirs = [np.array(each[0], np.float32) for each in names["theirs"]]
    assert_near(column(names["ours"]), theirs)
    their_tokens = [np.array(each[0], np.float32) for each in names["their_tokens"]]
    assert_near(column(names["our_tokens"]), their_tokens)


def test_the_pooler_is_that_of_the_pipeline(spark, folder):
    write_checkpoints.write_vit(folder / "vit")
    files = sorted(map(str, (folder / "photos").iterdir()))
    extract = pipeline("image-feature-extraction", model=str(folder / "vit"))
    theirs = [np.array(each[0], np.float32) for each in extract(files, pool=True)]
    vit = ImageViTEmbedding(model_name=str(folder / "vit"), pooling="pooler", normalize=False)
    photos = spark.read.format("binaryFile").load(str(folder / "photos"))
    assert_near(column(photos.select("path", embed_image("content", vit))), theirs)


def test_vectors_scores_and_tags_are_those_of_a_clip_script(run_page, folder):
    # Decoders agree on PNG to the bit.
    for path in list((folder / "photos").iterdir()):
        picture = Image.open(path).convert("RGB")
        path.unlink()
        picture.save(path.with_suffix(".png"))
    names = run_page("migrate_from_clip.md")
    places = {f"file:{name}": place for place, name in enumerate(names["files"])}
    assert len(places) == SCENE_COUNT

    ours, theirs = np.array(column(names["vectors"])), names["their_vectors"].numpy()
    assert np.abs(ours - theirs).max() < 1e-5 < 0.05 < np.abs(ours[0] - theirs[1]).max()
    assert np.abs(column(names["query"]) - names["their_query"].numpy()).max() < 1e-5

    found = names["found"].orderBy("rank").collect()
    assert [places[row["path"]] for row in found] == names["their_places"].tolist()
    scores = names["their_scores"].numpy()
    assert [row["score"] for row in found] == pytest.approx(scores, abs=1e-5)
    assert scores[0] - scores[1] > 1e-3

    their_shares, chosen = (each.numpy() for each in names["their_tags"])
    for row in names["tagged"].collect():
        place = places[row["path"]]
        expected = [names["tags"][number] for number in chosen[place]]
        assert [tag["tag"] for tag in row["tags"]] == expected
        shares = [tag["score"] for tag in row["tags"]]
        assert shares == pytest.approx(their_shares[place], abs=1e-5)
        assert shares[0] - shares[-1] > 1e-3


def test_the_names_of_openai_beside_a_script_are_those_that_are_accepted():
    page = (DOCS / "migrate_from_clip.md").read_text()
    assert set(re.findall(r"[`\"](ViT-[^`\"]+)", page)) == OPENAI_CLIP_NAMES.keys()


def test_vectors_are_those_of_the_functions_that_are_replaced(run_page):
    names = run_page("migrate_from_udfs.md")
    ours = column(names["ours"])
    assert_near(ours, column(names["predicted"]))
    assert_near(ours, column(names["by_pandas"]))


def test_the_arguments_of_daft_make_operators_that_run(run_page):
    names = run_page("migrate_from_las_daft.md")
    assert all(len(vector) == 48 for vector in column(names["embedded"]))
    assert all(row["caption"] is not None for row in names["captioned"].collect())


def test_the_defaults_beside_those_of_daft_are_the_operators():
    text = (DOCS / "migrate_from_las_daft.md").read_text()
    rows = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("| `")]
    defaults = [
        {each.name: describe_default(each) for each in options_of(operator)}
        for operator in (ImageViTEmbedding, QwenVLImageUnderstanding)
    ]
    compared = 0
    for names, *cells, _ in rows:
        for default, cell in zip(defaults, cells, strict=True):
            for name in re.findall(r"`(\w+)`", names):
                if cell.strip():
                    assert cell.strip(" `") == default[name]
                    compared += 1
    assert compared == 7 + 11
