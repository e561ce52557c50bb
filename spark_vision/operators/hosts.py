"""The normal form of hosts and networks: those an operator allows and those in a row's URL."""

import ipaddress
import re
from collections.abc import Iterable

from spark_vision.errors import InvalidOptionError

_MAX_NAME_LENGTH = 253
_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_COUNTED_AS_IPV4 = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96")))


def normalize_host(text: str) -> str:
    """Return a host's normal form: lower case, IDNA, no trailing dot, no brackets.

    Raises:
        ValueError: The text is neither a host name nor an IP address.
    """
    name = text.lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(name[1:-1] if name.startswith("[") else name))
    except ValueError:
        pass
    if not name.isascii():
        # The same encoding as in the HTTP request.
        from httpx import URL, InvalidURL

        try:
            name = URL(f"http://{name}/").raw_host.decode("ascii")
        except InvalidURL as error:
            raise ValueError("it is not a host name") from error
    if len(name) > _MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        raise ValueError("it is not a host name")
    return name


def normalize_hosts(owner: str, hosts: Iterable[str]) -> tuple[str, ...]:
    """Return the normal form of the hosts that an operator allows.

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
        InvalidOptionError: One is not a network, or has host bits set.
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
                "embedded in them; allowed: that IPv4 network, such as 10.0.0.0/8"
            )
        normalized.append(str(network))
    return tuple(normalized)


def _reason(error: ValueError) -> str:
    return "which has host bits set" if "host bits" in str(error) else "which is not a network"
