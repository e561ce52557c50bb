"""Finds Hugging Face hub checkpoints in the local cache, or downloads them once per host.

HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are read at each call: a worker serves jobs with
different values, and `huggingface_hub` reads most of them only once. No message contains a token.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from spark_vision.errors import CheckpointNotFoundError
from spark_vision.models.checkpoint_files import (
    CHAT_FILES,
    CONFIG_FILE,
    PICKLE_FILES,
    PROCESSOR_FILES,
    SAFETENSORS_FILES,
    TOKENIZER_FILES,
    missing_files,
)
from spark_vision.operators import Operator

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def cached_folder(operator: Operator) -> Path | None:
    """Return the cached snapshot of an operator's checkpoint and revision, or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(
            operator.checkpoint_name,
            CONFIG_FILE,
            cache_dir=_cache_folder(),
            revision=operator.revision,
        )
    except HFValidationError:
        return None  # A path, not a name on the hub.
    return Path(config).parent if isinstance(config, str) else None


def download(operator: Operator, searched: str) -> Path:
    """Download the files of a checkpoint that operators need, safetensors if available.

    Args:
        operator: Provides the checkpoint's name and revision.
        searched: The places already searched, for the message.

    Returns:
        The folder of its snapshot in the local cache.

    Raises:
        CheckpointNotFoundError: The message lists the places searched, the reason, and what to
            change.
    """
    name = operator.checkpoint_name
    try:
        if not _HUB_NAME.fullmatch(name):
            raise _HubFailure(
                "the name is a path, not a hub name; correct model_path or model_name, or send the "
                "folder to the executors by --archives checkpoint.zip#checkpoint and name it "
                "./checkpoint"
            )
        with _one_process_at_a_time(name):
            cached = cached_folder(operator)
            # Another process may have downloaded it while this one waited for the lock.
            if cached is not None and not missing_files(cached, operator):
                return cached
            return _fetch(operator)
    except _HubFailure as failure:
        revision = f" at revision {operator.revision!r}" if operator.revision else ""
        raise CheckpointNotFoundError(
            f"no checkpoint {name!r}{revision}; searched {searched}, the local cache "
            f"{_cache_folder()} (missing or incomplete), and the hub "
            f"{_without_credentials(_endpoint())}: {failure}"
        ) from failure.__cause__


class _HubFailure(Exception):  # noqa: N818 - becomes the error's last sentence
    """Why the checkpoint cannot be downloaded, and what to change."""


def _cache_folder() -> Path:
    from huggingface_hub import constants

    home = os.environ.get("HF_HOME")
    if home is None or {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"} & os.environ.keys():
        return Path(constants.HF_HUB_CACHE)
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def _endpoint() -> str:
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _fetch(operator: Operator) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    name, revision = operator.checkpoint_name, operator.revision
    try:
        if _is_offline():
            raise OfflineModeIsEnabled
        listed = HfApi(endpoint=_endpoint()).model_info(name, revision=revision).siblings or []
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=_cache_folder(),
            endpoint=_endpoint(),
            allow_patterns=_needed([file.rfilename for file in listed]),
        )
    except HFValidationError as error:
        raise _HubFailure("the name is not a valid hub name; correct model_name") from error
    except OfflineModeIsEnabled as error:
        raise _HubFailure(
            "HF_HUB_OFFLINE is set; unset it, or put the checkpoint under model_path"
        ) from error
    except HfHubHTTPError as error:
        raise _HubFailure(_http_reason(error.response.status_code, operator)) from error
    except LocalEntryNotFoundError as error:
        raise _HubFailure("the download was cut off; try again") from error
    except OSError as error:
        raise _HubFailure(
            f"cannot write the cache ({error}); set HF_HOME to a writable folder"
        ) from error
    except Exception as error:
        # Versions of huggingface_hub use different HTTP libraries, which raise different errors
        # for an unreachable host.
        raise _HubFailure(
            f"no connection ({type(error).__name__}); put the checkpoint under model_path, or set "
            "HF_ENDPOINT to a mirror that this host can reach"
        ) from error
    return Path(folder)


def _needed(present: list[str]) -> list[str]:
    """Choose the files to download; other formats of the same weights are skipped."""
    kind = next((kind for kind in (SAFETENSORS_FILES, PICKLE_FILES) if set(kind) & {*present}), ())
    weights = next((name for name in kind if name in present), None)
    chosen = [CONFIG_FILE, *PROCESSOR_FILES, *TOKENIZER_FILES, *CHAT_FILES]
    if weights is not None:
        chosen.append(weights)
        if weights.endswith(".index.json"):
            stem, suffix = weights.removesuffix(".index.json").split(".")
            chosen.append(f"{stem}-*-of-*.{suffix}")
    return chosen


def _http_reason(status_code: int, operator: Operator) -> str:
    if status_code == 404:
        return "no such model or revision (404); correct model_name or revision"
    if status_code in (401, 403):
        from huggingface_hub import get_token

        token = "the token in HF_TOKEN has no access" if get_token() else "no token is set"
        return (
            f"access is denied ({status_code}) and {token}: the model does not exist, or is "
            "private or gated; correct model_name, or set HF_TOKEN to a token with read access"
        )
    return f"it returned HTTP status {status_code}; try again, or set HF_ENDPOINT to a mirror"


@contextmanager
def _one_process_at_a_time(name: str) -> Iterator[None]:
    folder = _cache_folder() / ".locks" / "spark-vision"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / name.replace("/", "--")).open("w")
    except OSError as error:
        raise _HubFailure(
            f"cannot write the cache ({error}); set HF_HOME to a writable folder"
        ) from error
    with lock:
        # Some network file systems have no locks; there, each process downloads.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
