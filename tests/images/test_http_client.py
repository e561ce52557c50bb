"""Fetching over HTTP from a real server: good, bad, slow, endless and missing responses."""

import gzip
import logging
import random
import resource
import socket
import threading
import time
import zlib
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from local_http_server import serve, status_answer
from spark_vision.errors import RowFailure, Status
from spark_vision.images.fetch import Fetcher
from spark_vision.operators import ImageLimits, ImageViTEmbedding

SECRETS = "alice:hunter2@"
QUERY = "?X-Amz-Signature=topsecret#hidden"
# Far more than any step takes on a busy machine, and half of what would be waited for wrongly.
LONG_SECONDS = 30


@pytest.fixture
def server():
    with serve() as local:
        yield local


@pytest.fixture
def make_fetcher(monkeypatch):
    monkeypatch.setattr("spark_vision.images.http_client._FIRST_DELAY_SECONDS", 0.02)
    made = []

    def make(allow_hosts=("127.0.0.1",), allow_networks=(), **limits):
        operator = ImageViTEmbedding(
            allow_hosts=allow_hosts,
            allow_networks=allow_networks,
            limits=ImageLimits(**{"fetch_seconds": 5.0, **limits}),
        )
        made.append(Fetcher(operator))
        return made[-1]

    yield make
    for fetcher in made:
        fetcher.close()


@pytest.fixture
def fetcher(make_fetcher):
    return make_fetcher()


def failure_of(fetcher, url, on_bytes=None):
    with pytest.raises(RowFailure) as caught:
        fetcher.fetch(url, on_bytes)
    error = caught.value
    for secret in ("alice", "hunter2", "topsecret", "X-Amz", "hidden"):
        assert secret not in str(error)
        assert secret not in repr(error.__cause__)
    return error


def test_body_is_fetched_whole(server, fetcher):
    body = bytes(range(256)) * 4000
    server.give("/a", body)
    assert fetcher.fetch(server.url("/a?size=large#top")) == body
    assert server.requests == ["/a?size=large"]


def test_spaces_around_a_url_are_ignored(server, fetcher):
    server.give("/a", b"image")
    assert fetcher.fetch(f" {server.url('/a')}\n") == b"image"


def test_user_and_password_of_the_url_are_sent(server, fetcher):
    server.give("/a", b"image")
    assert fetcher.fetch(server.url("/a", SECRETS)) == b"image"
    assert server.headers["Authorization"].startswith("Basic ")


def test_connections_are_pooled(server, fetcher):
    ports = set()

    def answer(request):
        ports.add(request.client_address[1])
        status_answer(200)(request)

    server.answers["/a"] = answer
    for _ in range(5):
        fetcher.fetch(server.url("/a"))
    assert len(ports) == 1


def test_cookies_of_one_row_are_not_sent_for_the_next(server, fetcher):
    server.give("/a", b"image", headers={"Set-Cookie": "session=1; Path=/"})
    fetcher.fetch(server.url("/a"))
    fetcher.fetch(server.url("/a"))
    assert "Cookie" not in server.headers


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 304])
def test_other_status_codes_are_reported_without_a_retry(server, fetcher, code):
    server.give("/a", b"" if code == 304 else b"no", status=code)
    failure = failure_of(fetcher, server.url("/a" + QUERY, SECRETS))
    assert failure.status == Status.HTTP_ERROR
    assert str(code) in failure.reason
    assert "127.0.0.1" in failure.reason
    assert "/a" in failure.reason
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [500, 429])
def test_temporary_failures_are_retried(server, fetcher, code):
    server.give("/good", b"image")
    server.give_in_turn("/a", status_answer(code), status_answer(code), server.answers["/good"])
    assert fetcher.fetch(server.url("/a")) == b"image"
    assert len(server.requests) == 3


def test_lasting_failures_are_reported_after_two_retries(server, fetcher):
    server.answers["/a"] = status_answer(503)
    failure = failure_of(fetcher, server.url("/a" + QUERY, SECRETS))
    assert failure.status == Status.HTTP_ERROR
    assert "503" in failure.reason
    assert len(server.requests) == 3


def test_retry_after_within_the_deadline_is_respected(server, make_fetcher):
    server.give("/good", b"image")
    server.give_in_turn("/a", status_answer(429, Retry_After="1"), server.answers["/good"])
    start = time.monotonic()
    assert make_fetcher(fetch_seconds=60).fetch(server.url("/a")) == b"image"
    assert 1.0 <= time.monotonic() - start < LONG_SECONDS


def test_retry_after_may_be_a_date(server, make_fetcher):
    server.give("/good", b"image")
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
    refused = status_answer(503, Retry_After=format_datetime(moment, usegmt=True))
    server.give_in_turn("/a", refused, server.answers["/good"])
    start = time.monotonic()
    assert make_fetcher(fetch_seconds=60).fetch(server.url("/a")) == b"image"
    # The wall clock may be set a little within.
    assert datetime.now(UTC) >= moment - timedelta(seconds=0.1)
    assert time.monotonic() - start < LONG_SECONDS


def test_retry_after_beyond_the_deadline_is_not_waited_for(server, make_fetcher):
    server.answers["/a"] = status_answer(429, Retry_After="3600")
    start = time.monotonic()
    failure = failure_of(make_fetcher(fetch_seconds=60), server.url("/a"))
    assert failure.status == Status.HTTP_ERROR
    assert time.monotonic() - start < LONG_SECONDS


@pytest.mark.parametrize(
    "asked",
    [
        "soon",
        "",
        "-5",
        "1e400",
        "Wed, 21 Oct 2015 07:28:00 GMT",
        "Wed, 21 Oct 99999 07:28:00 GMT",
        "Wed, 21 Oct 2015 99999999999999999999:28:00 GMT",
        "Wed, 21 Oct 99999999999999999999 07:28:00 GMT",
        "Wed, 21 Oct 2015 07:28:00 +99999999999999999999",
        "Mon, 01 Jan 0001 00:00:00 +2359",
        "Wed, 21 Oct " + "9" * 5000 + " 07:28:00 GMT",
    ],
)
def test_retry_after_without_a_future_time_is_ignored(server, fetcher, asked):
    server.give("/good", b"image")
    server.give_in_turn("/a", status_answer(503, Retry_After=asked), server.answers["/good"])
    assert fetcher.fetch(server.url("/a")) == b"image"


@pytest.mark.parametrize("asked", ["9" * 400, "Fri, 31 Dec 9999 23:59:59 -2359"])
def test_retry_after_out_of_range_is_not_waited_for(server, fetcher, asked):
    server.answers["/a"] = status_answer(503, Retry_After=asked)
    failure = failure_of(fetcher, server.url("/a"))
    assert "503" in failure.reason
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server, fetcher, code):
    for hop in range(5):
        server.answers[f"/{hop}"] = status_answer(code, Location=f"/{hop + 1}")
    server.give("/5", b"image")
    assert fetcher.fetch(server.url("/0")) == b"image"


def test_redirect_to_another_host_does_not_get_the_password(server, fetcher):
    with serve() as other:
        other.give("/b", b"image")
        server.answers["/a"] = status_answer(302, Location=other.url("/b"))
        assert fetcher.fetch(server.url("/a", SECRETS)) == b"image"
        assert "Authorization" not in other.headers


def test_password_does_not_come_back_with_a_later_hop(server, fetcher):
    with serve() as other:
        server.give("/c", b"image")
        server.answers["/a"] = status_answer(302, Location=other.url("/b"))
        other.answers["/b"] = status_answer(302, Location=server.url("/c"))
        assert fetcher.fetch(server.url("/a", SECRETS)) == b"image"
        assert "Authorization" not in other.headers
        assert "Authorization" not in server.headers


@pytest.mark.parametrize("target", ["/b", "b", "?b", "{same}/b"])
def test_password_stays_with_a_redirect_to_the_same_server(server, fetcher, target):
    server.give("/b", b"image")
    location = target.format(same=server.url("").rstrip("/"))
    server.give_in_turn("/a", status_answer(302, Location=location), server.answers["/b"])
    assert fetcher.fetch(server.url("/a", "alice:p%40ss:word@")) == b"image"
    assert server.headers["Authorization"] == f"Basic {b64encode(b'alice:p@ss:word').decode()}"


@pytest.mark.parametrize("own", ["", SECRETS])
def test_password_of_a_redirect_is_never_sent(server, fetcher, own):
    with serve() as other:
        other.give("/b", b"image")
        server.give("/c", b"image")
        server.answers["/a"] = status_answer(302, Location=other.url("/b", "mallory:planted@"))
        server.answers["/same"] = status_answer(302, Location=server.url("/c", "mallory:planted@"))
        assert fetcher.fetch(server.url("/a", own)) == b"image"
        assert "Authorization" not in other.headers
        assert fetcher.fetch(server.url("/same", own)) == b"image"
        planted = b64encode(b"mallory:planted").decode()
        assert planted not in server.headers.get("Authorization", "")


def test_netrc_is_not_read(server, fetcher, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login alice password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.give("/a", b"image")
    fetcher.fetch(server.url("/a"))
    assert "Authorization" not in server.headers


def test_redirect_loop_ends(server, fetcher):
    server.answers["/a"] = status_answer(302, Location="/b?token=topsecret")
    server.answers["/b"] = status_answer(302, Location="/a")
    failure = failure_of(fetcher, server.url("/a" + QUERY, SECRETS))
    assert failure.status == Status.HTTP_ERROR
    assert "redirects" in failure.reason
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "data:,x",
        "http://",
        "http://[",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:x/",
        "http://127.0.0.1/" + "x" * 70_000,
    ],
)
def test_redirect_to_another_scheme_is_refused(server, fetcher, target):
    server.answers["/a"] = status_answer(302, Location=target)
    assert failure_of(fetcher, server.url("/a" + QUERY)).status == Status.HTTP_ERROR


def test_redirect_cannot_write_into_the_next_request(server, fetcher):
    server.give("/b", b"image")
    location = "/b?x=%0d%0aX-Planted:%201%0d%0a%0d%0aGET%20/other"
    server.answers["/a"] = status_answer(302, Location=location)
    assert fetcher.fetch(server.url("/a")) == b"image"
    assert server.requests == ["/a", location]
    assert "X-Planted" not in server.headers


def test_redirect_without_a_target_is_its_code(server, fetcher):
    server.answers["/a"] = status_answer(302)
    assert "302" in failure_of(fetcher, server.url("/a")).reason


def drip(request):
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    for _ in range(1000):
        request.wfile.write(b"x")
        request.pause(0.05)


def drip_headers(request):
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(1000):
        request.wfile.write(b"X-%d: y\r\n" % number)
        request.pause(0.05)


def say_nothing(request):
    request.pause(60)


def continue_slowly(request):
    while True:
        request.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.pause(0.05)


def drip_trailers(request):
    request.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
    for number in range(1000):
        request.wfile.write(b"X-%d: y\r\n" % number)
        request.pause(0.05)


@pytest.mark.parametrize(
    "answer", [drip, drip_headers, say_nothing, continue_slowly, drip_trailers]
)
def test_slow_answer_ends_at_the_deadline(server, make_fetcher, answer):
    server.answers["/a"] = answer
    start = time.monotonic()
    failure = failure_of(make_fetcher(fetch_seconds=0.6), server.url("/a" + QUERY, SECRETS))
    assert failure.status == Status.TIMEOUT
    assert 0.5 < time.monotonic() - start < LONG_SECONDS


def test_deadline_counts_redirects_and_retries_together(server, make_fetcher):
    def slowly(status, **headers):
        def answer(request):
            request.pause(0.3)
            status_answer(status, **headers)(request)

        return answer

    server.answers["/a"] = slowly(302, Location="/b")
    server.answers["/b"] = slowly(302, Location="/c")
    server.answers["/c"] = slowly(503)
    failure = failure_of(make_fetcher(fetch_seconds=0.8), server.url("/a"))
    assert failure.status in (Status.TIMEOUT, Status.HTTP_ERROR)
    # The first two answers take 0.6 s; with a deadline for each, the third is asked for thrice.
    assert server.requests in (["/a"], ["/a", "/b"], ["/a", "/b", "/c"])


def test_time_spent_in_on_bytes_does_not_count(server, make_fetcher):
    body = b"x" * 200_000
    server.give("/a", body)
    fetcher = make_fetcher(fetch_seconds=2)
    start = time.monotonic()
    assert fetcher.fetch(server.url("/a"), lambda size: time.sleep(1)) == body
    assert time.monotonic() - start > 2


def test_on_bytes_gets_every_byte_before_it_is_kept(server, fetcher):
    server.give("/a", b"x" * 300_000)
    heard = []
    assert len(fetcher.fetch(server.url("/a"), heard.append)) == sum(heard) == 300_000
    assert len(heard) > 1


def test_exception_in_on_bytes_is_propagated(server, fetcher):
    server.give("/a", b"image")

    def refuse(size):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        fetcher.fetch(server.url("/a"), refuse)
    assert fetcher.fetch(server.url("/a")) == b"image"


def test_announced_size_over_the_limit_is_not_read(server, make_fetcher):
    def answer(request):
        request.send_response(200)
        request.send_header("Content-Length", str(10**12))
        request.end_headers()
        request.pause(60)

    server.answers["/a"] = answer
    start = time.monotonic()
    fetcher = make_fetcher(max_bytes=1000, fetch_seconds=60)
    assert failure_of(fetcher, server.url("/a" + QUERY, SECRETS)).status == Status.TOO_LARGE
    assert time.monotonic() - start < LONG_SECONDS


def test_endless_body_is_cut_at_the_limit(server, make_fetcher):
    def answer(request):
        request.close_connection = True
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(b"x" * 65536)

    server.answers["/a"] = answer
    heard = []
    failure = failure_of(make_fetcher(max_bytes=10**6), server.url("/a"), heard.append)
    assert failure.status == Status.TOO_LARGE
    assert sum(heard) <= 10**6


def test_body_of_exactly_the_limit_is_kept(server, make_fetcher):
    server.give("/a", b"x" * 1000)
    assert len(make_fetcher(max_bytes=1000).fetch(server.url("/a"))) == 1000
    assert failure_of(make_fetcher(max_bytes=999), server.url("/a")).status == Status.TOO_LARGE


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_body_compressed_without_request_is_decompressed(server, fetcher, encoding, compress):
    body = bytes(range(256)) * 1000
    server.give("/a", compress(body), headers={"Content-Encoding": encoding})
    assert fetcher.fetch(server.url("/a")) == body
    assert server.headers["Accept-Encoding"] == "identity"


def test_gzip_bomb_is_cut_at_the_limit(server, make_fetcher):
    bomb = gzip.compress(b"\0" * (200 * 2**20), 9)
    server.give("/a", bomb, headers={"Content-Encoding": "gzip"})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    failure = failure_of(make_fetcher(max_bytes=2**20), server.url("/a"))
    assert failure.status == Status.TOO_LARGE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "KiB"


@pytest.mark.parametrize("cut", [10, 100])
def test_truncated_compressed_body_is_incomplete(server, fetcher, cut):
    body = gzip.compress(bytes(range(256)) * 100)[:cut]
    server.give("/a", body, headers={"Content-Encoding": "gzip"})
    assert failure_of(fetcher, server.url("/a")).status == Status.INCOMPLETE


def test_all_members_of_gzip_are_read(server, make_fetcher):
    members = [gzip.compress(b"first" * 1000), gzip.compress(b""), gzip.compress(b"second")]
    whole = b"first" * 1000 + b"second"
    server.give("/a", b"".join(members), headers={"Content-Encoding": "gzip"})
    assert make_fetcher().fetch(server.url("/a")) == whole
    assert len(make_fetcher(max_bytes=len(whole)).fetch(server.url("/a"))) == len(whole)
    failure = failure_of(make_fetcher(max_bytes=len(whole) - 1), server.url("/a"))
    assert failure.status == Status.TOO_LARGE


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b"image", mtime=0) + b"garbage"),
        ("gzip", gzip.compress(b"image", mtime=0) + b"\0" * 100),
        ("gzip", gzip.compress(b"image", mtime=0) + zlib.compress(b"more")),
        ("deflate", zlib.compress(b"image") + b"garbage"),
        ("deflate", zlib.compress(b"image") + zlib.compress(b"more")),
        ("deflate", zlib.compress(b"image") + gzip.compress(b"more", mtime=0)),
    ],
)
def test_bytes_after_the_end_of_a_compressed_body_are_refused(server, fetcher, encoding, body):
    server.give("/a", body, headers={"Content-Encoding": encoding})
    failure = failure_of(fetcher, server.url("/a"))
    assert failure.status == Status.HTTP_ERROR
    assert "compressed response is corrupt" in failure.reason


def test_truncated_second_gzip_member_is_incomplete(server, fetcher):
    body = gzip.compress(b"image") + gzip.compress(b"more" * 100)[:-9]
    server.give("/a", body, headers={"Content-Encoding": "gzip"})
    assert failure_of(fetcher, server.url("/a")).status == Status.INCOMPLETE


def test_empty_gzip_members_count_as_received(server, make_fetcher):
    def answer(request):
        request.close_connection = True
        request.send_response(200)
        request.send_header("Content-Encoding", "gzip")
        request.end_headers()
        request.wfile.write(gzip.compress(b"") * 10_000)

    server.answers["/a"] = answer
    assert make_fetcher(max_bytes=200_000).fetch(server.url("/a")) == b""
    failure = failure_of(make_fetcher(max_bytes=199_999), server.url("/a"))
    assert failure.status == Status.TOO_LARGE


def test_incompressible_image_may_have_the_maximum_size(server, make_fetcher):
    body = random.Random(5).randbytes(100_000)
    packed = gzip.compress(body)
    server.give("/a", packed, headers={"Content-Encoding": "gzip"})
    assert make_fetcher(max_bytes=len(packed)).fetch(server.url("/a")) == body


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_body_that_does_not_match_its_encoding(server, fetcher, encoding):
    server.give("/a", b"not compressed", headers={"Content-Encoding": encoding})
    assert failure_of(fetcher, server.url("/a")).status == Status.HTTP_ERROR


def break_off(request):
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"x" * 500)
    request.close_connection = True


def break_off_in_a_chunk(request):
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    request.wfile.write(b"100\r\nabc")
    request.close_connection = True


@pytest.mark.parametrize("answer", [break_off, break_off_in_a_chunk])
def test_body_shorter_than_announced_is_incomplete(server, fetcher, answer):
    server.answers["/a"] = answer
    failure = failure_of(fetcher, server.url("/a" + QUERY, SECRETS))
    assert failure.status == Status.INCOMPLETE
    assert "127.0.0.1" in failure.reason


def continue_for_ever(request):
    while True:
        request.wfile.write(b"HTTP/1.1 102 Processing\r\n\r\n" * 1000)


def pad_chunks_for_ever(request):
    request.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        request.wfile.write(b"1;" + b"x" * 10_000 + b"\r\nx\r\n")


@pytest.mark.parametrize("answer", [continue_for_ever, pad_chunks_for_ever])
def test_bytes_around_a_body_are_limited(server, make_fetcher, answer):
    server.answers["/a"] = answer
    failure = failure_of(make_fetcher(max_bytes=1000), server.url("/a"))
    assert failure.status == Status.TOO_LARGE


def send_endless_header(request):
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        request.wfile.write(b"x" * 10_000)


def send_headers_for_ever(request):
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        request.wfile.write(b"X: y\r\n" * 1000)


def announce(value):
    def answer(request):
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: " + value + b"\r\n\r\nimage")
        request.close_connection = True

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        send_endless_header,
        send_headers_for_ever,
        announce(b"9" * 5000),
        announce(b"-5"),
        announce(b"5\r\nContent-Length: 6"),
    ],
)
def test_excessive_headers_are_refused(server, fetcher, answer):
    server.answers["/a"] = answer
    assert failure_of(fetcher, server.url("/a")).status == Status.HTTP_ERROR


def test_trailers_are_not_part_of_the_image(server, fetcher):
    def answer(request):
        request.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        request.wfile.write(b"5\r\nimage\r\n0\r\nContent-Encoding: gzip\r\nX: y\r\n\r\n")

    server.answers["/a"] = answer
    assert fetcher.fetch(server.url("/a")) == b"image"


def hang_up(request):
    request.close_connection = True


@pytest.mark.parametrize("answer", [status_answer(503), status_answer(302, Location="/b")])
def test_no_request_is_sent_after_the_task_has_ended(server, fetcher, answer):
    def end_task(request):
        fetcher.close()
        answer(request)

    server.answers["/a"] = end_task
    assert failure_of(fetcher, server.url("/a")).status in (Status.READ_ERROR, Status.HTTP_ERROR)
    assert server.requests == ["/a"]
    assert "the task has ended" in failure_of(fetcher, server.url("/b")).reason


def test_connection_closed_without_an_answer_is_tried_again(server, fetcher):
    server.give("/good", b"image")
    server.give_in_turn("/a", hang_up, server.answers["/good"])
    assert fetcher.fetch(server.url("/a")) == b"image"
    server.answers["/b"] = hang_up
    assert failure_of(fetcher, server.url("/b")).status == Status.HTTP_ERROR


def test_answer_that_is_not_http(server, fetcher):
    server.answers["/a"] = lambda request: request.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n" * 10)
    assert failure_of(fetcher, server.url("/a" + QUERY)).status == Status.HTTP_ERROR


def test_refused_connection_is_reported_after_retries(fetcher):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    failure = failure_of(fetcher, f"http://{SECRETS}127.0.0.1:{port}/a{QUERY}")
    assert failure.status == Status.HTTP_ERROR
    assert "refused" in failure.reason


def test_address_that_never_answers_ends_at_the_deadline(make_fetcher):
    # With its backlog full, the kernel leaves further connections unanswered.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
            waiting.append(client)
        start = time.monotonic()
        failure = failure_of(
            make_fetcher(fetch_seconds=0.5), f"http://127.0.0.1:{listener.getsockname()[1]}/"
        )
        assert failure.status == Status.TIMEOUT
        assert time.monotonic() - start < LONG_SECONDS
        for client in waiting:
            client.close()


def test_slow_name_resolution_ends_at_the_deadline(make_fetcher, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [ended.wait(60)][:0])
    start = time.monotonic()
    failure = failure_of(make_fetcher(fetch_seconds=0.5), "http://images.invalid/a")
    ended.set()
    assert failure.status == Status.TIMEOUT
    assert time.monotonic() - start < LONG_SECONDS


def test_second_address_is_tried_when_the_first_refuses(server, make_fetcher, monkeypatch):
    server.give("/a", b"image")
    resolve = socket.getaddrinfo

    def resolve_to_two(host, *rest, **options):
        hosts = ["127.0.0.9", "127.0.0.1"] if host == "two.invalid" else [host]
        return [entry for each in hosts for entry in resolve(each, *rest, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve_to_two)
    fetcher = make_fetcher(allow_networks=["127.0.0.0/8"])
    assert fetcher.fetch(f"http://two.invalid:{server.port}/a") == b"image"


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///a",
        "http://[::1",
        "http://127.0.0.1:99999/a",
        "http://127.0.0.1:port/a",
        "http://a..b/",
        "http://" + "a" * 70 + "/",
        "http://exa mple/a",
        "http://127.0.0.1\x00/a",
        "http://127.0.0.1:-1/a",
    ],
)
def test_invalid_url_fails_only_its_row(fetcher, url):
    assert failure_of(fetcher, url).status == Status.HTTP_ERROR


def test_untrusted_certificate_is_refused(certificate, fetcher):
    with serve(certificate[1]) as server:
        server.give("/a", b"image")
        failure = failure_of(fetcher, server.url("/a" + QUERY, SECRETS))
        assert failure.status == Status.HTTP_ERROR
        assert "certificate" in failure.reason.lower()
        assert not server.requests


def test_slow_handshake_ends_at_the_deadline(make_fetcher):
    ended = threading.Event()

    def drip_bytes(listener):
        connection = listener.accept()[0]
        with connection:
            # A record of 16 KiB is announced, of which a byte comes now and then.
            connection.sendall(b"\x16\x03\x03\x40\x00")
            while not ended.wait(0.05):
                connection.sendall(b"\x02")

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        done = pool.submit(drip_bytes, listener)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/a"
        start = time.monotonic()
        failure = failure_of(make_fetcher(fetch_seconds=0.6), url)
        ended.set()
        assert failure.status == Status.TIMEOUT
        assert time.monotonic() - start < LONG_SECONDS
        with suppress(ConnectionError):
            done.result(20)


def test_trusted_certificate_is_accepted(certificate, fetcher, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with serve(certificate[1]) as server:
        server.give("/a", b"image")
        assert fetcher.fetch(server.url("/a")) == b"image"


def test_many_threads_share_the_connections(server, make_fetcher):
    lock, active, most = threading.Lock(), [0], [0]

    def answer(request):
        with lock:
            active[0] += 1
            most[0] = max(most[0], active[0])
        request.pause(0.02)
        with lock:
            active[0] -= 1
        body = request.path.encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    paths = [f"/{number}" for number in range(60)]
    server.answers.update(dict.fromkeys(paths, answer))
    fetcher = make_fetcher(fetch_concurrency=4)
    with ThreadPoolExecutor(12) as pool:
        bodies = list(pool.map(lambda path: fetcher.fetch(server.url(path)), paths))
    assert bodies == [path.encode() for path in paths]
    assert most[0] == 4


def test_no_log_shows_a_query_string(server, fetcher, caplog):
    server.give("/a", b"image")
    with caplog.at_level(logging.INFO):
        fetcher.fetch(server.url("/a" + QUERY, SECRETS))
    assert "topsecret" not in caplog.text
    assert "hunter2" not in caplog.text


def count_at_a_time(server, paths):
    """Let each of the paths take a moment; returns where the most at a time is noted."""
    lock, active, most = threading.Lock(), [0], [0]

    def answer(request):
        with lock:
            active[0] += 1
            most[0] = max(most[0], active[0])
        request.pause(0.03)
        with lock:
            active[0] -= 1
        status_answer(200)(request)

    server.answers.update(dict.fromkeys(paths, answer))
    return most


def test_concurrent_fetches_from_one_host_are_limited(server, make_fetcher):
    paths = [f"/{number}" for number in range(24)]
    most = count_at_a_time(server, paths)
    fetcher = make_fetcher(
        allow_hosts=["127.0.0.1", "localhost"], fetch_concurrency=12, host_concurrency=3
    )
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda path: fetcher.fetch(server.url(path)), paths))
        assert most[0] == 3
        most[0] = 0
        urls = [
            f"http://{host}:{server.port}{path}"
            for path in paths
            for host in ("127.0.0.1", "localhost")
        ]
        list(pool.map(fetcher.fetch, urls))
    assert 3 < most[0] <= 6


def test_fetch_that_waits_for_memory_releases_its_host(server, make_fetcher):
    server.give("/younger", b"x" * 1000)
    server.give("/older", b"image")
    fetcher = make_fetcher(host_concurrency=1)
    is_waiting, memory_is_free = threading.Event(), threading.Event()

    def wait_for_memory(size):
        is_waiting.set()
        assert memory_is_free.wait(20)

    with ThreadPoolExecutor(1) as pool:
        younger = pool.submit(fetcher.fetch, server.url("/younger"), wait_for_memory)
        assert is_waiting.wait(20)
        assert fetcher.fetch(server.url("/older")) == b"image"
        memory_is_free.set()
        assert len(younger.result(20)) == 1000


def test_waiting_for_a_host_does_not_count_against_the_deadline(server, make_fetcher):
    def answer(request):
        request.pause(0.8)
        status_answer(200)(request)

    paths = [f"/{number}" for number in range(4)]
    server.answers.update(dict.fromkeys(paths, answer))
    fetcher = make_fetcher(host_concurrency=1, fetch_seconds=2.4)
    with ThreadPoolExecutor(4) as pool:
        bodies = pool.map(lambda path: fetcher.fetch(server.url(path)), paths)
        assert list(bodies) == [b""] * 4
