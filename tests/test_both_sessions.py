"""A session of Spark Connect does what a classic one does: one process of each, step by step."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers
from PIL import Image

import session_steps
import spark_vision
from caption_oracle import caption
from encoded_images import encode, photo
from oracles import same
from spark_vision import ImageViTEmbedding, WriteResult, describe_model

TESTS = Path(__file__).parent
SECONDS = 900
ALL = {"ok": 6, "not_an_image": 1}
IMAGES = [f"{number}.jpg" for number in range(6)]
STATUSES = {**dict.fromkeys(IMAGES, "ok"), "text.jpg": "not_an_image"}

# The first test of each kind waits for all steps.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 50)]


@pytest.fixture(scope="module", params=["classic", "connect"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def seen(kind, tmp_path_factory, checkpoints):
    """What each step of `session_steps` saw."""
    environment = {name: value for name, value in os.environ.items() if "PYSPARK" not in name}
    path = [str(TESTS), environment.get("PYTHONPATH", "")]
    done = subprocess.run(
        [
            sys.executable,
            str(TESTS / "support" / "session_steps.py"),
            kind,
            str(tmp_path_factory.mktemp(kind)),
            str(checkpoints),
            str(TESTS / "support" / "worker_site"),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**environment, "PYTHONPATH": os.pathsep.join(path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def pictures():
    files = [encode(photo(60 + seed, 40, seed=seed), "JPEG") for seed in range(6)]
    return [Image.open(io.BytesIO(file)) for file in files]


@pytest.fixture(scope="module")
def dino_vectors(checkpoints, pictures):
    """Vectors by Hugging Face's processor and model."""
    folder = checkpoints / "dinov2"
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="torchvision")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        output = model(**processor(images=pictures, return_tensors="pt"))
    return torch.nn.functional.normalize(output.last_hidden_state[:, 0], dim=-1)


class HuggingFaceClip(NamedTuple):
    """Its vectors of the pictures, what embeds texts, and by what it multiplies cosines."""

    pictures: torch.Tensor
    embed: Callable[[list[str]], torch.Tensor]
    scale: float


@pytest.fixture(scope="module")
def clip(checkpoints, pictures):
    folder = checkpoints / "clip"
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="torchvision")

    def vectors(features, inputs):
        with torch.inference_mode():
            return torch.nn.functional.normalize(features(**inputs).pooler_output, dim=-1)

    def embed(texts):
        return vectors(model.get_text_features, tokenizer(texts, padding=True, return_tensors="pt"))

    pixels = processor(images=pictures, return_tensors="pt")
    return HuggingFaceClip(
        vectors(model.get_image_features, pixels), embed, model.logit_scale.exp().item()
    )


def of(step, *names):
    return {name: step[name] for name in names}


def test_the_session_is_of_its_kind(seen, kind):
    assert seen["is_of_connect"] == (kind == "connect")


def test_every_public_function_is_used_in_a_step():
    public = {name for name in spark_vision.__all__ if re.fullmatch("[a-z][a-z_]*", name)}
    # It writes a statement, without any session.
    assert public - vars(session_steps).keys() == {"unity_catalog_ddl"}


@pytest.fixture
def model(checkpoints):
    return describe_model(ImageViTEmbedding(model_name=str(checkpoints / "dinov2")))


def test_a_model_is_described_by_a_task(seen, model):
    assert seen["described_by_a_task"] == asdict(model)


@pytest.fixture(params=["by_column", "by_sql"])
def rows(request, seen):
    """What the functions of columns, or of SQL, return, by the name of the file."""
    return seen["columns"][request.param]


def test_vectors_are_those_of_hugging_face(rows, dino_vectors, clip):
    assert rows.keys() == STATUSES.keys()
    assert same(torch.tensor([rows[name]["embed_image"] for name in IMAGES]), dino_vectors)
    assert rows["text.jpg"]["embed_image"] is None
    assert same(torch.tensor([row["embed_text"] for row in rows.values()]), clip.embed([*rows]))


@pytest.mark.parametrize("function", ["tag_image", "tag_vectors"])
def test_tags_are_those_of_hugging_face(rows, clip, function):
    tags = session_steps.TAGS
    texts = clip.embed([f"a photo of a {tag}" for tag in tags])
    scores = (clip.scale * clip.pictures @ texts.T).softmax(dim=1).tolist()
    for name, true in zip(IMAGES, scores, strict=True):
        given = {tag["tag"]: tag["score"] for tag in rows[name][function]}
        assert given == pytest.approx(dict(zip(tags, true, strict=True)), abs=1e-4)
        assert [*given.values()] == sorted(given.values(), reverse=True)
    assert rows["text.jpg"][function] is None


def test_captions_are_those_of_transformers(rows, checkpoints, pictures):
    asked = zip(IMAGES, pictures, strict=True)
    expected = {name: caption(checkpoints / "qwen", picture, name, 10) for name, picture in asked}
    given = {name: row["caption_image"] for name, row in rows.items()}
    assert given == {**expected, "text.jpg": None}
    assert len(set(expected.values())) > 1


def test_placements_name_one_process_with_the_model(rows, model):
    assert rows["text.jpg"]["model_placement"] is None
    placed = [rows[name]["model_placement"] for name in IMAGES]
    (known,) = {(each["device"], each["fingerprint"], each["server_pid"]) for each in placed}
    assert known[:2] == ("cpu", model.fingerprint)


def test_sql_functions_say_why_a_row_has_no_vector(seen):
    rows = seen["columns"]["by_sql"]
    assert {name: row["status"] for name, row in rows.items()} == STATUSES


def test_searches_find_the_nearest_pictures(seen, clip):
    by_text, by_picture = seen["searches"]["found"]
    for found, query in (
        (by_text, clip.embed([session_steps.QUERY])[0]),
        (by_picture, clip.pictures[0]),
    ):
        best = (clip.pictures @ query).topk(3)
        assert [rank for rank, _, _ in found] == [1, 2, 3]
        assert [name for _, name, _ in found] == [IMAGES[place] for place in best.indices]
        assert [score for *_, score in found] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_an_index_takes_every_row_with_a_vector(seen, clip):
    step = seen["searches"]
    assert of(step, "statuses", "ready_rows", "not_computed", "is_ready") == {
        "statuses": {"embedding": ALL}, "ready_rows": 6, "not_computed": {"not_an_image": 1},
        "is_ready": True,
    }  # fmt: skip
    assert sorted(step["vectors"]) == IMAGES
    assert same(torch.tensor([step["vectors"][name] for name in IMAGES]), clip.pictures)


def test_duplicates_are_the_pairs_of_similar_vectors(seen, clip):
    names = [*IMAGES, *(f"{name}.copy" for name in IMAGES)]
    vectors = torch.cat([clip.pictures] * 2)
    near = (vectors @ vectors.T >= 0.9999).triu(1).nonzero().tolist()
    pairs = sorted(sorted([names[one], names[other]]) for one, other in near)
    assert len(pairs) >= 6
    assert seen["duplicates"] == {"pairs": pairs, "grouped": sorted(names)}


def test_indexes_follow_the_table(seen):
    assert seen["syncs"] == [[6, 1, IMAGES[1:]], [5, 1, IMAGES[2:]]]


def test_a_dry_run_counts_what_a_first_write_would_do(seen):
    assert (
        seen["plan"].items()
        >= {
            "is_new": True,
            "source_rows": 7,
            "reasons": {"embedding": {"new": 7}},
            "pending_rows": 7,
            "wave_count": 3,
            "missing_rows": 0,
            "was_made": False,
        }.items()
    )
    assert seen["plan"]["source_bytes"] > 0


def test_a_first_write_computes_each_row_once_in_waves(seen):
    first = seen["first_write"]
    assert first["history"] == ["CREATE TABLE", "MERGE", "MERGE", "MERGE"]
    labels = [json.loads(said)["spark_vision"] for said in first["labels"]]
    assert [label["run"] for label in labels] == [first["run_id"]] * 4
    assert [label.get("wave") for label in labels] == [None, 1, 2, 3]
    expected = {
        "source_rows": 7,
        "existing_rows": 0,
        "computed_rows": 7,
        "remaining_rows": 0,
        "forwards": 6,
    }
    assert of(first, *expected) == expected
    assert first["statuses"] == {"embedding": ALL}
    assert first["dimensions"] == {**dict.fromkeys(IMAGES, 48), "text.jpg": None}
    assert {name for name, error in first["errors"].items() if error} == {"text.jpg"}
    assert first["lengths"]["text.jpg"] == len("not an image")


def test_a_run_reports_itself_in_a_table(seen):
    (report,) = seen["first_write"]["reports"]
    names = [field.name for field in fields(WriteResult)]
    assert of(report, *names) == of(seen["first_write"], *names)


def test_thumbnails_are_made(seen):
    assert seen["thumbnails"] == {"image_count": 6, "failed_count": 1, "html": 6}


def test_progress_is_told_wave_by_wave_and_exact_at_the_end(seen, kind):
    told = seen["first_write"]["progress"]
    if kind == "classic":
        # What it also tells within a wave depends on the time.
        assert told == sorted(told)
        told = [each for each in told if each[0] in (0, 3, 6, 7)]
        told = [*map(list, dict.fromkeys(map(tuple, told)))]
    assert told == [[0, 7], [3, 7], [6, 7], [7, 7]]
    assert seen["first_write"]["last_statuses"] == {"embedding": ALL}
    assert seen["same_again"]["progress"] == [[0, 0]]
    assert seen["second_column"]["progress"][-1] == [7, 7]


def test_a_run_with_nothing_to_do_computes_and_writes_nothing(seen):
    again = seen["same_again"]
    assert of(again, "existing_rows", "computed_rows", "forwards", "has_commits", "statuses") == {
        "existing_rows": 7, "computed_rows": 0, "forwards": 0, "has_commits": False,
        "statuses": {"embedding": {}},
    }  # fmt: skip


def test_a_changed_image_alone_is_computed_again(seen):
    assert of(seen["changed_row"], "computed_rows", "forwards", "changed") == {
        "computed_rows": 1, "forwards": 1, "changed": ["1.jpg"],
    }  # fmt: skip


def test_failed_rows_are_tried_again_by_their_status(seen):
    other, own = seen["retry"]
    assert (other["computed_rows"], own["computed_rows"]) == (0, 1)
    assert own["statuses"] == {"embedding": {"not_an_image": 1}}


def test_a_stream_computes_each_row_once(seen):
    assert seen["stream"] == {
        "seen": [STATUSES, STATUSES | {"of_the_second_run.jpg": "ok"}],
        "forwards": 6 + 1,
    }


def test_a_repeated_batch_of_ones_own_stream_is_written_once(seen, kind):
    # Where transactions can be read, a last commit without rows completes the batch.
    history = ["CREATE TABLE", "MERGE", *(["MERGE"] if kind == "classic" else [])]
    assert seen["own_batches"] == {"statuses": STATUSES, "history": history, "forwards": 6}


def test_only_a_classic_session_knows_what_its_tasks_spent(seen, kind):
    work = seen["first_write"]["work"]
    if kind == "classic":
        assert (work["process_count"], work["model_loads"] <= 1) == (1, True)
        assert work["model_seconds"] > 0
    else:
        assert work is None


def test_a_second_column_is_filled_in_without_computing_the_first(seen):
    second = seen["second_column"]
    assert second["planned"] == {"embedding": {}, "other": {"not filled in": 7}}
    assert second["statuses"] == {"embedding": {}, "other": ALL}
    assert of(second, "computed_rows", "forwards", "are_same", "are_kept") == {
        "computed_rows": 7, "forwards": 6, "are_same": True, "are_kept": True,
    }  # fmt: skip


def test_two_writers_at_once_write_no_key_twice(seen):
    both = seen["two_writers"]
    assert both["computed"] == [1, 1]
    assert "conflict with another writer" in both["log"]
    assert both["names"] == sorted([*STATUSES, "one.jpg", "other.jpg"])


def test_rows_that_the_source_has_no_more_are_removed_where_that_is_asked_for(seen):
    step = seen["delete_missing"]
    assert (step["kept"]["deleted_rows"], step["deleted"]["deleted_rows"]) == (0, 1)
    assert step["rows"] == sorted(set(seen["two_writers"]["names"]) - {"2.jpg"})


def test_a_filtered_source_is_known_by_its_plan(seen):
    step = seen["filtered_source"]
    assert "is filtered, limited or sampled; 7 rows of" in step["log"]
    assert step["log"].count("delete_missing: the source") == 1
    assert step["narrowed"] == [True] * 4
    assert step["whole"] == [False] * 3
    assert step["knows_files"]
    assert not step["knows_files_of_two"]


def test_a_source_of_two_sides_is_written_in_waves(seen):
    step = seen["source_of_two_sides"]
    # Two columns of each row.
    assert of(step, "source_rows", "existing_rows", "computed_rows", "forwards") == {
        "source_rows": 10, "existing_rows": 8, "computed_rows": 2, "forwards": 2 * 2,
    }  # fmt: skip
    assert step["statuses"] == {"embedding": {"ok": 2}, "other": {"ok": 2}}


def test_what_the_table_refuses_is_said_in_our_words(seen):
    assert (
        "CHECK constraint mine (NOT path LIKE '%huge%') violated); leave such rows out"
        in (seen["owners_constraint"])
    )
    assert "the table accepts only new rows, by its property delta.app" in seen["append_only"]
    for said in (seen["owners_constraint"], seen["append_only"]):
        assert "org.apache" not in said
