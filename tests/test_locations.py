"""The locations and schemes that an operator may allow."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from spark_vision.errors import InvalidOptionError
from spark_vision.operators import ImageViTEmbedding
from spark_vision.operators.locations import (
    REFUSED_SCHEMES,
    parse_file_url,
    parse_scheme,
    parse_store_location,
)
from spark_vision.spark.driver_checks import ModelIdentity
from spark_vision.tables.identity import column_properties


@pytest.mark.parametrize(
    ("address", "scheme"),
    [
        ("/data/a.png", None),
        ("relative/a.png", None),
        ("a:b.png", None),
        ("12:30 lunch.png", None),
        ("C#/what? 100%.png", None),
        ("http://host/a", "http"),
        ("HTTPS://host/a", "https"),
        ("s3a://bucket/a", "s3a"),
        ("file:/a", "file"),
        ("file:///a", "file"),
        ("file:a", "file"),
        ("hdfs:/a", "hdfs"),
        ("data:image/png;base64,AA", "data"),
        ("zip://a.png::s3://bucket/b.zip", "zip"),
        ("simplecache::s3://bucket/a", "simplecache"),
        ("a::b.png", None),
        ("local:///a", "local"),
        ("", None),
    ],
)
def test_scheme(address, scheme):
    assert parse_scheme(address) == scheme


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:/a/b.png", "/a/b.png"),
        ("file:///a/b.png", "/a/b.png"),
        ("file://localhost/a/b.png", "/a/b.png"),
        ("file:a/b.png", "a/b.png"),
        ("file:///a%20b%23%3F%25.png", "/a b#?%.png"),
        ("file:///%E5%9B%BE.png", "/图.png"),
        ("file:/图 片.png", "/图 片.png"),
        ("file:/a#1?2.png", "/a#1?2.png"),
        ("FILE:///a", "/a"),
        ("local:///a%20b", "/a b"),
    ],
)
def test_file_url_names_a_path(url, path):
    assert parse_file_url(url) == path


def test_file_url_of_another_host_is_refused():
    with pytest.raises(ValueError, match="another host"):
        parse_file_url("file://server/share/a.png")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/data/photos", "/data/photos"),
        ("/data/photos/", "/data/photos"),
        ("//data//photos/./x/..", "/data/photos"),
        ("file:/data/my%20photos", "/data/my photos"),
        ("file:///data/photos", "/data/photos"),
        ("photos", str(Path.cwd() / "photos")),
        ("/", "/"),
        ("/dev/shm/photos", "/dev/shm/photos"),
        ("s3a://bucket/photos/", "s3://bucket/photos"),
        ("S3N://bucket", "s3://bucket/"),
        ("gs://bucket/a", "gcs://bucket/a"),
        ("az://container/a", "abfs://container/a"),
        ("abfss://c@account.dfs.core.windows.net/a", "abfs://c@account.dfs.core.windows.net/a"),
        ("oss://bucket/a", "oss://bucket/a"),
        ("tos://bucket/a", "tos://bucket/a"),
        ("hdfs://NameNode:8020/data", "hdfs://namenode:8020/data"),
        ("hdfs:///data", "hdfs:///data"),
        ("hdfs:/data", "hdfs:///data"),
        ("webhdfs://host:9870/data", "webhdfs://host:9870/data"),
    ],
)
def test_a_root_has_one_form(given, kept):
    operator = ImageViTEmbedding(allow_paths=given)
    assert operator.allow_paths == (kept,)
    assert replace(operator, batch_size=2).allow_paths == (kept,)
    assert operator == ImageViTEmbedding(allow_paths=[kept])
    assert pickle.loads(pickle.dumps(operator)) == operator
    assert kept in repr(operator)


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("http://host/photos", "allow_hosts"),
        ("https://host/", "allow_networks"),
        ("ftp://host/photos", "allow_schemes"),
        ("zip://a::/data/a.zip", "allow_schemes"),
        ("data:image/png;base64,AA", "allow_schemes"),
        ("s3://", "s3://name/prefix"),
        ("s3:///photos", "s3://name/prefix"),
        ("s3://bucket/../other", "s3://name/prefix"),
        ("s3://bucket/*", "globs"),
        ("s3://bucket/a?versionId=1", "queries"),
        ("s3://bucket/a::b", "s3://name/prefix"),
        ("s3://key:hunter2@bucket/a", "storage_options"),
        ("s3://hunter2@bucket/a", "storage_options"),
        ("hdfs://hunter2@namenode/a", "storage_options"),
        ("abfss://c:hunter2@account.net/a", "storage_options"),
        ("/data/*", "not a glob"),
        ("/data/\0", "a folder"),
        ("file://server/share", "a folder"),
        ("file://key:hunter2@server/share", "a folder"),
        ("http://key:hunter2@server/share", "allow_hosts"),
        ("/proc/self", "files are not data"),
        ("/data/../sys", "files are not data"),
        ("/dev", "files are not data"),
        ("/dev/shm/../sda", "files are not data"),
    ],
)
def test_an_invalid_root_is_refused_with_what_to_change(root, expected):
    with pytest.raises(InvalidOptionError, match=r"ImageViTEmbedding\.allow_paths got") as caught:
        ImageViTEmbedding(allow_paths=["/data", root])
    assert expected in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_schemes_are_names_in_lower_case():
    operator = ImageViTEmbedding(allow_schemes=["SFTP", "hf"], allow_paths="sftp://host/photos")
    assert operator.allow_schemes == ("sftp", "hf")
    assert operator.allow_paths == ("sftp://host/photos",)


def test_a_scheme_that_is_known_may_be_listed_again():
    assert ImageViTEmbedding(allow_schemes="s3 ").allow_schemes == ("s3",)


@pytest.mark.parametrize("scheme", [*REFUSED_SCHEMES, "Zip", "a::b", "ftp://", "a_b"])
def test_schemes_that_nest_or_let_the_string_choose_may_not_be_listed(scheme):
    with pytest.raises(InvalidOptionError, match="allow_schemes got"):
        ImageViTEmbedding(allow_schemes=[scheme])


def test_a_url_that_was_given_as_a_scheme_is_not_repeated():
    with pytest.raises(InvalidOptionError) as caught:
        ImageViTEmbedding(allow_schemes="sftp://user:hunter2@host")
    assert "hunter2" not in str(caught.value)


def test_every_nesting_scheme_of_fsspec_is_refused():
    from fsspec.implementations.chained import ChainedFileSystem
    from fsspec.registry import get_filesystem_class, known_implementations

    nesting = set()
    for scheme in known_implementations:
        try:
            kind = get_filesystem_class(scheme)
        except ImportError:
            continue
        if issubclass(kind, ChainedFileSystem) and "_" not in scheme:
            nesting.add(scheme)
    assert nesting
    assert nesting <= set(REFUSED_SCHEMES)


def test_access_options_do_not_change_a_column_identity():
    identity = ModelIdentity("dinov2", 768, "fingerprint")
    properties = [
        column_properties("v", operator, identity, ["v"], None)
        for operator in (
            ImageViTEmbedding(),
            ImageViTEmbedding(
                allow_paths=["/data", "sftp://host/a"],
                allow_schemes="sftp",
                allow_hosts="photos.example",
                allow_networks="10.0.0.0/8",
                storage_options={"key": "hunter2"},
            ),
        )
    ]
    assert properties[0] == properties[1]


def test_locations_are_compared_segment_by_segment():
    def location(url):
        found = parse_store_location(url)
        assert found is not None
        return found

    root = location("s3://bucket/a/b")
    assert location("s3a://bucket/a/b/c").is_below(root)
    assert location("s3://bucket/a/b").is_below(root)
    assert location("s3://bucket/a/b/").is_below(root)
    assert location("s3://bucket/x").is_below(location("s3://bucket/"))
    assert location("s3://bucket").is_below(location("s3://bucket"))
    for url in ("s3://bucket/a", "s3://bucket/a/bc", "s3://bucket/a//b/c", "gs://bucket/a/b/c"):
        assert not location(url).is_below(root)
