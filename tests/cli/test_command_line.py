"""Operators on a command line: every option is there, is parsed, and keeps its secrets."""

import argparse
import json
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from spark_vision.cli.command_line import (
    JobParser,
    add_option_arguments,
    options_in,
    parse_function,
    parse_functions,
)
from spark_vision.cli.table_job import allow_input
from spark_vision.errors import InvalidOptionError
from spark_vision.operators import (
    OPERATORS,
    ClipImageEmbedding,
    ClipTextEmbedding,
    ImageLimits,
    ImageViTEmbedding,
    TagOperator,
)
from spark_vision.operators.options import options_of


def parse(operator, *texts):
    parser = JobParser()
    add_option_arguments(parser, operator)
    return operator(**options_in(parser.parse_args(texts), operator))


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_help_names_every_option(operator):
    parser = argparse.ArgumentParser()
    add_option_arguments(parser, operator)
    shown = parser.format_help()
    for option in options_of(operator):
        assert f"--{option.name.replace('_', '-')}" in shown
        assert option.help.split()[0] in shown


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_no_arguments_give_the_operators_own_defaults(operator):
    if issubclass(operator, TagOperator):
        assert parse(operator, "--tag=cat", "--tag=dog") == operator(tags=["cat", "dog"])
        assert parse(operator, '--tags=["cat", "dog"]') == operator(tags=["cat", "dog"])
    else:
        assert parse(operator) == operator()


def test_each_kind_of_value_is_parsed(tmp_path):
    options = tmp_path / "options.json"
    options.write_text(json.dumps({"key": "k", "secret": "s"}))
    operator = parse(
        ImageViTEmbedding,
        "--batch-size=8",
        "--dtype=bfloat16",
        "--no-use-cls-token-embedding",
        "--model-path=none",
        "--rank=none",
        '--limits={"max_bytes": 5, "fetch_seconds": 2}',
        '--image-processor-kwargs={"size": {"shortest_edge": 32}}',
        f"--storage-options=@{options}",
    )
    assert operator == ImageViTEmbedding(
        batch_size=8,
        dtype="bfloat16",
        use_cls_token_embedding=False,
        model_path=None,
        rank=None,
        limits=ImageLimits(max_bytes=5, fetch_seconds=2.0),
        image_processor_kwargs={"size": {"shortest_edge": 32}},
        storage_options={"key": "k", "secret": "s"},
    )


def test_a_wrong_value_is_a_usage_error_that_says_what_is_allowed(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(ImageViTEmbedding, "--dtype=float12")
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "float12" in error
    assert "float32, tf32, float16, bfloat16, auto" in error


def test_a_wrong_secret_is_not_shown(capsys):
    with pytest.raises(SystemExit):
        parse(ImageViTEmbedding, "--storage-options=hunter2")
    assert "hunter2" not in capsys.readouterr().err


def test_a_function_is_a_name_and_an_operator():
    assert parse_function("embed=ImageViTEmbedding") == ("embed", ImageViTEmbedding())


def test_commas_inside_json_do_not_separate_fields():
    name, operator = parse_function(
        'e=ClipImageEmbedding:image_processor_kwargs={"a": 1, "b": [2, 3]},'
        "model_name=ViT-L/14@336px,dtype=bfloat16"
    )
    assert name == "e"
    assert operator == ClipImageEmbedding(
        image_processor_kwargs={"a": 1, "b": [2, 3]},
        model_name="ViT-L/14@336px",
        dtype="bfloat16",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("embed", "name=Operator"),
        ("embed=Resnet", "ImageViTEmbedding, ClipImageEmbedding, ClipTextEmbedding"),
        ("embed=ClipTextEmbedding:pooling=cls", "dtype, batch_size, model_path, model_name"),
        ("embed=ImageViTEmbedding:dtype=float12", "float32, tf32, float16, bfloat16, auto"),
        ("embed=ImageViTEmbedding:dtype", "no field 'dtype'"),
        ("embed=ImageViTEmbedding:rank=1,rank=2", "rank is given twice"),
    ],
)
def test_a_wrong_function_says_what_is_allowed(text, said):
    with pytest.raises(InvalidOptionError, match=said):
        parse_function(text)


def test_two_functions_of_one_name_are_refused():
    with pytest.raises(InvalidOptionError, match="given twice"):
        parse_functions(["e=ImageViTEmbedding", "e=ClipTextEmbedding"])


def test_a_wrong_function_does_not_show_its_secrets():
    with pytest.raises(InvalidOptionError) as caught:
        parse_function("embed=ImageViTEmbedding:storage_options=hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "texts",
    [
        ['--storage-options={"key": "hunter2"'],
        ["--storage-options", "{key:", "hunter2}"],
        ["--storage-options=@hunter2"],
        ['--storage-options=@{"key": "hunter2"}'],
        ['--storage-options=["hunter2"]'],
        ['--storage-options={"key": {"secret": "hunter2"}'],
        ['--storage-option={"key": "hunter2"}'],
        ["--storage-option", '{"key": "hunter2"}'],
        ["--storage_options=hunter2"],
        ["-storage-options:hunter2"],
        ["hunter2"],
        ["--rank=https://user:hunter2@host"],
        ["--allow-paths=s3://key:hunter2@bucket/photos"],
        ["--allow-paths=s3://hunter2@bucket/photos"],
    ],
)
def test_no_error_of_a_command_line_repeats_a_secret(texts, capsys):
    with pytest.raises((SystemExit, InvalidOptionError)) as caught:
        parse(ImageViTEmbedding, *texts)
    said = capsys.readouterr()
    assert "hunter2" not in said.out + said.err + str(caught.value)


def test_a_misspelled_option_is_named(capsys):
    with pytest.raises(SystemExit):
        parse(ImageViTEmbedding, "--storage-option={}", "--colour", "red")
    assert "unrecognized arguments: --storage-option, --colour, …" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fields",
    [
        'storage_options={"key": "hunter2"',
        'storage_options={"conn": "a,hunter2=b"',
        'storage_options:{"key": "hunter2"}',
        "hunter2",
        "Key-hunter2=1",
        "rank=1,storage_options=hunter2",
        'storage_options={"a": 1},storage_options={"key": "hunter2"}',
        "storage_options=@hunter2",
    ],
)
def test_no_error_of_a_function_repeats_a_secret(fields):
    with pytest.raises(InvalidOptionError) as caught:
        parse_function(f"embed=ImageViTEmbedding:{fields}")
    told = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in told.replace(fields, "")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "roots"),
    [
        ("/data/photos", ("/data/photos",)),
        ("/data/photos/*/2024-??/{a,b}*.jpg", ("/data/photos",)),
        ("/data/pho*", ("/data",)),
        ("/*.jpg", ()),
        ("/", ()),
        ("./photos", (str(Path.cwd() / "photos"),)),
        ("s3a://bucket/photos/*.jpg", ("s3://bucket/photos",)),
        ("hdfs:/data/photos", ("hdfs:///data/photos",)),
        ("file:/data/photos", ("/data/photos",)),
        ("dbfs:/data/photos", ()),
        ("lake.photos", ()),
        ("delta.`/data/photos`", ()),
    ],
)
def test_a_jobs_input_folder_is_a_root(place, roots):
    assert allow_input(ImageViTEmbedding(), place).allow_paths == roots
    named = allow_input(ImageViTEmbedding(allow_paths="/named"), place).allow_paths
    assert named == ("/named", *roots)


def test_an_operator_over_texts_has_no_roots():
    assert allow_input(ClipTextEmbedding(), "/data/photos") == ClipTextEmbedding()


def test_importing_costs_neither_spark_nor_torch():
    code = (
        "import sys; from spark_vision.cli import command_line, job, statements;"
        "sys.exit(bool({'pyspark', 'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
