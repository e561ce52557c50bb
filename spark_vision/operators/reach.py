"""Hosts and networks in one spelling: what an operator allows, and what a row asks for, alike."""

import ipaddress
import re
from collections.abc import Iterable

from spark_vision.errors import InvalidOptionError

_LONGEST_NAME = 253
_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_COUNTED_AS_IPV4 = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96")))


def normalize_host(text: str) -> str:
    """Return a host as all comparisons take it: lower case, IDNA, no trailing dot, no brackets.

    Raises:
        ValueError: The text is neither a name nor an address.
    """
    name = text.lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(name[1:-1] if name.startswith("[") else name))
    except ValueError:
        pass
    if not name.isascii():
        # As the fetch itself writes such a name.
        from httpx import URL, InvalidURL

        try:
            name = URL(f"http://{name}/").raw_host.decode("ascii")
        except InvalidURL as error:
            raise ValueError("it is no host name") from error
    if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise ValueError("it is no host name")
    return name


def normalize_hosts(owner: str, hosts: Iterable[str]) -> tuple[str, ...]:
    """Return the hosts that an operator allows, each as `normalize_host` does.

    Raises:
        InvalidOptionError: One is not a bare host.
    """
    normalized = []
    for host in hosts:
        try:
            normalized.append(normalize_host(host))
        except ValueError:
            raise InvalidOptionError(
                f"{owner}.allow_hosts got {host!r}; allowed: exact host names or addresses, such "
                "as images.corp.example or 10.0.0.5, without scheme, port, path or wildcard"
            ) from None
    return tuple(normalized)


def normalize_networks(owner: str, networks: Iterable[str]) -> tuple[str, ...]:
    """Return the networks that an operator allows, in CIDR notation.

    Raises:
        InvalidOptionError: One is no network, or has bits set behind its prefix.
    """
    normalized = []
    for text in networks:
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            raise InvalidOptionError(
                f"{owner}.allow_networks got {text!r}, {_reason(error)}; allowed: networks in "
                "CIDR notation, such as 10.0.0.0/8 or fd12:3456::/32"
            ) from None
        if any(network.version == 6 and network.subnet_of(each) for each in _COUNTED_AS_IPV4):
            raise InvalidOptionError(
                f"{owner}.allow_networks got {text!r}, whose addresses count as the IPv4 addresses "
                "that they hold; allowed: that IPv4 network, such as 10.0.0.0/8"
            )
        normalized.append(str(network))
    return tuple(normalized)


def _reason(error: ValueError) -> str:
    return "which has host bits set" if "host bits" in str(error) else "which is no network"
