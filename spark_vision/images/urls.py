"""What a string in an image column points to, and how a message may show it."""

import re
from urllib.parse import unquote

_SCHEME = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*)(?:::[A-Za-z][A-Za-z0-9+.-]*)*:(/?)"  # perhaps a chain, a::b:/
)
_AUTHORITY = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]*:(?=/))?/{0,2})([^/\\]*)")
_CHAIN = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*://|/)")
_HOST = re.compile(r"[^:@]*(?::\d*)?|\[[0-9A-Fa-f:.]*\](?::\d*)?")


def scheme_of(address: str) -> str | None:
    """Return the scheme in lower case (of a chain `a::b://…` the first), None for a local path.

    A scheme is followed by a slash; `file:` and `data:` are schemes without one too. So a local
    path may hold colons, `#`, `?` and `%`, all of which then mean themselves.
    """
    match = _SCHEME.match(address)
    if match is None:
        return None
    scheme = match[1].lower()
    return scheme if match[2] or scheme in ("file", "data") else None


def path_of_file_url(url: str) -> str:
    """Return the local path of a `file:` URL, percent-decoded.

    `file:/x`, `file:///x` and `file://localhost/x` are the same. As in Hadoop's paths, `#` and
    `?` belong to the name: a file has neither fragment nor query.

    Raises:
        ValueError: The URL names another host.
    """
    rest = url.partition(":")[2]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise ValueError("the file URL names another host")
        rest = slash + path
    return unquote(rest)


def redact(address: str) -> str:
    """Return what a message may show of an address: scheme, host and path, no more.

    User names, passwords, query strings and fragments are cut, also of a local path, as a signed
    URL may have lost its scheme.
    """
    if address[:5].lower() == "data:":
        return "data:…"
    shown = [_redact_one(part) for part in _CHAIN.split(address)]
    return "::".join(shown)


def _redact_one(address: str) -> str:
    address = re.split(r"[?#]", address, maxsplit=1)[0]
    _, prefix, authority, rest = _AUTHORITY.split(address, maxsplit=1)
    if not prefix.endswith("//") and not ("@" in authority and ":" in authority):
        if "://" in address:
            # What stands before it is no scheme, but what comes after it may hold a password.
            return f"{address.partition('://')[0]}://…"
        # A local path, such as `photo@2x.jpg`.
        return address
    host = authority.rpartition("@")[2]
    if not _HOST.fullmatch(host):
        # A password with a slash in it ends up here: the rest of it may be in the path.
        return f"{prefix}…"
    return f"{prefix}{host}{rest}"
