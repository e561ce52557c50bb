"""Serves the page until the process is told to stop."""

import ipaddress
import signal
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from spark_vision.errors import InvalidOptionError
from spark_vision.search_page.page import SearchPage
from spark_vision.search_page.pictures import Pictures
from spark_vision.search_page.query_model import QueryModel

if TYPE_CHECKING:
    from spark_vision.search_page.index_gallery import IndexGallery
    from spark_vision.search_page.spark_gallery import SparkGallery

_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_CLOSING_SECONDS = 3
_MAX_CONNECTIONS = 64


def listen(host: str, port: int) -> socket.socket:
    """Open the port of the page, so that an occupied one is known before anything is loaded.

    Args:
        host: An address, or a name of this machine.
        port: 0 means any that is free.

    Raises:
        InvalidOptionError: It is in use, or is not of this machine.
    """
    listener = None
    try:
        if not 0 <= port < 2**16:
            raise OverflowError
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        reason = error.strerror if isinstance(error, OSError) else "ports are 0 to 65535"
        raise InvalidOptionError(
            f"the page cannot listen on port {port} of {host}: {reason}; choose another --port or "
            "--host"
        ) from None
    return listener


def make_server(application: ASGIApp) -> uvicorn.Server:
    """Return the server of an application."""
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_CLOSING_SECONDS,
    )
    return uvicorn.Server(config)


def serve_page(
    listener: socket.socket,
    host: str,
    source: "IndexGallery | SparkGallery",
    model: QueryModel,
) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        listener: As `listen` returns it; closed at the end.
        host: As given to `listen`. At an address of this machine only, browsers must use it or a
            local name; at others they may use any name.
        source: Answers searches.
        model: Embeds queries.
    """
    with TemporaryDirectory(prefix="spark-vision-page-") as folder:
        pictures = Pictures(model.reader, Path(folder))
        page = SearchPage(source, model, pictures)
        hosts = (*_LOCAL_NAMES, host) if is_local(host) else None
        server = make_server(page.application(hosts))
        port = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        print(f"page: http://{shown}:{port}/  (Ctrl-C stops it)", flush=True)
        # uvicorn raises the signal again after it has closed, and the folder must go then too.
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            server.run([listener])
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGTERM, previous)
            pictures.close()
            listener.close()


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _interrupt(signal_number: int, frame: object) -> None:
    raise KeyboardInterrupt
