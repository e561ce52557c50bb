"""Near-duplicates in Spark against a comparison of all vectors by NumPy."""

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import functions as F

from encoded_images import encode, photo
from spark_vision import ImageViTEmbedding, find_duplicates, group_duplicates, write_vision_columns
from spark_vision.errors import InputTypeError, InvalidOptionError, TableError
from spark_vision.search import comparison
from spark_vision.search.comparison import compare_vectors

DIMENSION = 32


def random_vectors(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)


def near(vectors, cosine, seed=0):
    """A vector for each, of a random length, with this cosine similarity."""
    vectors = vectors.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    away = np.random.default_rng(seed).standard_normal(vectors.shape)
    away -= (away * vectors).sum(axis=1, keepdims=True) * vectors
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    lengths = np.random.default_rng(seed).uniform(0.1, 10, (len(vectors), 1))
    return (lengths * (cosine * vectors + np.sqrt(1 - cosine**2) * away)).astype(np.float32)


def frame(spark, vectors, keys=None):
    keys = list(range(len(vectors)) if keys is None else keys)
    lists = [None if vector is None else list(map(float, vector)) for vector in vectors]
    columns = {"id": pa.array(keys), "vector": pa.array(lists, pa.list_(pa.float32()))}
    return spark.createDataFrame(pa.table(columns))


def all_pairs(vectors, threshold):
    """Every pair of places with its cosine similarity, in float64."""
    unit = np.asarray(vectors, np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = np.clip((unit @ unit.T).round(12), -1, 1)
    first, second = np.nonzero(np.triu(cosines >= threshold, 1))
    return {(int(a), int(b)): cosines[a, b] for a, b in zip(first, second, strict=True)}


def pairs_of(found):
    rows = found.collect()
    pairs = {(row["id_a"], row["id_b"]): row["score"] for row in rows}
    assert len(pairs) == len(rows)
    return pairs


def groups_of(found):
    """The members of each group by its name."""
    groups = {}
    rows = found.collect()
    for row in rows:
        groups.setdefault(row["group_id"], []).append(row["id"])
    assert all(row["group_size"] == len(groups[row["group_id"]]) for row in rows)
    return {name: sorted(members) for name, members in groups.items()}


@pytest.fixture(scope="module")
def planted():
    """Random vectors, and planted ones with a cosine of 0.951 to 0.999 to one of them."""
    originals = random_vectors(2000)
    cosines = enumerate(np.linspace(0.951, 0.999, 4))
    copies = [near(originals[start::4], cosine, seed=start) for start, cosine in cosines]
    return np.concatenate([originals, *copies])


@pytest.fixture(scope="module")
def mixed(spark):
    """String keys: a chain, a vector and its multiples, 5,000 copies, and what is no vector."""
    angles = np.radians(15) * np.arange(12)
    chain = np.zeros((12, DIMENSION), np.float32)
    chain[:, 0], chain[:, 1] = np.cos(angles), np.sin(angles)
    one, copied = random_vectors(2, seed=1)
    no_vectors = [None, np.zeros(DIMENSION), np.full(DIMENSION, np.nan), [np.inf] * DIMENSION]
    vectors = [*chain, one, 3 * one, 1e30 * one, *no_vectors, *random_vectors(50, seed=2)]
    keys = [f"chain {each}" for each in range(12)] + ["one", "three", "huge"]
    keys += [f"none {each}" for each in range(4)] + [f"other {each}" for each in range(50)]
    copies = (
        spark.range(5000)
        .selectExpr("concat('copy ', id) AS id")
        .withColumn("vector", F.array(*(F.lit(float(number)) for number in copied)))
    )
    return frame(spark, vectors, keys).union(copies)


def test_pairs_are_those_of_a_comparison_of_all(spark, planted):
    wanted = all_pairs(planted, 0.95)
    assert len(wanted) >= 2000
    rows = frame(spark, planted)
    found = pairs_of(find_duplicates(rows, "vector", 0.95, keys=["id"]))
    assert found.keys() <= wanted.keys()
    assert len(found) >= 0.99 * len(wanted)
    for pair, score in found.items():
        assert score == pytest.approx(wanted[pair], abs=1e-6)
    planes = compare_vectors(rows, ["id"], "vector", 0.95, 0.99).planes
    sizes = [np.unique(codes, return_counts=True)[1] for codes in planes.encode(planted).T]
    assert len(sizes) > 1
    compared = sum(int(size @ (size - 1)) for size in sizes)
    assert compared < 0.5 * len(planted) * (len(planted) - 1)


def test_groups_are_connected_by_pairs_and_many_copies_are_one_group(mixed):
    assert groups_of(group_duplicates(mixed, "vector", keys=["id"])) == {
        "chain 0": sorted(f"chain {each}" for each in range(12)),
        "copy 0": sorted(f"copy {each}" for each in range(5000)),
        "huge": ["huge", "one", "three"],
    }


def test_pairs_are_direct_and_vectors_without_a_direction_are_in_none(mixed):
    where = "id NOT LIKE 'copy%' OR id IN ('copy 7', 'copy 11')"
    found = pairs_of(find_duplicates(mixed, "vector", where=where, keys=["id"]))
    links = {tuple(sorted((f"chain {each}", f"chain {each + 1}"))) for each in range(11)}
    equal = {("copy 11", "copy 7"), ("huge", "one"), ("huge", "three"), ("one", "three")}
    assert found.keys() == links | equal
    for pair, score in found.items():
        assert score == pytest.approx(1 if pair in equal else np.cos(np.radians(15)), abs=1e-6)


def test_a_threshold_of_one_finds_vectors_of_one_direction(mixed):
    found = find_duplicates(mixed, "vector", 1, where="id NOT LIKE 'copy%'", keys=["id"])
    assert pairs_of(found) == {("huge", "one"): 1, ("huge", "three"): 1, ("one", "three"): 1}


def test_large_blocks_are_compared_in_parts(spark, monkeypatch):
    monkeypatch.setattr(comparison, "_PART_ROWS", 40)
    originals = random_vectors(150)
    vectors = np.concatenate(
        [originals, near(originals, 0.951), near(originals[:20], 0.94, seed=1)]
    )
    found = pairs_of(find_duplicates(frame(spark, vectors), "vector", keys=["id"]))
    assert found.keys() == all_pairs(vectors, 0.95).keys()
    groups = groups_of(group_duplicates(frame(spark, vectors), "vector", keys=["id"]))
    assert {tuple(members) for members in groups.values()} == found.keys()


def test_a_row_may_have_several_keys(spark):
    vectors = random_vectors(2)[[0, 1, 0, 0]].tolist()
    places = [("b", 1), ("b", 2), ("a", 9), ("b", 0)]
    rows = [(*place, vector) for place, vector in zip(places, vectors, strict=True)]
    rows = spark.createDataFrame(rows, "`al.bum` string, number int, vector array<double>")
    keys = ["al.bum", "number"]
    pairs = find_duplicates(rows, "vector", keys=keys)
    assert pairs.columns == ["al.bum_a", "number_a", "al.bum_b", "number_b", "score"]
    assert sorted(map(tuple, pairs.collect())) == [
        ("a", 9, "b", 0, 1.0),
        ("a", 9, "b", 1, 1.0),
        ("b", 0, "b", 1, 1.0),
    ]
    groups = group_duplicates(rows, "vector", keys=keys)
    assert groups.columns == ["al.bum", "number", "group_al.bum", "group_number", "group_size"]
    assert sorted(map(tuple, groups.collect())) == [
        ("a", 9, "a", 9, 3),
        ("b", 0, "a", 9, 3),
        ("b", 1, "a", 9, 3),
    ]


def test_a_table_knows_its_keys(spark, checkpoints, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        content = encode(photo(60, 50, seed=number // 2), "PNG")
        (folder / f"{number}.png").write_bytes(content)
    (folder / "text.png").write_bytes(b"not an image")
    dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    photos = spark.read.format("binaryFile").load(str(folder))
    table = str(tmp_path / "vectors")
    write_vision_columns(photos, table, ["path"], {"embedding": dino})
    rows = group_duplicates(table, "embedding", 1).orderBy("path").collect()
    names = [(row["path"].rsplit("/")[-1], row["group_path"].rsplit("/")[-1]) for row in rows]
    assert names == [("0.png", "0.png"), ("1.png", "0.png"), ("2.png", "2.png"), ("3.png", "2.png")]
    with pytest.raises(TableError, match="no column 'lost' of vectors"):
        find_duplicates(table, "lost")


def test_no_vectors_give_no_rows(spark):
    assert find_duplicates(frame(spark, [None]), "vector", keys=["id"]).collect() == []
    rows = frame(spark, [None, np.zeros(3), np.ones(3)])
    assert group_duplicates(rows, "vector", keys=["id"]).collect() == []


@pytest.mark.parametrize("compare", [find_duplicates, group_duplicates])
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("vector", 0.79), {}, InvalidOptionError, "threshold got 0.79; allowed: 0.8 to 1"),
        (("vector", 1.01), {}, InvalidOptionError, "threshold got 1.01; allowed: 0.8 to 1"),
        (("vector", float("nan")), {}, InvalidOptionError, "threshold got nan"),
        (("vector", True), {}, InvalidOptionError, "threshold got True"),
        (("vector", "0.9"), {}, InvalidOptionError, "threshold got '0.9'"),
        (("vector",), {"recall": 1}, InvalidOptionError, "recall got 1; allowed: 0.5 to 0.9999"),
        (("vector",), {"keys": None}, InvalidOptionError, "keys got none"),
        (("vector",), {"keys": ["lost"]}, TableError, "has no column 'lost'"),
        (("lost",), {}, TableError, "has no column 'lost'"),
        (("id",), {}, InputTypeError, "the column id has the type bigint"),
        (("vector",), {}, TableError, "vectors of 2 to 3 numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused(spark, compare, arguments, options, error, message):
    rows = frame(spark, [[1.0, 2.0], [1.0, 2.0, 3.0]])
    with pytest.raises(error, match=message):
        compare(rows, *arguments, **{"keys": ["id"], **options})


@pytest.mark.parametrize("names", [["size"], ["group_size"], ["id", "group_id"]])
def test_columns_of_groups_cannot_be_the_sources(spark, names):
    rows = frame(spark, [[1.0, 2.0]])
    for name in names:
        rows = rows.withColumn(name, F.lit(1))
    with pytest.raises(TableError, match="rename the source's"):
        group_duplicates(rows, "vector", keys=names)
