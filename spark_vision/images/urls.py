"""Redacts addresses for messages: only parts that cannot be secret are shown, the rest as `…`.

A string in a column may be anything: a connection string, JSON, a key. So the rules list what is
shown, not what is hidden.
"""

import re

HIDDEN = "…"
_LONGEST = 2048

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31}):(/*)")
_HOST = re.compile(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")
_CONTAINER = re.compile(r"[a-z0-9$-]{1,63}@[a-z0-9]{1,24}\.[\w.-]+")
_CONTAINER_SCHEMES = ("abfs", "abfss", "wasb", "wasbs")
# Schemes whose URLs may have no host.
_HOSTLESS = ("file", "local", "hdfs", "webhdfs", "dbfs", "memory")
# A suffix for high-resolution screens, such as `@2x`, the only `@` in many ordinary file names.
_SCREENS = re.compile(r"@[1-4]x(?=\.\w{1,5}$)")
# The start of a query, fragment or parameter, also encoded: the rest is cut.
_CUT = re.compile(r"[?#;？＃；]|%3[FfBb]|%23|&(?=[\w.-]+=)")
_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")
_FOLDER_OF_A_PARTITION = re.compile(r"[\w-]{1,40}=[\w.:%+ -]{0,40}")
_SECRET_NAME = re.compile(
    r"(?i)pass|pwd|secret|token|key|sig|cred|auth|user|login|account|session|bearer|jwt|pin\b"
)
_UNUSUAL = re.compile(r"[\"`{}<>|\\^\x00-\x1f\x7f-\x9f]|:.*@")
_LONG_WORD = re.compile(r"[A-Za-z0-9+=_-]{25,}")
_DIGEST = re.compile(r"[0-9a-f-]{25,64}")


def redact(address: str) -> str:
    """Return what a message may show of an address: at most scheme, host and path.

    User names, passwords, query strings and fragments are removed. This applies to local paths too,
    which may be signed URLs without a scheme. A path without a scheme is shown only if it looks
    like a file path.
    """
    text = address.strip()
    if len(text) > _LONGEST:
        return HIDDEN
    url = _URL.match(text)
    if url is not None and (url[2] or url[1].lower() in (*_HOSTLESS, "http", "https", "data")):
        shown = _redact_url(url[1], url[2], text[url.end() :])
    else:
        shown = _redact_path(text)
    return "".join(character if character.isprintable() else "\ufffd" for character in shown)


def _redact_url(scheme: str, slashes: str, rest: str) -> str:
    name = scheme.lower()
    hidden = f"{scheme}://{HIDDEN}" if len(slashes) > 1 else f"{scheme}:{HIDDEN}"
    if name == "data":
        return hidden
    if name in _HOSTLESS and len(slashes) != 2:
        path = _redact_path(f"/{rest}" if slashes else rest)
        return f"{scheme}:{slashes[:-1]}{path}" if len(slashes) in (0, 1, 3) else hidden
    if len(slashes) != 2:
        return hidden
    # A password may contain any character, so the start of the host may be ambiguous.
    authority, path = re.fullmatch(r"([^/?#;]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    users, _, host = authority.rpartition("@")
    if name in _CONTAINER_SCHEMES and _CONTAINER.fullmatch(authority):
        users, host = "", authority
    elif not _HOST.fullmatch(host):
        return hidden
    if "@" in _SCREENS.sub("", path) or (":" in authority and "@" in path and not users):
        return hidden
    return f"{scheme}://{host}{_redact_segments(path)}"


def _redact_path(path: str) -> str:
    hidden = f"/{HIDDEN}" if path.startswith("/") else HIDDEN
    if path.startswith("//") or "://" in path or _UNUSUAL.search(path):
        return HIDDEN
    path = _CUT.split(path, maxsplit=1)[0]
    words = _LONG_WORD.findall(path)
    if not _EXTENSION.search(path):
        is_absolute = path.startswith(("/", "./", "../"))
        if not is_absolute or not all(map(_DIGEST.fullmatch, words)):
            return hidden if path else path
    return _redact_segments(path) if path.startswith("/") or "=" not in path else HIDDEN


def _redact_segments(path: str) -> str:
    """Cut a path at the first segment that looks like a setting."""
    shown = []
    for segment in _CUT.split(path, maxsplit=1)[0].split("/"):
        if "=" in segment and (
            not _FOLDER_OF_A_PARTITION.fullmatch(segment)
            or _SECRET_NAME.search(segment.partition("=")[0])
        ):
            shown.append(HIDDEN)
            break
        shown.append(segment)
    return "/".join(shown)


_USERS_IN_TEXT = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]{0,31}:[/\\]{1,3})([^\s'\"`:]{0,500}:[^\s'\"`]{0,999}|[^\s'\"`/]{0,500})@"
)


def redact_text(text: str) -> str:
    """Return a message without the user names and passwords of URLs in it."""

    def hide(found: re.Match[str]) -> str:
        scheme = found[1].partition(":")[0].lower()
        is_container = scheme in _CONTAINER_SCHEMES and re.fullmatch(r"[a-z0-9$-]{1,63}", found[2])
        return found[0] if is_container else f"{found[1]}{HIDDEN}@"

    return _USERS_IN_TEXT.sub(hide, text)


def holds_user(address: str) -> bool:
    """Return whether a URL has a user name or password; an `@` in its path does not count."""
    url = _URL.match(address)
    if url is not None:
        scheme, authority = url[1].lower(), address[url.end() :].partition("/")[0]
        if len(url[2]) != 2:
            is_plain = scheme in _HOSTLESS
        elif "@" in authority:
            is_plain = scheme in _CONTAINER_SCHEMES and bool(_CONTAINER.fullmatch(authority))
        else:
            # What looks like a port may be the start of a password that contains a slash.
            is_plain = ":" not in authority or scheme in _HOSTLESS
        if is_plain:
            return False
    return redact_text(address) != address
