"""What counts as a URL, which file a `file:` URL names, and what of an address a message shows."""

import pytest

from spark_vision.images.urls import path_of_file_url, redact, scheme_of


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
    assert scheme_of(address) == scheme


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
    assert path_of_file_url(url) == path


def test_file_url_of_another_host_is_refused():
    with pytest.raises(ValueError, match="another host"):
        path_of_file_url("file://server/share/a.png")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://host/a/b.png", "https://host/a/b.png"),
        ("https://host:8080/a?token=SECRET", "https://host:8080/a"),
        ("https://host/a#SECRET", "https://host/a"),
        ("https://host?SECRET", "https://host"),
        ("https://user:SECRET@host/a", "https://host/a"),
        ("https://SECRET@host:1/a", "https://host:1/a"),
        ("https://user:SEC@RET@host/a", "https://host/a"),
        ("https://user:SECRET/@host/a", "https://…"),
        ("https://[::1]:80/a?SECRET", "https://[::1]:80/a"),
        ("https://user:SECRET@[::1]/a", "https://[::1]/a"),
        ("s3://key:SECRET@bucket/a@2x.png", "s3://bucket/a@2x.png"),
        ("//user:SECRET@host/a", "//host/a"),
        ("user:SECRET@host/a?b", "host/a"),
        ("host/a.png?X-Amz-Signature=SECRET", "host/a.png"),
        ("/data/photo@2x.png", "/data/photo@2x.png"),
        ("photo@2x.png", "photo@2x.png"),
        ("data:image/png;base64,SECRET", "data:…"),
        ("zip://a::https://user:SECRET@host/b?SECRET", "zip://a::https://host/b"),
        ("\u200bhttp://user:SECRET@host/a", "\u200bhttp://…"),
        ("jdbc:mysql://user:SECRET@host", "jdbc:mysql://…"),
        ("", ""),
    ],
)
def test_message_shows_host_and_path_only(address, shown):
    assert redact(address) == shown


def test_no_spelling_of_credentials_is_shown():
    for scheme in ("https://", "s3://", "https:", "https:/", "//", ""):
        for credentials in ("user:SECRET@", "SECRET@", ":SECRET@", "user:SE/CRET:x@"):
            if credentials == "SECRET@" and "//" not in scheme:
                continue
            assert "SECRET" not in redact(f"{scheme}{credentials}host/a.png?k=SECRET#SECRET")
