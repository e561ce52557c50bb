"""Which addresses a fetch connects to; only 127.0.0.1 is ever connected to here."""

import ipaddress
import random
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpcore
import pytest

from local_http_server import serve, status_answer
from simulated_network import SimulatedNetwork
from spark_vision.errors import RowFailure, Status
from spark_vision.images import http_transport
from spark_vision.images.fetch import Fetcher
from spark_vision.images.transfer import blocked_failure
from spark_vision.operators import ImageLimits, ImageViTEmbedding

PUBLIC, OTHER_PUBLIC = "93.184.215.14", "8.8.8.8"
ROW = "http://images.example/a"


@pytest.fixture
def server():
    with serve() as local:
        local.give("/a", b"image")
        yield local


@pytest.fixture
def network(server, monkeypatch):
    network = SimulatedNetwork(server.port, monkeypatch)
    network.names["images.example"] = [[PUBLIC]]
    return network


@pytest.fixture
def make_fetcher(monkeypatch):
    monkeypatch.setattr("spark_vision.images.http_client._FIRST_DELAY_SECONDS", 0.01)
    made = []

    def make(limits=None, **options):
        limits = ImageLimits(**{"fetch_seconds": 5.0, **(limits or {})})
        made.append(Fetcher(ImageViTEmbedding(limits=limits, **options)))
        return made[-1]

    yield make
    for fetcher in made:
        fetcher.close()


@pytest.fixture
def fetcher(make_fetcher):
    return make_fetcher()


def failure_of(fetcher, url):
    with pytest.raises(RowFailure) as caught:
        fetcher.fetch(url)
    return caught.value


def assert_blocked(fetcher, url, shown=None):
    failure = failure_of(fetcher, url)
    assert failure.status == Status.BLOCKED
    assert failure.reason == blocked_failure(shown or url).reason


def test_refusal_names_what_allows_more():
    failure = blocked_failure("http://10.0.0.1/a.png")
    assert failure.status == Status.BLOCKED
    assert failure.reason.endswith(": http://10.0.0.1/a.png")
    for option in ("allow_paths", "allow_hosts", "allow_networks", "allow_schemes"):
        assert option in failure.reason


def test_public_address_of_a_name_is_dialled(network, server, fetcher):
    assert fetcher.fetch(ROW) == b"image"
    assert network.dialled == [(PUBLIC, 80)]
    assert server.headers["Host"] == "images.example"


def test_only_allowed_addresses_of_mixed_answers_are_dialled(network, fetcher, monkeypatch):
    network.names["images.example"] = [["10.0.0.1", "169.254.169.254", PUBLIC, "::1"]]
    assert fetcher.fetch(ROW) == b"image"
    assert network.dialled == [(PUBLIC, 80)]


def test_name_with_no_allowed_address_is_blocked(network, fetcher):
    network.names["images.example"] = [["10.0.0.1", "127.0.0.1", "fd00::1"]]
    assert_blocked(fetcher, ROW)
    assert network.dialled == []


def test_the_checked_address_is_dialled_even_if_the_name_rebinds(network, server, fetcher):
    network.names["images.example"] = [[PUBLIC], ["127.0.0.1"]]
    server.give("/a", b"image", headers={"Connection": "close"})
    assert fetcher.fetch(ROW) == b"image"
    assert network.asked == ["images.example"]
    assert network.dialled == [(PUBLIC, 80)]
    assert_blocked(fetcher, ROW)
    assert network.dialled == [(PUBLIC, 80)]


def test_pooled_connection_was_checked_when_it_was_made(network, fetcher):
    network.names["images.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert fetcher.fetch(ROW) == fetcher.fetch(ROW) == b"image"
    assert network.dialled == [(PUBLIC, 80)]
    # Another name at the same address is another origin.
    network.names["inside.example"] = [["127.0.0.1"]]
    assert_blocked(fetcher, "http://inside.example/a")
    assert network.dialled == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "127.0.0.1.",
        "2130706433",
        "017700000001",
        "0177.0.0.01",
        "0x7f000001",
        "0x7F.0.0.0x1",
        "0",
        "0.0.0.0",
        "１２７.0.0.1",
        "127。0。0。1",
        "①②⑦.0.0.1",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[fe80::1%25lo]",
        "[fe80::1%lo]",
        "[fe80::1%１]",
        "[64:ff9b::a00:1]",
        "[2002:7f00:1::]",
        "[2001::1]",
        "[fec0::1]",
        "[ff02::1]",
        "10.0.0.1",
        "100.64.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "169.254.169.254",
        "168.63.129.16",
        "metadata.google.internal",
        "METADATA",
        "instance-data.",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_address_that_is_not_public_is_never_dialled(network, fetcher, scheme, host):
    failure = failure_of(fetcher, f"{scheme}://user:secret@{host}:8080/a?token=secret")
    assert failure.status == Status.BLOCKED
    assert "secret" not in failure.reason
    assert network.dialled == []
    assert network.asked == []


def test_no_string_leads_to_an_address_that_is_not_public(network, fetcher, monkeypatch):
    """Mutate URLs: each fails as a row does, and none reaches what is not public."""

    def connect(backend, host, port, *_):
        network.dialled.append((host, port))
        raise httpcore.ConnectError("refused")

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
    monkeypatch.setattr("spark_vision.images.http_client.MAX_RETRIES", 0)
    seeded = random.Random(14)
    characters = [
        *"0123456789abcdefx.:/@[]%\\?#-",
        "。",
        "１",
        "①",
        "℀",
        "ß",
        "xn--",
        "%2e",
        "ffff",
    ]
    seeds = [
        "http://127.0.0.1/a",
        "https://u:p@0x7f.1:80/x?y#z",
        "http://[::ffff:169.254.169.254]/",
        "http://2130706433/",
        "http://１２７.0.0.1/",
        "http://[fe80::1%25lo]/",
        "http://8.8.8.8/",
        "http://xn--bcher-kva.example/",
        "http://metadata.google.internal/",
    ]
    statuses = Counter()
    for _ in range(3_000):
        url = list(seeded.choice(seeds))
        for _ in range(seeded.randint(0, 5)):
            place = seeded.randrange(8, len(url))
            url[place : place + seeded.randint(0, 1)] = seeded.choice(characters)
        statuses[failure_of(fetcher, "".join(url)).status] += 1
    assert set(statuses) == {Status.BLOCKED, Status.HTTP_ERROR}
    assert min(statuses.values()) > 100
    assert network.dialled
    for host, _ in network.dialled:
        assert ipaddress.ip_address(host).is_global


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:8080/a",
        "http://user:secret@10.0.0.1/a",
        "https://169.254.169.254/latest/meta-data/",
        "http://metadata.google.internal/computeMetadata/v1/",
        "//127.1/a",
        "http://inside.example/a",
        "http://does-not-exist.example/a",
        "http://１２７.0.0.1/a",
        "http://[::ffff:a9fe:a9fe]/",
    ],
)
def test_refused_redirect_does_not_reveal_its_target(network, server, fetcher, target):
    network.names["inside.example"] = [["10.1.2.3"]]
    location = target.encode().decode("latin-1")
    server.answers["/hop"] = status_answer(302, Location=location)
    server.answers["/start"] = status_answer(302, Location="http://other.example/hop")
    network.names["other.example"] = [[OTHER_PUBLIC]]
    assert_blocked(fetcher, "http://images.example/start")
    assert network.dialled == [(PUBLIC, 80), (OTHER_PUBLIC, 80)]


def test_failure_behind_a_redirect_shows_the_address_of_the_row_only(network, server, fetcher):
    network.names["other.example"] = [[OTHER_PUBLIC]]
    server.answers["/start"] = status_answer(302, Location="http://other.example/gone?key=1")
    failure = failure_of(fetcher, "http://images.example/start")
    assert failure.reason == "HTTP status 404: http://images.example/start"


def test_connection_that_takes_too_long_is_tried_twice_more_within_the_deadline(
    network, server, fetcher, monkeypatch
):
    network.names["slow.example"] = [["93.184.215.14"]]
    connect, given = httpcore.SyncBackend.connect_tcp, []

    def connect_late(backend, host, port, seconds, *rest):
        given.append(seconds)
        if len(given) < 3:
            raise httpcore.ConnectTimeout("timed out")
        return connect(backend, host, port, seconds, *rest)

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect_late)
    server.give("/image", b"pixels")
    assert fetcher.fetch("http://slow.example/image") == b"pixels"
    assert len(given) == 3
    assert sum(given) < ImageLimits().fetch_seconds


def test_missing_host_name_of_a_row_is_reported(network, fetcher):
    failure = failure_of(fetcher, "http://does-not-exist.example/a")
    assert failure.status == Status.HTTP_ERROR
    assert "cannot be resolved" in failure.reason


@pytest.mark.parametrize("host", ["xn--bcher-va.example", "xn--a.example", "a_b.example", "a%b"])
def test_invalid_host_name_fails_only_its_row(network, fetcher, host):
    assert failure_of(fetcher, f"http://{host}/a").status == Status.HTTP_ERROR
    assert network.dialled == []


def test_hosts_and_networks_that_are_allowed_are_dialled(network, make_fetcher):
    network.names["photos.corp"] = network.names["files.corp"] = [["10.1.2.3"]]
    fetcher = make_fetcher(allow_hosts=["Photos.Corp", "192.168.0.7"])
    assert fetcher.fetch("http://photos.corp/a") == b"image"
    assert fetcher.fetch("http://192.168.0.7:81/a") == b"image"
    for refused in ("http://files.corp/a", "http://10.1.2.3/a", "http://192.168.0.8/a"):
        assert_blocked(fetcher, refused)
    assert network.dialled == [("10.1.2.3", 80), ("192.168.0.7", 81)]
    fetcher = make_fetcher(allow_networks=["10.1.0.0/16"])
    assert fetcher.fetch("http://files.corp/a") == b"image"
    assert fetcher.fetch("http://0x0a010203/a") == b"image"
    assert_blocked(fetcher, "http://10.2.0.0/a")


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/a",
        "http://[::ffff:169.254.169.254]/a",
        "http://[64:ff9b::a9fe:a9fe]/a",
        "http://0xa9fea9fe/a",
        "http://[fd00:ec2::254]/a",
        "http://100.100.100.200/a",
        "http://rebinding.example/a",
        "http://metadata.google.internal/a",
        "http://metadata/a",
    ],
)
def test_metadata_is_refused_even_if_everything_is_allowed(network, make_fetcher, url):
    hosts = ["169.254.169.254", "rebinding.example", "metadata", "metadata.google.internal"]
    fetcher = make_fetcher(allow_hosts=hosts, allow_networks=["0.0.0.0/0", "::/0"])
    network.names["rebinding.example"] = [["169.254.169.254", "fd00:ec2::254"]]
    network.names["metadata"] = [[PUBLIC]]
    assert_blocked(fetcher, url)
    assert network.dialled == []


def test_https_requests_the_name_at_the_checked_address(certificate, fetcher, monkeypatch):
    path, context = certificate
    asked = []
    context.sni_callback = lambda _, name, __: asked.append(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with serve(context) as server:
        network = SimulatedNetwork(server.port, monkeypatch)
        network.names["images.example"] = [["10.0.0.1", PUBLIC]]
        server.give("/a", b"image")
        assert fetcher.fetch("https://images.example/a") == b"image"
    assert network.dialled == [(PUBLIC, 443)]
    assert asked == ["images.example"]
    assert server.headers["Host"] == "images.example"


def test_certificate_of_another_name_is_refused_without_revealing_it(
    certificate, fetcher, monkeypatch
):
    path, context = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with serve(context) as server:
        network = SimulatedNetwork(server.port, monkeypatch)
        network.names = {"images.example": [[PUBLIC]], "hidden.example": [[OTHER_PUBLIC]]}
        server.answers["/a"] = status_answer(302, Location="https://hidden.example/a")
        failure = failure_of(fetcher, "https://images.example/a")
    assert failure.status == Status.HTTP_ERROR
    assert "certificate" in failure.reason
    assert "hidden" not in failure.reason
    assert server.requests == ["/a"]


def test_proxy_of_the_environment_is_not_used(network, fetcher, monkeypatch):
    with serve() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            for spelling in (name, name.upper()):
                monkeypatch.setenv(spelling, proxy.url("/"))
        assert fetcher.fetch(ROW) == b"image"
        assert_blocked(fetcher, "http://10.0.0.1/a")
        assert proxy.requests == []
    assert network.dialled == [(PUBLIC, 80)]


def test_resolvers_that_hang_are_bounded_in_number(network, make_fetcher, monkeypatch):
    monkeypatch.setattr(http_transport, "_resolver_threads", threading.BoundedSemaphore(3))
    ended = threading.Event()
    asked = []

    def hang(host, *_, **__):
        asked.append(host)
        ended.wait(30)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    fetcher = make_fetcher({"fetch_seconds": 0.3})
    urls = [f"http://{number}.example/a" for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        failures = list(pool.map(lambda url: failure_of(fetcher, url), urls))
    assert {failure.status for failure in failures} == {Status.TIMEOUT}
    assert len(asked) == 3
    # An address needs no resolver.
    assert_blocked(fetcher, "http://127.0.0.1/a")
    ended.set()
    for _ in range(3):
        assert http_transport._resolver_threads.acquire(timeout=10)
