"""What a message shows of an address: host and path, and nothing that may be secret."""

import base64
import json
import random

import pytest

from spark_vision.errors import RowFailure
from spark_vision.images.fetch import Fetcher
from spark_vision.images.urls import redact, redact_text
from spark_vision.operators import ImageViTEmbedding
from spark_vision.operators.locations import parse_scheme

SECRET = "hUnter2Geheim"


@pytest.mark.parametrize(
    "address",
    [
        "https://host/a/b.png",
        "https://host:8080/a.jpg",
        "https://[::1]:80/a",
        "https://cdn.example.com/photo@2x.png",
        "http://例子.cn/图片.png",
        "s3://bucket/a@2x.png",
        "s3a://bucket/date=2024-01-01/a b.png",
        "abfss://container@account.dfs.core.windows.net/a.png",
        "hdfs:/data/a.png",
        "hdfs:///data/a.png",
        "hdfs://namenode:8020/data/a.png",
        "file:/data/a.png",
        "file:///data/a.png",
        "dbfs:/data/a.png",
        "/data/photo@2x.png",
        "/data/@eaDir/a.jpg",
        "/data/what's 100% (1).png",
        "/data/3f2a0c9e-5b1d-4a37-9d52-0e8f1c2b3a4d/missing",
        "/data/country=DE/a.png",
        "photo@2x.png",
        "folder/图片.jpeg",
        "./missing.png",
        "5f4dcc3b5aa765d61d8327deb882cf995f4dcc3b5aa765d61d8327deb882cf99.jpg",
        "",
    ],
)
def test_ordinary_addresses_are_shown_whole(address):
    assert redact(address) == address


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"https://host:8080/a?token={SECRET}", "https://host:8080/a"),
        (f"https://host/a#{SECRET}", "https://host/a"),
        (f"https://host?{SECRET}", "https://host"),
        (f"https://user:{SECRET}@host/a", "https://host/a"),
        (f"https://{SECRET}@host:1/a", "https://host:1/a"),
        (f"https://user:{SECRET}@x@host/a", "https://host/a"),
        (f"https://user:{SECRET}@[::1]/a", "https://[::1]/a"),
        (f"s3://key:{SECRET}@bucket/a@2x.png", "s3://bucket/a@2x.png"),
        (f"host/a.png?X-Amz-Signature={SECRET}", "host/a.png"),
        (f"/data/a.png;sig={SECRET}", "/data/a.png"),
        (f"https://host/a.png%3Ftoken={SECRET}", "https://host/a.png"),
        (f"https://host/a.png&token={SECRET}", "https://host/a.png"),
        (f"https://host/token={SECRET}/a.png", "https://host/…"),
        (f"/data/password={SECRET}/a.png", "/data/…"),
        (f"carrier-pigeon://user:{SECRET}@loft/a?{SECRET}", "carrier-pigeon://loft/a"),
        ("data:image/png;base64,AAAA", "data:…"),
        ("http://host/\x1b[31ma\u202e.png", "http://host/\ufffd[31ma\ufffd.png"),
    ],
)
def test_credentials_queries_and_fragments_are_cut(address, shown):
    assert redact(address) == shown


@pytest.mark.parametrize(
    "address",
    [
        f"http:///u:{SECRET}@h/a.png",
        f"http:\\\\u:{SECRET}@h/a.png",
        f"https:u:{SECRET}/x@h/a.png",
        f"https:/u:{SECRET}@h/a.png",
        f"https:////u:{SECRET}@h/a.png",
        f"https://u/{SECRET}@h/a.png",
        f"https://u:{SECRET}/@h/a.png",
        f"https://u:12/{SECRET}@h/a.png",
        f"https://u?{SECRET}@h/a.png",
        f"https://u:12/{SECRET}@2x.png",
        f"https://u:{SECRET}",
        f"file:u:{SECRET}@h/a.png",
        f"hdfs:/u:{SECRET}@h/a.png",
        f"//u:{SECRET}@h/a.png",
        f"u:{SECRET}@h/a.png",
        f"\u200bhttp://u:{SECRET}@h/a.png",
        f" \thttp://u:{SECRET}@h/a.png",
        f"jdbc:mysql://u:{SECRET}@h/a.png",
        f"zip://a::https://u:{SECRET}@h/b.zip",
        f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={SECRET};EndpointSuffix=x.net",
        f"user=a password={SECRET} host=b.png",
        f"postgresql://h/db?user=u&password={SECRET}",
        json.dumps({"key": "a", "secret": SECRET, "file": "a.png"}),
        f"key: {SECRET}",
        f"Bearer {SECRET}",
        SECRET,
        f"/9j/4AAQ{SECRET}SkZJRgABAQ" * 4,
        base64.b64encode(SECRET.encode() * 20).decode(),
        f"https://h/{'a' * 5000}?{SECRET}",
    ],
)
def test_what_may_hold_a_secret_is_not_shown(address):
    shown = redact(address)
    assert SECRET not in shown
    assert "…" in shown or shown.startswith(("https://host", "postgresql://h/db", "http://h"))


def mutated(random_, secret):
    """An address with a secret at a possible place, in an unexpected spelling."""
    schemes = ["http", "HTTPS", "s3", "s3a", "ftp", "abfss", "hdfs", "file", "x-y", ""]
    noises = ["", "/", "?", "#", "@", ":", ";", "&", "=", "\\", " ", "%2F", "é", "12/"]
    scheme = random_.choice(schemes)
    colon = ":" * bool(scheme)
    if random_.random() < 0.2:
        colon = random_.choice([":", "::", "", "：", "%3A"])
    slashes = random_.choice(["//", "/", "", "///", "////", "\\\\", "\\", "/\\", "//"])
    user = random_.choice(["", "user", "a.b", "user%40x", "12"])
    noise = random_.choice(noises)
    host = random_.choice(["host", "host:80", "[::1]", "1.2.3.4", "bücher.de", "h"])
    path = random_.choice(["", "/", "/a.png", "/a b/c.jpg", "/a@2x.png", "//a", "/%2e%2e/a.gif"])
    start = scheme + colon + slashes
    whole = [
        f"{start}{user}:{noise}{secret}@{host}{path}",
        f"{start}{user}:{secret}{noise}@{host}{path}",
        f"{start}{host}{path}?{user}{noise}{secret}",
        f"{start}{host}{path}?sig={secret}{noise}",
        f"{start}{host}{path}#{noise}{secret}",
        f"{user}Account{noise}Key={secret};Host={host}",
        f"password={noise}{secret} host={host}{path}",
        f'{{"{user}": "{noise}{secret}", "path": "{path}"}}',
    ]
    return random_.choice(["", "", " ", "\t", "\u200b", "\ufeff"]) + random_.choice(whole)


def test_no_spelling_of_a_secret_is_shown():
    random_ = random.Random(14)
    for _ in range(20_000):
        secret = "S3cr" + random_.choice(["et", "/et", "+et=", "et!", "ét"]) + "Zz9"
        address = mutated(random_, secret)
        shown = redact(address)
        assert "S3cr" not in shown, (address, shown)
        assert "Zz9" not in shown, (address, shown)


def test_no_failure_of_a_row_shows_a_secret():
    random_ = random.Random(41)
    roots = ["/", "s3://host", "x-y://host"]
    fetcher = Fetcher(ImageViTEmbedding(allow_paths=roots, allow_schemes="x-y"))
    seen = set()
    for _ in range(3000):
        address = mutated(random_, "S3cretZz9")
        # These would be fetched; other tests check their messages.
        if (parse_scheme(address.strip()) or "").startswith("http"):
            continue
        with pytest.raises(RowFailure) as caught:
            fetcher.fetch(address)
        assert "S3cretZz9" not in str(caught.value), address
        assert caught.value.__cause__ is None
        seen.add(caught.value.reason.partition(":")[0])
    assert len(seen) > 3, seen


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"no path s3a://k:{SECRET}@bucket/a, sorry", "no path s3a://…@bucket/a, sorry"),
        (f"no path 's3a://{SECRET}@bucket/a@2x.png'", "no path 's3a://…@bucket/a@2x.png'"),
        ("no path abfss://c@account.net/a", "no path abfss://c@account.net/a"),
        ("no path s3a://bucket/a@2x.png", "no path s3a://bucket/a@2x.png"),
        ("mail me@example.com", "mail me@example.com"),
    ],
)
def test_urls_within_a_message_lose_their_users(text, shown):
    assert redact_text(text) == shown


@pytest.mark.parametrize("piece", ["a:/", "a:/:", "a:", ":@"])
def test_redacting_a_long_message_takes_linear_time(piece):
    assert redact_text(piece * 20_000) == piece * 20_000
