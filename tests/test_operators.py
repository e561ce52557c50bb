"""Operators are validated when they are created, and pickle unchanged."""

import copy
import dataclasses
import pickle
import traceback
from functools import partial

import pytest

from spark_vision import (
    ClipImageEmbedding,
    ClipImageTags,
    ClipTextEmbedding,
    ClipVectorTags,
    ImageLimits,
    ImageViTEmbedding,
    QwenVLImageUnderstanding,
)
from spark_vision.errors import InvalidOptionError
from spark_vision.operators import OPERATORS
from spark_vision.operators.options import options_of

EVERY_OPERATOR = [
    ImageViTEmbedding,
    ClipImageEmbedding,
    ClipTextEmbedding,
    partial(ClipImageTags, tags=["cat", "dog"]),
    partial(ClipVectorTags, tags=["cat", "dog"]),
    QwenVLImageUnderstanding,
]


def test_defaults_are_those_of_the_operators_that_users_migrate_from():
    operator = ImageViTEmbedding()
    expected = {
        "image_src_type": "image_url",
        "dtype": "float32",
        "batch_size": 32,
        "model_path": "/opt/las/models",
        "model_name": "facebook/dinov2-large",
        "use_cls_token_embedding": True,
        "rank": 0,
    }
    assert {name: getattr(operator, name) for name in expected} == expected
    assert ClipImageEmbedding().model_name == "openai/clip-vit-base-patch32"
    qwen = QwenVLImageUnderstanding()
    expected = {
        "image_src_type": "image_url",
        "model_path": "/opt/las/models",
        "model_name": "Qwen/Qwen2.5-VL-7B-Instruct",
        "prompt": "请给出这张图片的详细描述。",
        "batch_size": 4,
        "dtype": "bfloat16",
        "use_flash_attention_2": True,
        "max_caption_length": 256,
        "resized_height": None,
        "resized_width": None,
        "do_sample": False,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "rank": None,
        "min_pixels": None,
        "max_pixels": None,
        "repetition_penalty": None,
        "seed": 0,
    }
    assert {name: getattr(qwen, name) for name in expected} == expected


@pytest.mark.parametrize("operator_class", EVERY_OPERATOR)
def test_operators_are_frozen_hashable_and_picklable(operator_class):
    operator = operator_class(batch_size=7)
    assert pickle.loads(pickle.dumps(operator)) == operator
    assert hash(operator) == hash(operator_class(batch_size=7))
    with pytest.raises(dataclasses.FrozenInstanceError):
        operator.batch_size = 8
    with pytest.raises(TypeError):
        operator_class("float32")


def test_structured_options_are_frozen_with_their_operator():
    settings = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5]}
    operator = ImageViTEmbedding(image_processor_kwargs=settings, limits={"max_bytes": 10})
    settings["size"]["height"] = 99
    assert operator.image_processor_kwargs["size"]["height"] == 32
    assert operator.limits == ImageLimits(max_bytes=10)
    assert operator.image_processor_kwargs.thaw()["image_mean"] == [0.5, 0.5, 0.5]
    assert pickle.loads(pickle.dumps(operator)) == operator
    assert hash(operator) == hash(pickle.loads(pickle.dumps(operator)))


@pytest.mark.parametrize(
    ("options", "field", "expected"),
    [
        ({"prompt": " "}, "prompt", "non-empty string, or none"),
        ({"max_caption_length": 0}, "max_caption_length", "at least 1"),
        ({"resized_height": 100}, "resized_height", "both or neither"),
        ({"resized_width": 100}, "resized_height", "both or neither"),
        ({"resized_height": 28, "resized_width": 8400}, "resized_height", "200 times the other"),
        ({"prompt": "\ud800"}, "prompt", "UTF-8"),
        ({"min_pixels": 100, "max_pixels": 99}, "min_pixels", "at most max_pixels"),
        ({"temperature": 0}, "temperature", "above 0"),
        ({"top_k": -1}, "top_k", "at least 0"),
        ({"top_p": 1.5}, "top_p", "at most 1"),
        ({"repetition_penalty": 0}, "repetition_penalty", "above 0, or none"),
        ({"seed": -1}, "seed", "at least 0"),
    ],
)
def test_a_refused_caption_option_names_the_allowed_values(options, field, expected):
    with pytest.raises(
        InvalidOptionError, match=rf"QwenVLImageUnderstanding\.{field} got"
    ) as raised:
        QwenVLImageUnderstanding(**options)
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("options", "field", "expected"),
    [
        ({"dtype": "fp8"}, "dtype", "float32, tf32, float16, bfloat16, auto"),
        ({"batch_size": 0}, "batch_size", "at least 1"),
        ({"batch_size": 2.5}, "batch_size", "an integer"),
        ({"batch_size": True}, "batch_size", "an integer"),
        ({"image_src_type": "file"}, "image_src_type", "image_url, image_base64, image_binary"),
        ({"pooling": "max"}, "pooling", "cls, mean, pooler, tokens, or none"),
        ({"use_cls_token_embedding": "yes"}, "use_cls_token_embedding", "true or false"),
        ({"device": "gpu"}, "device", "auto, cuda, cpu"),
        ({"rank": -1}, "rank", "at least 0"),
        ({"on_error": "skip"}, "on_error", "null, zero, raise"),
        ({"model_name": "  "}, "model_name", "non-empty string"),
        ({"model_sharing": "host"}, "model_sharing", "worker"),
        ({"limits": {"max_byte": 1}}, "limits", "max_bytes"),
        ({"limits": 5}, "limits", "ImageLimits"),
        ({"image_processor_kwargs": [1]}, "image_processor_kwargs", "a mapping"),
        ({"image_processor_kwargs": {"size": {1, 2}}}, "image_processor_kwargs", "JSON"),
        ({"on_error": "zero", "pooling": "tokens"}, "on_error", "null, raise"),
        ({"allow_hosts": 5}, "allow_hosts", "a list of strings"),
        ({"allow_hosts": ["a", " "]}, "allow_hosts", "a list of strings"),
        ({"allow_hosts": {"a": 1}}, "allow_hosts", "a list of strings"),
        ({"allow_hosts": "http://a.example"}, "allow_hosts", "without scheme, port, path"),
        ({"allow_hosts": "a.example:80"}, "allow_hosts", "without scheme, port, path"),
        ({"allow_hosts": "a.example/x"}, "allow_hosts", "without scheme, port, path"),
        ({"allow_hosts": "*.example"}, "allow_hosts", "wildcard"),
        ({"allow_hosts": ["a.example", "a..b"]}, "allow_hosts", "'a..b'"),
        ({"allow_hosts": "10.0.0.0/8"}, "allow_hosts", "without scheme, port, path"),
        ({"allow_hosts": "ｌocal"}, "allow_hosts", "exact host names"),
        ({"allow_networks": "10.0.0.1/8"}, "allow_networks", "host bits set"),
        ({"allow_networks": ["10.0.0.0/8", "corp"]}, "allow_networks", "'corp'"),
        ({"allow_networks": "10.0.0.0/33"}, "allow_networks", "CIDR"),
        ({"allow_networks": "::ffff:10.0.0.0/104"}, "allow_networks", "that IPv4 network"),
        ({"allow_networks": "64:ff9b::/96"}, "allow_networks", "that IPv4 network"),
    ],
)
def test_a_refused_value_is_named_with_its_field_and_the_allowed_values(options, field, expected):
    with pytest.raises(InvalidOptionError, match=f"ImageViTEmbedding.{field}") as raised:
        ImageViTEmbedding(**options)
    assert expected in str(raised.value)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize(
    "options",
    [
        {"max_bytes": 0},
        {"max_pixels": -1},
        {"fetch_seconds": 0},
        {"fetch_seconds": float("inf")},
        {"fetch_concurrency": 0},
        {"host_concurrency": 0},
    ],
)
def test_limits_are_validated(options):
    with pytest.raises(InvalidOptionError, match=f"ImageLimits.{next(iter(options))}"):
        ImageLimits(**options)


def test_a_task_with_more_cores_fetches_more_at_a_time_up_to_a_bound():
    limits = ImageLimits(fetch_concurrency=20, host_concurrency=8)
    assert limits.for_cores(1) == limits
    assert limits.for_cores(4) == ImageLimits(fetch_concurrency=80, host_concurrency=32)
    assert limits.for_cores(64).fetch_concurrency == 512
    assert ImageLimits(fetch_concurrency=600).for_cores(2).fetch_concurrency == 600


def test_hosts_and_networks_are_normalized():
    operator = ImageViTEmbedding(
        allow_hosts=["Photos.Example.", "bücher.example", "[FD12:0::1]", "10.0.0.5", "cdn_1"],
        allow_networks=["10.0.0.0/8", "192.168.0.7", "FD12:3456::/32", "::/0"],
    )
    assert operator.allow_hosts == (
        "photos.example", "xn--bcher-kva.example", "fd12::1", "10.0.0.5", "cdn_1",
    )  # fmt: skip
    assert operator.allow_networks == ("10.0.0.0/8", "192.168.0.7/32", "fd12:3456::/32", "::/0")
    assert pickle.loads(pickle.dumps(operator)) == operator


def test_storage_options_are_in_no_repr_and_no_error():
    operator = ImageViTEmbedding(storage_options={"secret": "hunter2"})
    assert operator.storage_options["secret"] == "hunter2"
    assert "hunter2" not in repr(operator)
    assert "hunter2" not in str(operator)
    with pytest.raises(InvalidOptionError) as raised:
        ImageViTEmbedding(storage_options="hunter2")
    assert "hunter2" not in str(raised.value)


def test_no_representation_of_storage_options_shows_a_value_at_any_depth():
    operator = ImageViTEmbedding(
        storage_options={"key": "hunter2", "client": {"proxies": [{"password": "hunter2"}]}}
    )
    options = operator.storage_options
    held = [options, options["client"], options["client"]["proxies"], operator, ImageLimits()]
    held += [dataclasses.asdict(operator), dataclasses.astuple(operator), vars(operator)]
    held += [pickle.loads(pickle.dumps(operator)).storage_options, copy.deepcopy(options)]
    for each in held:
        for text in (repr(each), str(each), f"{each}"):
            assert "hunter2" not in text
    assert options.thaw()["client"] == {"proxies": [{"password": "hunter2"}]}
    assert pickle.loads(pickle.dumps(operator)) == operator
    assert hash(pickle.loads(pickle.dumps(operator))) == hash(operator)


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": object(), "other": "hunter2"},
        {"key": b"hunter2"},
        {"key": ["hunter2", {"nested": b"hunter2"}]},
        {1: "hunter2"},
        ["hunter2"],
    ],
)
def test_invalid_storage_options_are_not_shown_in_a_traceback(wrong):
    with pytest.raises(InvalidOptionError) as raised:
        ImageViTEmbedding(storage_options=wrong)
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("text", ['{"key": "hunter2"', "@hunter2", "hunter2", '["hunter2"]'])
def test_unparsable_storage_options_are_not_shown_in_a_traceback(text):
    option = next(each for each in options_of(ImageViTEmbedding) if each.name == "storage_options")
    with pytest.raises(InvalidOptionError) as raised:
        option.parse("ImageViTEmbedding", text)
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


def test_openai_names_are_translated_and_its_resnets_refused():
    operator = ClipImageEmbedding(model_name="ViT-L/14@336px")
    assert operator.checkpoint_name == "openai/clip-vit-large-patch14-336"
    assert operator.model_name == "ViT-L/14@336px"
    for name in ("RN50", "RN50x64"):
        with pytest.raises(InvalidOptionError, match="ResNet"):
            ClipTextEmbedding(model_name=name)


def test_pooling_follows_use_cls_token_embedding_until_it_is_given():
    assert ImageViTEmbedding().effective_pooling == "cls"
    assert ImageViTEmbedding(use_cls_token_embedding=False).effective_pooling == "mean"
    assert ImageViTEmbedding(pooling="tokens").effective_pooling == "tokens"


@pytest.mark.parametrize("operator_class", OPERATORS.values())
def test_every_option_is_declared_with_help_and_reads_its_own_default(operator_class):
    for option in options_of(operator_class):
        assert option.help.endswith(".")
        assert option.describe_allowed()
        if option.default is None or isinstance(option.default, str | int | float):
            text = "none" if option.default is None else str(option.default)
            assert option.parse("x", text) == option.default


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("use_cls_token_embedding", "FALSE", False),
        ("batch_size", "12", 12),
        ("rank", "none", None),
        ("limits", '{"max_pixels": 5}', ImageLimits(max_pixels=5)),
        ("image_processor_kwargs", '{"size": {"height": 8}}', {"size": {"height": 8}}),
        ("allow_hosts", "a.example", ("a.example",)),
        ("allow_hosts", '["a.example", "b.example"]', ("a.example", "b.example")),
    ],
)
def test_options_are_parsed_from_text(field, text, value):
    option = next(each for each in options_of(ImageViTEmbedding) if each.name == field)
    parsed = option.parse("ImageViTEmbedding", text)
    assert parsed == value


@pytest.mark.parametrize(
    ("field", "text"), [("batch_size", "many"), ("limits", "{"), ("normalize", "maybe")]
)
def test_text_that_is_not_a_value_is_refused(field, text):
    option = next(each for each in options_of(ImageViTEmbedding) if each.name == field)
    with pytest.raises(InvalidOptionError, match=field):
        option.parse("ImageViTEmbedding", text)


def test_secrets_are_read_from_a_file(tmp_path):
    path = tmp_path / "storage.json"
    path.write_text('{"key": "hunter2"}')
    option = next(each for each in options_of(ImageViTEmbedding) if each.name == "storage_options")
    assert option.parse("ImageViTEmbedding", f"@{path}")["key"] == "hunter2"
    with pytest.raises(InvalidOptionError):
        option.parse("ImageViTEmbedding", "@/no/such/file.json")


def test_a_prompt_that_no_row_could_have_is_refused_on_the_driver():
    with pytest.raises(InvalidOptionError, match="131,073 characters; allowed: at most 131,072"):
        QwenVLImageUnderstanding(prompt="x" * 131_073)


@pytest.mark.parametrize("kind", [ClipImageTags, ClipVectorTags])
@pytest.mark.parametrize(
    ("options", "field", "expected"),
    [
        ({}, "tags", "got no tag; allowed: one or more strings"),
        ({"tags": []}, "tags", "got no tag"),
        ({"tags": ["cat", "dog", "cat"]}, "tags", "got 'cat' twice; allowed: each tag once"),
        ({"tags": ["cat", " "]}, "tags", "a list of strings"),
        ({"tags": ["cat", 5]}, "tags", "a list of strings"),
        ({"tags": ["cat", None]}, "tags", "a list of strings"),
        ({"tags": {"cat": 1}}, "tags", "a list of strings"),
        ({"tags": None}, "tags", "a list of strings"),
        ({"tags": "a", "template": "a photo"}, "template", "a text with {} in the place"),
        ({"tags": "a", "template": "{0} {tag}"}, "template", "a text with {} in the place"),
        ({"tags": "a", "template": " "}, "template", "a non-empty string"),
        ({"tags": "a", "top_k": 0}, "top_k", "an integer, at least 1"),
        ({"tags": "a", "top_k": 1.5}, "top_k", "an integer, at least 1"),
        ({"tags": "a", "model_name": "RN50"}, "model_name", "ResNet"),
    ],
)
def test_a_refused_option_of_tags_names_the_allowed_values(kind, options, field, expected):
    with pytest.raises(InvalidOptionError, match=rf"{kind.__name__}\.{field} got") as raised:
        kind(**options)
    assert expected in str(raised.value)


def test_a_tag_that_utf_8_cannot_encode_is_refused():
    with pytest.raises(InvalidOptionError, match=r"a photo of a \\ud800.*UTF-8"):
        ClipImageTags(tags=["\ud800"])


def test_the_text_of_a_tag_is_the_template_with_the_tag_in_every_place():
    tags = ClipImageTags(tags=["cat", "{} {0}", "一只猫"], template="{}: a {} of {x}")
    assert tags.class_texts == (
        "cat: a cat of {x}", "{} {0}: a {} {0} of {x}", "一只猫: a 一只猫 of {x}",
    )  # fmt: skip


def test_an_operator_converts_to_another_class_with_the_options_that_both_have():
    clip = ClipImageEmbedding(
        model_name="ViT-B/32", batch_size=7, allow_paths="/data", storage_options={"key": "secret"}
    )
    tags = clip.convert(ClipImageTags, tags=["cat"], batch_size=8)
    assert (tags.model_name, tags.batch_size, tags.tags) == ("ViT-B/32", 8, ("cat",))
    assert tags.reading_options == clip.reading_options
    assert tags.convert(ClipImageEmbedding, batch_size=7) == clip
    assert "secret" not in repr(tags)
