"""The jobs as people start them: by python, by the real spark-submit, and in a running session."""

import json
import os
import runpy
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

from encoded_images import encode, photo
from spark_vision import (
    ClipImageEmbedding,
    ImageViTEmbedding,
    QwenVLImageUnderstanding,
    caption_image,
    jobs,
    tag_image,
    write_vision_columns,
)
from spark_vision.spark.delta_jars import delta_package, find_delta_jars

ROOT = Path(__file__).parent.parent.parent
EMBED_IMAGES = str(ROOT / "jobs" / "embed_images.py")
CAPTION_IMAGES = str(ROOT / "jobs" / "caption_images.py")
INDEX_VECTORS = str(ROOT / "jobs" / "index_vectors.py")
TAG_IMAGES = str(ROOT / "jobs" / "tag_images.py")
RUN_SQL = str(ROOT / "jobs" / "run_sql.py")
SPARK_SUBMIT = str(Path(sys.executable).parent / "spark-submit")
SECONDS = 240


def run(*command, cwd):
    environment = {
        **os.environ,
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


def submit(*arguments, cwd, packages=True):
    options = ["--master", "local[2]", "--conf", "spark.ui.enabled=false"]
    jars = find_delta_jars()
    if packages and jars:
        options += ["--jars", ",".join(jars)]
    elif packages:
        options += ["--packages", delta_package()]
    return run(SPARK_SUBMIT, *options, *arguments, cwd=cwd)


@pytest.fixture
def call(spark, capfd):
    """Runs a job's `main` in this process, on the session that runs: exit code and output."""

    def call(job, *arguments):
        main = runpy.run_path(job)["main"]
        capfd.readouterr()
        code = main(list(map(str, arguments)))
        said = capfd.readouterr()
        # The session is not the job's.
        assert spark.range(1).count() == 1
        return subprocess.CompletedProcess([job], code, said.out, said.err)

    return call


def assert_one_clear_line(done, *said):
    assert done.returncode == 1, done.stderr
    # spark-submit gives what Python says on stderr to its own stdout.
    said_in_all = done.stdout + done.stderr
    errors = [line for line in said_in_all.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said_in_all
    for words in said:
        assert words in errors[0]
    assert "Traceback" not in said_in_all
    assert "\tat " not in said_in_all


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(4):
        (folder / f"{index}.jpg").write_bytes(encode(photo(48 + index, 40, seed=index), "JPEG"))
    (folder / "text.jpg").write_text("not an image")
    return folder


@pytest.mark.slow
def test_spark_submit_fills_a_table_of_a_catalog_that_persists(
    spark, photos, checkpoints, tmp_path
):
    done = submit(
        "--conf",
        "spark.sql.catalogImplementation=hive",
        "--conf",
        f"spark.sql.warehouse.dir={tmp_path / 'warehouse'}",
        EMBED_IMAGES,
        *("--input", str(photos), "--table", "photo_vectors", "--keep", "length"),
        *("--model-path", str(checkpoints), "--model-name", "dinov2", "--show", "2"),
        *("--report", "runs.jsonl"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (report,) = map(json.loads, (tmp_path / "runs.jsonl").read_text().splitlines())
    assert report["statuses"] == {"embedding": {"ok": 4, "not_an_image": 1}}
    assert report["work"]["model_loads"] == 1
    lines = done.stdout.splitlines()
    assert "rows: 5 in the input, 0 in the table before, 5 computed" in lines
    assert "embedding: ok 4, not_an_image 1" in lines
    assert any("rows/s" in line for line in lines)
    assert "text.jpg|not_an_image|NULL" in done.stdout.replace(" ", "")
    assert "100%, 5 of 5 rows, " in done.stdout
    rows = spark.read.format("delta").load(str(tmp_path / "warehouse" / "photo_vectors"))
    assert rows.filter("embedding_status = 'ok' AND size(embedding) = 48").count() == 4


@pytest.mark.slow
def test_spark_submit_without_delta_says_which_packages_to_give(photos, checkpoints, tmp_path):
    done = submit(
        EMBED_IMAGES,
        *("--input", str(photos), "--table", str(tmp_path / "vectors")),
        *("--model-name", str(checkpoints / "dinov2")),
        cwd=tmp_path,
        packages=False,
    )
    assert_one_clear_line(done, f"--packages {delta_package()}")


@pytest.mark.slow
def test_python_fills_a_table_from_a_table_by_clip(spark, photos, checkpoints, tmp_path):
    rows = [(index, file.read_bytes()) for index, file in enumerate(sorted(photos.iterdir()))]
    source = spark.createDataFrame(rows, "id int, image binary")
    source.write.format("delta").save(str(tmp_path / "source"))
    done = run(
        *(sys.executable, EMBED_IMAGES, "--input", "source", "--table", "./vectors"),
        *("--key", "id", "--image-column", "image", "--column", "clip"),
        *("--operator", "ClipImageEmbedding", "--model-name", str(checkpoints / "clip")),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "clip: ok 4, not_an_image 1" in done.stdout.splitlines()
    table = spark.read.format("delta").load(str(tmp_path / "vectors"))
    assert {row["id"] for row in table.filter("size(clip) = 24").collect()} == {0, 1, 2, 3}


@pytest.mark.slow
def test_rows_name_files_below_the_input_and_below_allowed_folders(
    spark, photos, checkpoints, tmp_path
):
    inside = tmp_path / "source" / "images" / "a.jpg"
    outside = tmp_path / "secret.jpg"
    files = [*sorted(photos.iterdir()), inside, outside]
    rows = [(index, str(file)) for index, file in enumerate([*files, "/etc/passwd"])]
    source = spark.createDataFrame(rows, "id int, url string")
    source.write.format("delta").save(str(tmp_path / "source"))
    inside.parent.mkdir()
    for file in (inside, outside):
        file.write_bytes((photos / "0.jpg").read_bytes())
    done = run(
        *(sys.executable, EMBED_IMAGES, "--input", "./source", "--table", "./vectors"),
        *("--key", "id", "--image-column", "url", "--model-name", str(checkpoints / "dinov2")),
        *("--allow-paths", "photos", "--storage-options", '{"key": "hunter2"}'),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    table = spark.read.format("delta").load(str(tmp_path / "vectors"))
    counted = dict(table.groupBy("embedding_status").count().collect())
    assert counted == {"ok": 5, "not_an_image": 1, "blocked": 2}
    errors = [row[0] for row in table.where("id > 5").select("embedding_error").collect()]
    assert all("allow_paths" in error for error in errors)
    written = b"".join(file.read_bytes() for file in (tmp_path / "vectors").rglob("*.json"))
    assert "hunter2" not in done.stdout + done.stderr + written.decode()


def test_a_stream_takes_files_in_batches_into_a_table(spark, photos, checkpoints, tmp_path, call):
    done = call(
        *(EMBED_IMAGES, "--input", photos, "--table", tmp_path / "vectors"),
        *("--model-name", checkpoints / "dinov2", "--stream", "--max-files", "3"),
        *("--rows-per-commit", "2", "--keep", "length"),
    )
    assert done.returncode == 0, done.stderr
    assert "batch 0: 3 rows" in done.stdout
    assert "batch 1: 2 rows" in done.stdout
    rows = spark.read.format("delta").load(str(tmp_path / "vectors"))
    assert rows.filter("embedding_status = 'ok' AND size(embedding) = 48").count() == 4
    assert (tmp_path / "vectors" / "_spark_vision_checkpoint" / "embedding" / "commits").exists()


def test_a_failure_on_an_executor_ends_in_one_clear_line(photos, checkpoints, tmp_path, call):
    done = call(
        *(EMBED_IMAGES, "--input", photos, "--table", tmp_path / "vectors"),
        *("--model-name", checkpoints / "dinov2", "--on-error", "raise"),
    )
    assert_one_clear_line(done, "not_an_image")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--input"),
        (
            ["--input", "a", "--table", "b", "--dtype", "float12"],
            "float32, tf32, float16, bfloat16, auto",
        ),
        (["--input", "a", "--table", "b", "--batch-size", "0"], "an integer, at least 1"),
        (["--input", "a", "--table", "b", "--operator", "Resnet"], "ImageViTEmbedding"),
        (
            ["--input", "a", "--table", "b", "--pooling", "tokens", "--on-error", "zero"],
            "allowed: null, raise",
        ),
        (["--input", "a", "--table", "b", "--nothing"], "--nothing"),
        (
            ["--input", "a", "--table", "b", "--processing-time", "1 minute"],
            "--processing-time needs --stream",
        ),
        (["--input", "a", "--table", "b", "--stream", "--recompute"], "--recompute"),
    ],
)
def test_a_wrong_usage_exits_with_2_and_says_what_is_allowed(arguments, said, tmp_path):
    done = run(sys.executable, EMBED_IMAGES, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("job", [EMBED_IMAGES, CAPTION_IMAGES, TAG_IMAGES, RUN_SQL])
def test_help_is_there_at_once_and_without_spark(job, tmp_path):
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{job!r}, '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'pyspark', 'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(3 if heavy else 0)"
    )
    done = run(sys.executable, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wanted = {
        EMBED_IMAGES: "--use-cls-token-embedding",
        CAPTION_IMAGES: "--max-caption-length",
        TAG_IMAGES: "--template",
        RUN_SQL: "--function",
    }
    assert wanted[job] in done.stdout


@pytest.mark.slow
def test_captions_answer_each_rows_prompt(spark, photos, checkpoints, tmp_path):
    questions = "CASE WHEN path LIKE '%1.jpg' THEN ' ' ELSE 'What is it?' END AS question"
    files = spark.read.format("binaryFile").load(str(photos))
    files.selectExpr("path", "content", questions).write.parquet(str(tmp_path / "asked"))
    done = submit(
        *(CAPTION_IMAGES, "--input", str(tmp_path / "asked"), "--key", "path"),
        *("--table", str(tmp_path / "captions"), "--model-name", str(checkpoints / "qwen")),
        *("--prompt", "图里有几个人?", "--prompt-column", "question", "--dtype", "float32"),
        *("--max-caption-length", "8", "--show", "1"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "not_an_image" in done.stdout
    rows = spark.read.format("delta").load(str(tmp_path / "captions")).collect()
    written = {row["path"].rsplit("/")[-1]: row["caption"] for row in rows}
    qwen = QwenVLImageUnderstanding(
        model_name=str(checkpoints / "qwen"), dtype="float32", max_caption_length=8
    )
    for name, prompt in (("0.jpg", "What is it?"), ("1.jpg", "图里有几个人?")):
        (row,) = files.where(f"path LIKE '%{name}'").select(
            caption_image("content", qwen, prompt)
        ).collect()  # fmt: skip
        assert written[name] == row[0]
    assert written["text.jpg"] is None


def test_captions_of_a_wrong_usage_exit_with_2(tmp_path):
    wrong = ("--input", "x", "--table", "y", "--resized-height", "100")
    done = run(sys.executable, CAPTION_IMAGES, *wrong, cwd=tmp_path)
    assert done.returncode == 2
    assert "allowed: both or neither" in done.stderr


def test_tags_are_written_and_shown_and_other_tags_refused(
    spark, photos, checkpoints, tmp_path, call
):
    job = (
        *(TAG_IMAGES, "--input", photos, "--table", tmp_path / "tags"),
        *("--model-name", checkpoints / "clip", "--top-k", "1"),
    )
    done = call(*job, "--tag", "tree", "--tag", "red circle", "--show", "5")
    assert done.returncode == 0, done.stderr
    assert "tags: ok 4, not_an_image 1" in done.stdout.splitlines()
    assert "[{tree, " in done.stdout or "[{red circle, " in done.stdout
    rows = spark.read.format("delta").load(str(tmp_path / "tags")).collect()
    given = {row["path"].rsplit("/")[-1]: row["tags"] for row in rows}
    clip = ClipImageEmbedding(model_name=str(checkpoints / "clip"))
    files = spark.read.format("binaryFile").load(str(photos))
    tagged = files.select("path", tag_image("content", clip, ["tree", "red circle"], top_k=1))
    expected = {path.rsplit("/")[-1]: tags for path, tags in tagged.collect()}
    assert given.pop("text.jpg") is expected.pop("text.jpg") is None
    for name, (best,) in given.items():
        assert best.tag == expected[name][0].tag
        assert best.score == pytest.approx(expected[name][0].score, abs=1e-5)
    again = call(*job, "--tags", '["tree", "red circle"]', "--dry-run")
    assert "tags: nothing" in again.stdout.splitlines()
    assert_one_clear_line(call(*job, "--tag", "tree"), "another column name")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "got no tag; allowed: one or more strings"),
        (["--tag", "a", "--tag", "a"], "got 'a' twice"),
        (["--tag", "a", "--template", "a photo"], "a text with {} in the place of the tag"),
        (["--tag", "a", "--top-k", "0"], "an integer, at least 1"),
    ],
)
def test_tags_of_a_wrong_usage_exit_with_2(arguments, said, tmp_path):
    done = run(sys.executable, TAG_IMAGES, "--input", "x", "--table", "y", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr


def test_sql_runs_with_several_functions_and_statements(photos, checkpoints, tmp_path, call):
    (tmp_path / "q.sql").write_text(
        f"CREATE TEMP VIEW photos AS SELECT * FROM binaryFile.`{photos}`; -- no rows; none shown\n"
        "SELECT size(image(content).embedding) AS dimension, count(*) AS number,\n"
        "  'a;b' AS text FROM photos GROUP BY ALL;\n"
        "SELECT size(words('a red circle').embedding) AS words_dimension\n"
    )
    done = call(
        *(RUN_SQL, "--file", tmp_path / "q.sql", "--with-status"),
        *("--function", f"image=ImageViTEmbedding:model_name={checkpoints / 'dinov2'}"),
        *("--function", f"words=ClipTextEmbedding:model_name={checkpoints / 'clip'},batch_size=4"),
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.replace(" ", "")
    assert "|48|4|a;b|" in shown
    assert "|words_dimension|\n+---------------+\n|24|" in shown


def test_sql_that_is_wrong_ends_in_one_clear_line_by_spark_submit(checkpoints, tmp_path):
    done = submit(
        *(RUN_SQL, "--query", "SELECT 1; SELECT nothing"),
        *("--function", f"image=ImageViTEmbedding:model_name={checkpoints / 'dinov2'}"),
        cwd=tmp_path,
    )
    assert_one_clear_line(done, "nothing")
    assert "|  1|" in done.stdout


def test_each_file_for_spark_submit_runs_the_packages_job_of_its_name():
    files = {file.stem: file for file in (ROOT / "jobs").glob("*.py")}
    assert files.keys() == {job.name for job in iter_modules(jobs.__path__)}
    for name, file in files.items():
        assert runpy.run_path(str(file))["main"] is import_module(f"{jobs.__name__}.{name}").main


def test_a_module_starts_spark_without_a_word(checkpoints, tmp_path):
    done = run(
        *(sys.executable, "-m", "spark_vision.jobs.run_sql", "--query", "SELECT 1 AS one"),
        *("--function", f"image=ImageViTEmbedding:model_name={checkpoints / 'dinov2'}"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "+---+\n|one|\n+---+\n|  1|\n+---+\n\n"
    assert done.stderr == ""


@pytest.mark.slow
def test_a_log_level_brings_sparks_own_lines_back(checkpoints, tmp_path):
    done = run(
        *(sys.executable, RUN_SQL, "--query", "SELECT 1 AS one", "--log-level", "INFO"),
        *("--function", f"image=ImageViTEmbedding:model_name={checkpoints / 'dinov2'}"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert 'Setting Spark log level to "INFO"' in done.stderr


def test_a_wrong_function_is_a_wrong_usage(tmp_path):
    done = run(
        *(sys.executable, RUN_SQL, "--query", "SELECT 1", "--function", "f=Resnet"), cwd=tmp_path
    )
    assert done.returncode == 2
    assert "ImageViTEmbedding" in done.stderr


def test_an_index_is_loaded_and_follows_the_table(spark, call, checkpoints, tmp_path, monkeypatch):
    table, file = str(tmp_path / "vectors"), tmp_path / "index.db"
    rows = [(f"{n}", encode(photo(48, 40, seed=n), "JPEG")) for n in range(3)]
    source = spark.createDataFrame(rows, "id string, content binary")
    dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    write_vision_columns(source, table, ["id"], {"embedding": dino})
    chosen = ["--table", table, "--column", "embedding", "--milvus", file, "--collection", "photos"]

    pauses, sleep = [], time.sleep

    def pause(seconds):
        if seconds != 2.25:
            return sleep(seconds)
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt
        return spark.sql(f"DELETE FROM delta.`{table}` WHERE id = '1'")

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", pause)
        done = call(INDEX_VECTORS, *chosen, "--follow", "--interval-seconds", 2.25)
    assert (done.returncode, pauses) == (130, [2.25, 2.25])
    first, second = done.stdout.splitlines()
    assert "(loaded whole): 3 rows written, 0 deleted" in first
    assert "0 rows written, 1 deleted" in second
    assert done.stderr.endswith("stopped\n")

    done = call(INDEX_VECTORS, *chosen)
    assert (done.returncode, done.stderr) == (0, "")
    assert "photos holds version" in done.stdout
    done = call(INDEX_VECTORS, *chosen, "--metadata", "embedding_status")
    assert_one_clear_line(done, "pass reload=True")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "one of the arguments --milvus --pinecone is required"),
        (["--milvus", "index.db"], "--milvus needs --collection"),
        (["--pinecone", "photos", "--collection", "c"], "--collection needs --milvus"),
        (["--milvus", "ftp://me:secret@h", "--collection", "c"], "uri got 'ftp://…@h'"),
        (["--pinecone", "photos", "--concurrency", "0"], "--concurrency must be 1 or more"),
        (["--pinecone", "photos", "--interval-seconds", "-1"], "must be 0 to 86,400"),
    ],
)
def test_an_index_that_is_not_named_is_a_usage_error(call, capfd, arguments, said):
    with pytest.raises(SystemExit) as ended:
        call(INDEX_VECTORS, "--table", "t", "--column", "embedding", *arguments)
    assert ended.value.code == 2
    assert said in capfd.readouterr().err
