"""Which addresses may be connected to, in every spelling; no connection is made here."""

import ipaddress
import random

import pytest

from spark_vision.images.addresses import AddressRefusedError, AddressRules, address_in

METADATA = [
    # All of the link, as clouds put ever new services there.
    "169.254.1.1",
    "fe80::1",
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "169.254.0.23",
    "100.100.100.200",
    "100.96.0.96",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fe80::a9fe:a9fe",
    "fe80::a9fe:a9fe%1",
    # 169.254.169.254 once more, by ways of carrying IPv4 within IPv6:
    "::ffff:169.254.169.254",  # mapped
    "::ffff:0:169.254.169.254",  # translated
    "::169.254.169.254",  # compatible
    "64:ff9b::169.254.169.254",  # NAT64
    "64:ff9b:1::169.254.169.254",  # local NAT64, /96
    "64:ff9b:1:a9fe:a9:fe00::",  # local NAT64, /48
    "64:ff9b:1:a9:fe:a9fe::",  # local NAT64, /56
    "64:ff9b:1:7:a9:fea9:fe00:0",  # local NAT64, /64
    "2002:a9fe:a9fe::1",  # 6to4
    "2001:0:a9fe:a9fe::1",  # Teredo, the server
    "2001:0:808:808:0:0:5601:5601",  # Teredo, the client
    "2a00:1234:64::a9fe:a9fe",  # a network's own NAT64 prefix
    "64:ff9b::100.100.100.200",
]
NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.254",
    "127.0.0.1",
    "127.255.255.255",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.9",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:0:8.8.8.8",
    "64:ff9b::10.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b:1::8.8.8.8",
    "100::1",
    "2001::1",
    "2001:2::1",
    "2001:10::1",
    "2001:db8::1",
    "2002:808:808::1",
    "2002:a00:1::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = {
    "8.8.8.8": "8.8.8.8",
    "1.1.1.1": "1.1.1.1",
    "100.63.255.255": "100.63.255.255",
    "100.128.0.0": "100.128.0.0",
    "172.15.255.255": "172.15.255.255",
    "172.32.0.0": "172.32.0.0",
    "198.17.255.255": "198.17.255.255",
    "223.255.255.255": "223.255.255.255",
    "::ffff:8.8.8.8": "8.8.8.8",
    "64:ff9b::8.8.8.8": "64:ff9b::808:808",
    "2606:4700::1111": "2606:4700::1111",
    "2a00:1450:4001::1%2": "2a00:1450:4001::1",
}
EVERYTHING = AddressRules(
    ["images.example", "169.254.169.254", "metadata"], ["0.0.0.0/0", "::/0", "169.254.0.0/16"]
)


def is_refused(rules, host, answers):
    try:
        rules.choose(host, answers)
    except AddressRefusedError:
        return True
    return False


@pytest.mark.parametrize("address", METADATA + NOT_PUBLIC)
def test_address_that_is_not_public_is_refused(address):
    assert is_refused(AddressRules(), "images.example", [address])


@pytest.mark.parametrize(("address", "dialled"), PUBLIC.items())
def test_public_address_is_dialled(address, dialled):
    assert AddressRules().choose("images.example", [address]) == [dialled]


@pytest.mark.parametrize("address", METADATA)
def test_metadata_is_refused_even_if_everything_is_allowed(address):
    assert is_refused(EVERYTHING, "images.example", [address])
    assert is_refused(EVERYTHING, address, [address])


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_other_addresses_are_reached_if_allowed(address):
    assert EVERYTHING.choose("photos.example", [address])
    assert AddressRules(["photos.example"]).choose("photos.example", [address])
    assert is_refused(AddressRules(["photos.example"]), "a.photos.example", [address])


@pytest.mark.parametrize(
    "name",
    [
        "metadata.google.internal",
        "METADATA.google.internal.",
        "metadata",
        "metadata.",
        "instance-data",
        "metadata.tencentyun.com",
    ],
)
def test_names_of_metadata_services_are_refused(name):
    with pytest.raises(AddressRefusedError):
        EVERYTHING.check_name(name)
    EVERYTHING.check_name(f"not-{name}")


def test_only_allowed_addresses_of_mixed_answers_are_chosen():
    answers = ["10.0.0.1", "8.8.8.8", "::1", "169.254.169.254", "2606:4700::1111"]
    assert AddressRules().choose("a.example", answers) == ["8.8.8.8", "2606:4700::1111"]
    inside = AddressRules(allow_networks=["10.0.0.0/8"])
    assert inside.choose("a.example", answers) == ["10.0.0.1", "8.8.8.8", "2606:4700::1111"]


def test_allowed_network_applies_to_embedded_addresses():
    rules = AddressRules(allow_networks=["10.1.0.0/16", "fd12::/16"])
    assert rules.choose("a", ["10.1.2.3"]) == ["10.1.2.3"]
    assert rules.choose("a", ["::ffff:10.1.2.3"]) == ["10.1.2.3"]
    assert rules.choose("a", ["64:ff9b::10.1.2.3"]) == ["64:ff9b::a01:203"]
    assert rules.choose("a", ["fd12::1"]) == ["fd12::1"]
    for refused in ("10.2.0.1", "2002:a01:203::1", "fd13::1", "::10.1.2.3"):
        assert is_refused(rules, "a", [refused])


@pytest.mark.parametrize(
    ("allowed", "host", "matches"),
    [
        ("Photos.Example", "photos.example", True),
        ("photos.example.", "photos.example", True),
        ("photos.example", "photos.example.", True),
        ("bücher.example", "xn--bcher-kva.example", True),
        ("photos.example", "photos.example.org", False),
        ("photos.example", "aphotos.example", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.1.", True),
        ("10.0.0.1", "10.1", False),
        ("[fd12::1]", "fd12::1", True),
        ("fd12:0::1", "fd12::1", True),
        ("10.0.0.1", "rebinding.example", False),
    ],
)
def test_hosts_are_allowed_exactly(allowed, host, matches):
    assert is_refused(AddressRules([allowed]), host, ["10.0.0.1"]) is not matches


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0X7F.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("127.0.1", "127.0.0.1"),
        ("0177.0.0.01", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("127.0.0.1.", "127.0.0.1"),
        ("１２７.０.０.１", "127.0.0.1"),
        ("127。0。0。1", "127.0.0.1"),
        ("①②⑦.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:7f00:1", "::ffff:7f00:1"),
        ("example.org", None),
        ("1.2.3.4.example", None),
        ("127.0.0.1%2eexample.org", None),
        ("", None),
        ("a:b", None),
    ],
)
def test_host_that_is_an_address_is_parsed_in_every_spelling(host, address):
    assert address_in(host) == (None if address is None else ipaddress.ip_address(address))


def test_public_addresses_are_global_in_python_too():
    seeded = random.Random(14)
    texts = [str(ipaddress.IPv4Address(seeded.getrandbits(32))) for _ in range(5_000)]
    for _ in range(5_000):
        prefix = seeded.choice([0x2001, 0x2002, 0x2600, 0x3FFF, 0x64, 0, seeded.getrandbits(16)])
        texts.append(str(ipaddress.IPv6Address((prefix << 112) | seeded.getrandbits(112))))
    public = [text for text in texts if not is_refused(AddressRules(), "a.example", [text])]
    assert 4_000 < len(public) < 9_000
    for text in public:
        address = ipaddress.ip_address(text)
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved
