"""Operators on a command line: every option is there, is parsed, and keeps its secrets."""

import argparse
import json
import subprocess
import sys

import pytest

from spark_vision.command_line import (
    add_operator_arguments,
    operator_from_arguments,
    parse_function,
    parse_functions,
)
from spark_vision.errors import InvalidOptionError
from spark_vision.operators import (
    OPERATORS,
    ClipImageEmbedding,
    ImageLimits,
    ImageViTEmbedding,
)
from spark_vision.options import options_of


def parse(operator, *texts):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_operator_arguments(parser, operator)
    return operator_from_arguments(operator, parser.parse_args(texts))


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_help_names_every_option(operator):
    parser = argparse.ArgumentParser()
    add_operator_arguments(parser, operator)
    shown = parser.format_help()
    for option in options_of(operator):
        assert f"--{option.name.replace('_', '-')}" in shown
        assert option.help.split()[0] in shown


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_no_arguments_give_the_operators_own_defaults(operator):
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
    assert "float32, float16, bfloat16" in error


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
        ("embed=ImageViTEmbedding:dtype=float12", "float32, float16, bfloat16"),
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


def test_importing_costs_neither_spark_nor_torch():
    code = (
        "import sys, spark_vision.command_line, spark_vision.job, spark_vision.statements;"
        "sys.exit(bool({'pyspark', 'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
