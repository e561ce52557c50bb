"""Parses paths and URLs: known schemes, and roots below which files may be read.

The driver parses an operator's `allow_paths` with it, the executors each row's string. It never
accesses a file system: `images/local_files.py` resolves symbolic links.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from spark_vision.errors import InvalidOptionError

WEB_SCHEMES = ("http", "https")
LOCAL_SCHEMES = ("file", "local")
# Each spelling of a scheme, and fsspec's name for it.
STORE_SCHEMES = {
    "s3": "s3",
    "s3a": "s3",
    "s3n": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "abfs",
    "abfss": "abfs",
    "az": "abfs",
    "oss": "oss",
    "tos": "tos",
    "hdfs": "hdfs",
    "webhdfs": "webhdfs",
}
_WITH_BUCKET = ("s3", "gcs", "abfs", "oss", "tos")
_NESTING = "reads through another file system, chosen by the string"
_CHOOSING = "lets the string choose what is read and with which credentials"
REFUSED_SCHEMES = {
    **dict.fromkeys(("reference", "generic", "dir", "data", "dask"), _NESTING),
    **dict.fromkeys(("filecache", "blockcache", "simplecache", "cached"), _NESTING),
    **dict.fromkeys(("zip", "tar", "libarchive", "asyncwrapper"), _NESTING),
    **dict.fromkeys(("git", "github", "gist", "dvc", "jupyter", "jlab", "pyscript"), _CHOOSING),
    "asynclocal": "reads local files without any checks; paths below allow_paths do not need it",
}

_SCHEME = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*)(?:::[A-Za-z][A-Za-z0-9+.-]*)*:(/?)"  # perhaps a chain, a::b:/
)
_SCHEME_NAME = re.compile(r"[a-z][a-z0-9+.-]*")
_BUCKET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_CONTAINER = re.compile(r"(?:[A-Za-z0-9$][A-Za-z0-9-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?::[0-9]{1,5})?")
# What a store, or a proxy in front of it, might resolve to another path than the one checked here.
_AMBIGUOUS = re.compile(r"[\x00-\x1f\x7f-\x9f\\]|::|%(?:2[EeFf]|5[Cc])")
KERNEL_FOLDERS = ("/proc", "/sys", "/dev")
_SHARED_MEMORY = "/dev/shm"


def parse_scheme(address: str) -> str | None:
    """Return the scheme in lower case (the first of a chain `a::b://…`), None for a local path.

    A scheme is followed by a slash; only `file:` and `data:` need none. So a local path may
    contain colons, `#`, `?` and `%`, taken literally.
    """
    match = _SCHEME.match(address)
    if match is None:
        return None
    scheme = match[1].lower()
    return scheme if match[2] or scheme in ("file", "data") else None


def parse_file_url(url: str, *, is_encoded: bool = True) -> str:
    """Return the local path of a `file:` URL, percent-decoded where the URL is encoded.

    `file:/x`, `file:///x` and `file://localhost/x` are equal. As in Hadoop paths, `#` and `?` are
    part of the file name: there is no fragment or query.

    Raises:
        ValueError: The URL names another host.
    """
    rest = url.partition(":")[2]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise ValueError("the file URL names another host")
        rest = slash + path
    return unquote(rest) if is_encoded else rest


@dataclass(frozen=True)
class StoreLocation:
    """An object, or a prefix of objects, in an object store or remote file system.

    Attributes:
        scheme: fsspec's name of the scheme.
        authority: The bucket, the container with its account, or host and port; may be empty.
        path: From the first slash on; empty for the whole store.
    """

    scheme: str
    authority: str
    path: str

    def is_below(self, root: "StoreLocation") -> bool:
        """Return whether this is the root itself or lies below it, compared by path segments."""
        return (self.scheme, self.authority) == (root.scheme, root.authority) and self._segments[
            : len(root._segments)
        ] == root._segments

    @property
    def _segments(self) -> list[str]:
        path = self.path.rstrip("/")
        return path.split("/")[1:]

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def parse_store_location(address: str, allowed_schemes: Iterable[str] = ()) -> StoreLocation | None:
    """Parse the URL of an object in a store.

    Args:
        address: Such as `s3a://bucket/key`, or in Hadoop's form, `hdfs:/path`.
        allowed_schemes: Schemes in addition to the known ones.

    Returns:
        None for a URL that may not be read: an unknown scheme, a chain, no bucket, user names,
        segments `.` and `..`, or characters that a store may interpret in more than one way.
    """
    scheme = parse_scheme(address) or ""
    if scheme not in STORE_SCHEMES and scheme not in allowed_schemes:
        return None
    rest = address.partition(":")[2]
    authority, path = "", rest
    if rest.startswith("//"):
        authority, slash, path = rest[2:].partition("/")
        path = slash + path
    scheme = STORE_SCHEMES.get(scheme, scheme)
    if scheme in ("hdfs", "webhdfs"):
        authority = authority.lower()
    shape = {"abfs": _CONTAINER}.get(scheme, _BUCKET if scheme in _WITH_BUCKET else _HOST)
    if not shape.fullmatch(authority) and (authority or scheme in _WITH_BUCKET):
        return None
    if _AMBIGUOUS.search(path) or {".", ".."} & set(path.split("/")):
        return None
    return StoreLocation(scheme, authority, path)


def is_kernel_path(path: str) -> bool:
    """Return whether an absolute path lies in a file system of the kernel, such as /proc."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in KERNEL_FOLDERS)


def is_shared_memory(path: str) -> bool:
    """Return whether an absolute path lies in /dev/shm, which may contain data."""
    return path == _SHARED_MEMORY or path.startswith(f"{_SHARED_MEMORY}/")


def normalize_schemes(option: str, schemes: Iterable[str]) -> tuple[str, ...]:
    """Return the schemes in lower case.

    Args:
        option: The name of the option, for messages.
        schemes: The operator's option.

    Raises:
        InvalidOptionError: A scheme may not be allowed.
    """
    names = tuple(scheme.strip().lower() for scheme in schemes)
    for name in names:
        if not _SCHEME_NAME.fullmatch(name):
            # The value is not repeated: it may be a URL with a password.
            raise InvalidOptionError(
                f"{option} got a string that is not a scheme; allowed: single fsspec schemes, such "
                "as 'sftp', without '://'"
            )
        if name in REFUSED_SCHEMES:
            raise InvalidOptionError(
                f"{option} got {name!r}, which {REFUSED_SCHEMES[name]}; allowed: schemes of a "
                "single store, such as 'sftp', 'ftp', 'smb', 'hf'"
            )
    return names


def normalize_root(option: str, root: str, allowed_schemes: Iterable[str]) -> str:
    """Return the normal form of a root: an absolute folder, or a store's URL.

    Args:
        option: The name of the option, for messages.
        root: One value of the operator's option.
        allowed_schemes: Schemes in addition to the known ones, in lower case.

    Raises:
        InvalidOptionError: It is not a location below which rows may be read.
    """
    allowed_schemes = tuple(allowed_schemes)
    scheme = parse_scheme(root.strip())
    if scheme is None or scheme in LOCAL_SCHEMES:
        return _normalize_folder(option, root, is_url=scheme is not None)
    if scheme in WEB_SCHEMES:
        raise InvalidOptionError(
            f"{option} got an {scheme} URL, whose host belongs into allow_hosts or "
            "allow_networks; allowed: folders, and URLs of stores such as s3://bucket/prefix"
        )
    if scheme not in STORE_SCHEMES and scheme not in allowed_schemes:
        raise InvalidOptionError(
            f"{option} got a URL with the scheme {scheme!r}; allowed: folders, URLs of "
            f"{', '.join(STORE_SCHEMES)}, and of schemes in allow_schemes"
        )
    location = parse_store_location(root.strip(), allowed_schemes)
    # The value is not repeated: it may contain a password.
    if location is None or re.search(r"[?#*]", location.path):
        raise InvalidOptionError(
            f"{option} got a {scheme} URL that is not a location; allowed: "
            f"{scheme}://name/prefix without user names (they belong into storage_options), "
            "queries, globs, backslashes and segments '.' or '..'"
        )
    path = "/".join(["", *location._segments])
    return str(StoreLocation(location.scheme, location.authority, path if path != "" else "/"))


def _normalize_folder(option: str, root: str, *, is_url: bool) -> str:
    try:
        path = parse_file_url(root.strip()) if is_url else root
    except ValueError:
        path = "\0"
    shown = "a file: URL" if is_url else repr(root)
    if "\0" in path or "*" in path:
        raise InvalidOptionError(
            f"{option} got {shown}; allowed: a folder on this machine or on the executors, "
            "not a glob, such as /data/photos or file:/data/photos"
        )
    folder = "/" + os.path.abspath(path).strip("/")  # noqa: PTH100 - no file is looked at
    if is_kernel_path(folder) and not is_shared_memory(folder):
        raise InvalidOptionError(
            f"{option} got {shown}, where files are not data; allowed: folders outside "
            f"{', '.join(KERNEL_FOLDERS)}, and {_SHARED_MEMORY}"
        )
    return folder
