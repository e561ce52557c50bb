"""What every request and every answer of the page has to keep."""

from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    # Nothing from another host is loaded, and no markup of a caption could run.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """Refuses requests by other host names, and adds the headers that every answer has.

    A page of another site can let its own name lead to 127.0.0.1; the name betrays it.

    Args:
        application: What it guards.
        hosts: The names by which browsers may call it; None means any.
    """

    def __init__(self, application: ASGIApp, hosts: tuple[str, ...] | None) -> None:
        self._application, self._hosts = application, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI asks."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        if scope["type"] != "http":
            return
        application = self._application
        if not self._is_known(dict(scope["headers"]).get(b"host", b"").decode("latin-1")):
            application = Response("This host name is not served.", 421, media_type="text/plain")
        await application(scope, receive, send_guarded)

    def _is_known(self, host: str) -> bool:
        try:
            return self._hosts is None or urlsplit(f"//{host}").hostname in self._hosts
        except ValueError:
            return False
