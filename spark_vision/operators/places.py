"""Where a string may lead: schemes that are known, and roots below which files may be read.

The same reading of a string serves the driver, for an operator's `allow_paths`, and the executors,
for each row. It looks at nothing: what a local path really is, `images/local_files.py` finds out.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from spark_vision.errors import InvalidOptionError

WEB_SCHEMES = ("http", "https")
LOCAL_SCHEMES = ("file", "local")
# By each of their spellings, the name that fsspec has for them.
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
_NESTING = "reads through another file system, which the string would choose"
_CHOOSING = "lets the string choose what is read, and with whose rights"
REFUSED_SCHEMES = {
    **dict.fromkeys(("reference", "generic", "dir", "data", "dask"), _NESTING),
    **dict.fromkeys(("filecache", "blockcache", "simplecache", "cached"), _NESTING),
    **dict.fromkeys(("zip", "tar", "libarchive", "asyncwrapper"), _NESTING),
    **dict.fromkeys(("git", "github", "gist", "dvc", "jupyter", "jlab", "pyscript"), _CHOOSING),
    "asynclocal": "reads local files by no rules; those below allow_paths are read without it",
}

_SCHEME = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*)(?:::[A-Za-z][A-Za-z0-9+.-]*)*:(/?)"  # perhaps a chain, a::b:/
)
_SCHEME_NAME = re.compile(r"[a-z][a-z0-9+.-]*")
_BUCKET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_CONTAINER = re.compile(r"(?:[A-Za-z0-9$][A-Za-z0-9-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?::[0-9]{1,5})?")
# What a store, or a server before it, might read as another path than the one compared here.
_UNCLEAR = re.compile(r"[\x00-\x1f\x7f-\x9f\\]|::|%(?:2[EeFf]|5[Cc])")
KERNEL_FOLDERS = ("/proc", "/sys", "/dev")
_SHARED_MEMORY = "/dev/shm"


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


def path_of_file_url(url: str, *, is_encoded: bool = True) -> str:
    """Return the local path of a `file:` URL, percent-decoded where the URL is encoded.

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
    return unquote(rest) if is_encoded else rest


@dataclass(frozen=True)
class StorePlace:
    """An object, or a prefix of objects, in a store.

    Attributes:
        scheme: As fsspec knows it.
        authority: The bucket, the container with its account, or the host and port; perhaps empty.
        path: From the first slash on; empty for the whole store.
    """

    scheme: str
    authority: str
    path: str

    def is_below(self, root: "StorePlace") -> bool:
        """Say whether this is the root itself, or lies under it, segment by segment."""
        return (self.scheme, self.authority) == (root.scheme, root.authority) and self._segments[
            : len(root._segments)
        ] == root._segments

    @property
    def _segments(self) -> list[str]:
        path = self.path.rstrip("/")
        return path.split("/")[1:]

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def read_store_place(address: str, allowed_schemes: Iterable[str] = ()) -> StorePlace | None:
    """Read the address of an object in a store.

    Args:
        address: Such as `s3a://bucket/key`, or as Hadoop writes it, `hdfs:/path`.
        allowed_schemes: Schemes beside those that are known.

    Returns:
        None where it is none that may be read: an unknown scheme, a chain, no bucket, user names,
        segments `.` and `..`, and characters that a store may read in more than one way.
    """
    scheme = scheme_of(address) or ""
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
    if _UNCLEAR.search(path) or {".", ".."} & set(path.split("/")):
        return None
    return StorePlace(scheme, authority, path)


def is_kernel_path(path: str) -> bool:
    """Say whether an absolute path lies where files are no data, but the kernel's."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in KERNEL_FOLDERS)


def is_shared_memory(path: str) -> bool:
    """Say whether an absolute path lies in the one such folder that may hold data."""
    return path == _SHARED_MEMORY or path.startswith(f"{_SHARED_MEMORY}/")


def normalize_schemes(option: str, schemes: Iterable[str]) -> tuple[str, ...]:
    """Return the schemes in lower case.

    Args:
        option: The name of the option, for messages.
        schemes: As an operator lists them.

    Raises:
        InvalidOptionError: One may not be listed.
    """
    names = tuple(scheme.strip().lower() for scheme in schemes)
    for name in names:
        if not _SCHEME_NAME.fullmatch(name):
            # It is not repeated: it may be a whole URL, with its password.
            raise InvalidOptionError(
                f"{option} got a text that is no scheme; allowed: names of fsspec's schemes, such "
                "as 'sftp', without '://' and never a chain of them"
            )
        if name in REFUSED_SCHEMES:
            raise InvalidOptionError(
                f"{option} got {name!r}, which {REFUSED_SCHEMES[name]}; allowed: schemes that name "
                "a store by themselves, such as 'sftp', 'ftp', 'smb', 'hf'"
            )
    return names


def normalize_root(option: str, root: str, allowed_schemes: Iterable[str]) -> str:
    """Return a root as rows are compared with it: an absolute folder, or a store's URL.

    Args:
        option: The name of the option, for messages.
        root: As an operator lists it.
        allowed_schemes: Schemes beside those that are known, in lower case.

    Raises:
        InvalidOptionError: It names no place below which rows may be read.
    """
    allowed_schemes = tuple(allowed_schemes)
    scheme = scheme_of(root.strip())
    if scheme is None or scheme in LOCAL_SCHEMES:
        return _normalize_folder(option, root, is_url=scheme is not None)
    if scheme in WEB_SCHEMES:
        raise InvalidOptionError(
            f"{option} got an address of {scheme}, whose hosts allow_hosts and allow_networks "
            "name; allowed: folders, and URLs of stores such as s3://bucket/prefix"
        )
    if scheme not in STORE_SCHEMES and scheme not in allowed_schemes:
        raise InvalidOptionError(
            f"{option} got an address of {scheme!r}; allowed: folders, URLs of "
            f"{', '.join(STORE_SCHEMES)}, and of schemes that allow_schemes lists"
        )
    place = read_store_place(root.strip(), allowed_schemes)
    # The value is not repeated: what keeps it from being a place may be a password.
    if place is None or re.search(r"[?#*]", place.path):
        raise InvalidOptionError(
            f"{option} got a URL of {scheme} that names no place; allowed: "
            f"{scheme}://name/prefix without user names (they belong into storage_options), "
            "queries, globs, backslashes and segments '.' or '..'"
        )
    path = "/".join(["", *place._segments])
    return str(StorePlace(place.scheme, place.authority, path if path != "" else "/"))


def _normalize_folder(option: str, root: str, *, is_url: bool) -> str:
    try:
        path = path_of_file_url(root.strip()) if is_url else root
    except ValueError:
        path = "\0"
    shown = "a file: URL" if is_url else repr(root)
    if "\0" in path or "*" in path:
        raise InvalidOptionError(
            f"{option} got {shown}; allowed: a folder of this machine's or the executors' files, "
            "not a glob, such as /data/photos or file:/data/photos"
        )
    folder = "/" + os.path.abspath(path).strip("/")  # noqa: PTH100 - no file is looked at
    if is_kernel_path(folder) and not is_shared_memory(folder):
        raise InvalidOptionError(
            f"{option} got {shown}, where files are not data; allowed: folders outside of "
            f"{', '.join(KERNEL_FOLDERS)}, and {_SHARED_MEMORY}"
        )
    return folder
