"""Decides which IP addresses a row may reach: public and allowed ones, never metadata services.

The check applies to the resolved address, not to its spelling. An IPv6 address that embeds an IPv4
address (mapped, translated, tunnelled) is checked as that address too. The tables copy IANA's
special-purpose registries, because `ipaddress` differs between Python versions.
"""

import ipaddress
import socket
import unicodedata
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from spark_vision.operators.hosts import normalize_host

Address = IPv4Address | IPv6Address

# Metadata services, which return credentials without authentication.
_METADATA_NAMES = {
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
    "metadata.azure.com",
    "metadata.azure.internal",
    "metadata.tencentyun.com",
    "api.metadata.cloud.ibm.com",
    "rancher-metadata",
    "rancher-metadata.rancher.internal",
}
_METADATA_IPV4 = {
    IPv4Address(each)
    for each in (
        "169.254.169.254",  # most clouds
        "169.254.170.2",  # AWS: a container's role
        "169.254.170.23",  # AWS: a pod's role
        "169.254.0.23",  # Tencent
        "169.254.42.42",  # Scaleway
        "100.100.100.200",  # Alibaba
        "100.96.0.96",  # Volcano Engine
        "168.63.129.16",  # Azure's agent, a public address
        "192.0.0.192",  # Oracle
    )
}
_LINK_LOCAL_IPV4 = IPv4Network("169.254.0.0/16")
_NEVER_IPV6 = tuple(
    IPv6Network(each)
    for each in (
        "fe80::/10",
        "fd00:ec2::/32",  # AWS
        "fd20:ce::254/128",  # Google
        "fd00:42::42/128",  # Scaleway
    )
)
_NOT_PUBLIC_IPV4 = tuple(
    IPv4Network(each)
    for each in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# The range assigned to hosts; the exceptions are for tunnels, documentation and protocols.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NOT_PUBLIC_IPV6 = tuple(
    IPv6Network(each) for each in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
_LAST_FOUR_BYTES = (
    IPv6Network("::/96"),  # IPv4-compatible
    _MAPPED,
    IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated
    _NAT64,
    _LOCAL_NAT64,
)
_SIX_TO_FOUR = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")


class AddressRefusedError(Exception):
    """An address may not be reached. It carries no details, so that no message can leak them."""


class AddressRules:
    """The addresses that rows of one operator may connect to.

    Args:
        allow_hosts: Host names, or addresses as written in a URL, that may resolve to non-public
            addresses.
        allow_networks: Non-public networks, in CIDR notation, that may be reached.
    """

    def __init__(self, allow_hosts: Iterable[str] = (), allow_networks: Iterable[str] = ()) -> None:
        self._hosts = frozenset(map(normalize_host, allow_hosts))
        self._networks = tuple(map(ipaddress.ip_network, allow_networks))

    def check_name(self, host: str) -> None:
        """Reject the names of metadata services, before they are resolved.

        Raises:
            AddressRefusedError: The host is one of them.
        """
        if host.lower().removesuffix(".") in _METADATA_NAMES:
            raise AddressRefusedError

    def choose(self, host: str, answers: Sequence[str]) -> list[str]:
        """Return the addresses of a host that may be connected to.

        The other addresses are left out; a name is refused only if all of its addresses are.

        Args:
            host: As in the URL.
            answers: The resolved addresses; or the host itself where it is an address.

        Raises:
            AddressRefusedError: No address is allowed.
        """
        is_allowed_host = _normalize_or_none(host) in self._hosts
        chosen = []
        for answer in answers:
            # A zone only selects one of this machine's own links.
            address = ipaddress.ip_address(answer.partition("%")[0])
            if not _is_never(address) and (is_allowed_host or self._is_allowed(address)):
                dialled = address.ipv4_mapped if isinstance(address, IPv6Address) else None
                chosen.append(str(dialled or address))
        if not chosen:
            raise AddressRefusedError
        return chosen

    def _is_allowed(self, address: Address) -> bool:
        reached = _unmap(address)
        return _is_public(reached) or any(reached in network for network in self._networks)


def address_in(host: str) -> Address | None:
    """Parse a host that is an address in any spelling, such as `127.1`, `0x7f000001` or `0`.

    Resolvers and browsers accept these numbers, full-width digits too; no host name looks like one.
    """
    text = unicodedata.normalize("NFKC", host).replace("\N{IDEOGRAPHIC FULL STOP}", ".")
    try:
        if ":" in text:
            return IPv6Address(text.strip("[]").partition("%")[0])
        return IPv4Address(socket.inet_aton(text.removesuffix("."))) if text.isascii() else None
    except (OSError, ValueError):
        return None


def _normalize_or_none(host: str) -> str | None:
    try:
        return normalize_host(host)
    except ValueError:
        return None


def _unmap(address: Address) -> Address:
    """Return the IPv4 address of an IPv6 address that routes to just that."""
    if isinstance(address, IPv6Address) and (address in _MAPPED or address in _NAT64):
        return IPv4Address(address.packed[12:])
    return address


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_IPV4)
    return address in _GLOBAL_UNICAST and not any(
        address in network for network in _NOT_PUBLIC_IPV6
    )


def _is_never(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return address in _METADATA_IPV4 or address in _LINK_LOCAL_IPV4
    return (
        any(address in network for network in _NEVER_IPV6)
        # A network may have its own NAT64 prefix, which is not known here.
        or IPv4Address(address.packed[12:]) in _METADATA_IPV4
        or any(map(_is_never, _held_by(address)))
    )


def _held_by(address: IPv6Address) -> list[IPv4Address]:
    """List the IPv4 addresses that translators and tunnels may extract from an IPv6 address."""
    packed = address.packed
    held = []
    if any(address in network for network in _LAST_FOUR_BYTES):
        held.append(packed[12:])
    if address in _LOCAL_NAT64:
        # Longer prefixes place them elsewhere, around byte 8 (RFC 6052).
        around = packed[:8] + packed[9:]
        held += [around[start : start + 4] for start in (6, 7, 8)]
    if address in _SIX_TO_FOUR:
        held.append(packed[2:6])
    if address in _TEREDO:
        held += [packed[4:8], bytes(0xFF ^ byte for byte in packed[12:])]
    return [IPv4Address(each) for each in held]
