"""The page's web application: its files, searches, pictures, tags and questions.

Results belong to the request that asked for them, so that no user sees another's. Requests that
compute need a content type that a page of another site cannot send without this one's consent.
"""

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from spark_vision.cli.job import one_line_message
from spark_vision.errors import RowFailure, SparkVisionError
from spark_vision.images.urls import redact_text
from spark_vision.search_page.gallery_source import FoundPicture
from spark_vision.search_page.guard import Guard
from spark_vision.search_page.pictures import Pictures
from spark_vision.search_page.query_model import QueryModel, unit

if TYPE_CHECKING:
    from spark_vision.search_page.index_gallery import IndexGallery
    from spark_vision.search_page.spark_gallery import SparkGallery

RESULT_COUNT = 16
MAX_TEXT_CHARACTERS = 1000
MAX_UPLOAD_BYTES = 20 * 2**20
_MAX_JSON_BYTES = 64 * 1024
_SEPARATOR = re.compile("[,;，、；\n]")
_JSON, _FILE = "application/json", "application/octet-stream"
_FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_logger = logging.getLogger(__name__)


class SearchPage:
    """The requests of the page.

    Args:
        source: Answers searches.
        model: Embeds queries and answers questions.
        pictures: The pictures of what was found.
    """

    def __init__(
        self, source: "IndexGallery | SparkGallery", model: QueryModel, pictures: Pictures
    ) -> None:
        self._source, self._model, self._pictures = source, model, pictures

    def application(self, hosts: tuple[str, ...] | None) -> ASGIApp:
        """Return the ASGI application.

        Args:
            hosts: The names by which browsers may call it; None means any.
        """
        shown = [
            Route(f"/{'' if name == 'page.html' else name}", _serve_file(name, kind))
            for name, kind in _FILES.items()
        ]
        routes = [
            *shown,
            Route("/settings", self.settings),
            Route("/search", self.search_text, methods=["POST"]),
            Route("/search-picture", self.search_picture, methods=["POST"]),
            Route("/similar", self.search_similar, methods=["POST"]),
            Route("/tags", self.rate_tags, methods=["POST"]),
            Route("/ask", self.ask, methods=["POST"]),
            Route("/thumbnail/{token}", self.thumbnail),
            Route("/picture/{token}", self.picture),
        ]
        handlers: Mapping[Any, Any] = {HTTPException: _refuse}
        return Guard(Starlette(routes=routes, exception_handlers=handlers), hosts)

    async def settings(self, request: Request) -> Response:
        """What the page shows and asks for."""
        return JSONResponse(
            {
                "name": self._source.name,
                "takesText": self._model.takes_text,
                "takesQuestions": self._model.takes_questions,
                "maxUploadBytes": MAX_UPLOAD_BYTES,
                "filters": [
                    {"name": name, "values": list(values)}
                    for name, values in self._source.filters.items()
                ],
            }
        )

    async def search_text(self, request: Request) -> Response:
        """Find pictures for a text."""
        asked = await _read_json(request)
        text = _text_in(asked, "text")
        if not text.strip():
            return _message("Type what you are looking for, or choose a picture.")
        return await self._search(asked, lambda: self._model.embed_text(text))

    async def search_picture(self, request: Request) -> Response:
        """Find pictures for an uploaded one."""
        data = await _read_body(request, _FILE, MAX_UPLOAD_BYTES)
        asked = _parse(request.query_params.get("where") or "{}")
        return await self._search({"where": asked}, lambda: self._model.embed_picture(data))

    async def search_similar(self, request: Request) -> Response:
        """Find pictures like one that was found."""
        asked = await _read_json(request)
        row = self._row(_text_in(asked, "picture"))

        def vector() -> np.ndarray | None:
            found = self._source.vector_of(row.id)
            return None if found is None else unit(found)

        return await self._search(asked, vector, left_out=row)

    async def rate_tags(self, request: Request) -> Response:
        """Rate tags for a picture that was found, by its vector."""
        asked = await _read_json(request)
        row = self._row(_text_in(asked, "picture"))
        named = _SEPARATOR.split(_text_in(asked, "tags"))
        tags = [*dict.fromkeys(filter(None, map(str.strip, named)))]
        if not tags:
            return _message("Type some tags, separated by commas.")

        def rate() -> dict[str, Any]:
            vector = self._source.vector_of(row.id)
            if vector is None:
                return {"message": "This picture is no longer in the table; search again."}
            rated = self._model.rate_tags(unit(vector), tags)
            return {"tags": [{"tag": tag, "score": score} for tag, score in rated]}

        return await _answered(rate)

    async def ask(self, request: Request) -> Response:
        """Answer a question about a picture that was found."""
        asked = await _read_json(request)
        row, question = self._row(_text_in(asked, "picture")), _text_in(asked, "question")
        if not question.strip():
            return _message("Type a question.")

        def answer() -> str:
            return self._model.answer(self._pictures.read(row), question)

        return await _answered(lambda: {"answer": answer()})

    async def thumbnail(self, request: Request) -> Response:
        """A small picture."""
        token = request.path_params["token"]
        row = self._row(token)
        return await _jpeg(lambda: self._pictures.thumbnail(token, row))

    async def picture(self, request: Request) -> Response:
        """A large picture."""
        row = self._row(request.path_params["token"])
        return await _jpeg(lambda: self._pictures.full(row))

    def _row(self, token: str) -> FoundPicture:
        row = self._pictures.find(token)
        if row is None:
            raise HTTPException(404, "This picture is no longer known; search again.")
        return row

    async def _search(
        self,
        asked: Mapping[str, Any],
        embed: Callable[[], np.ndarray | None],
        left_out: FoundPicture | None = None,
    ) -> Response:
        where = asked.get("where") or {}
        is_known = isinstance(where, dict) and all(
            name in self._source.filters and isinstance(value, str) for name, value in where.items()
        )
        if not is_known:
            raise HTTPException(400, "There is no such filter.")
        chosen = {name: value for name, value in where.items() if value.strip()}

        def search() -> dict[str, Any]:
            vector = embed()
            if vector is None:
                return {"message": "This picture is no longer in the table; search again."}
            more = 0 if left_out is None else 1
            rows = self._source.search(vector, RESULT_COUNT + more, chosen)
            rows = [row for row in rows if left_out is None or row.id != left_out.id]
            rows = rows[:RESULT_COUNT]
            return {"results": [self._shown(row) for row in rows]}

        return await _answered(search)

    def _shown(self, row: FoundPicture) -> dict[str, Any]:
        return {
            "picture": self._pictures.add(row),
            "title": row.title,
            "score": row.score,
            "caption": row.caption,
            "values": dict(row.values),
        }


def _serve_file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = (files("spark_vision.search_page") / name).read_bytes()

    async def serve(request: Request) -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return serve


async def _read_body(request: Request, kind: str, max_bytes: int) -> bytes:
    if request.headers.get("content-type") != kind:
        raise HTTPException(415, f"Send {kind}.")
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > max_bytes:
                raise HTTPException(413, f"More than {max_bytes:,} bytes; send a smaller file.")
    except ClientDisconnect:
        raise HTTPException(400, "The connection was closed.") from None
    return bytes(body)


async def _read_json(request: Request) -> Mapping[str, Any]:
    return _parse((await _read_body(request, _JSON, _MAX_JSON_BYTES)).decode("utf-8", "replace"))


def _parse(text: str) -> Mapping[str, Any]:
    try:
        asked = json.loads(text)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise HTTPException(400, "Send a JSON object.")
    return asked


def _text_in(asked: Mapping[str, Any], name: str) -> str:
    text = asked.get(name)
    if not isinstance(text, str):
        raise HTTPException(400, f"Send a text as {name}.")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise HTTPException(400, f"The text has more than {MAX_TEXT_CHARACTERS:,} characters.")
    # Half of a surrogate pair, which JSON can hold and UTF-8 cannot.
    return text.encode("utf-8", "replace").decode("utf-8")


async def _answered(work: Callable[[], dict[str, Any]]) -> Response:
    """Run blocking work in a thread; what fails becomes a message."""
    try:
        return JSONResponse(await run_in_threadpool(work))
    except RowFailure as failure:
        return _message(_in_words(failure))
    except SparkVisionError as error:
        return _message(redact_text(one_line_message(error)))
    except Exception as error:
        _logger.warning("a request failed: %s", redact_text(one_line_message(error)))
        return _message("The search failed; the terminal in which the page was started says why.")


async def _jpeg(make: Callable[[], bytes]) -> Response:
    try:
        data = await run_in_threadpool(make)
    except RowFailure as failure:
        return JSONResponse({"message": _in_words(failure)}, 422)
    headers = {"cache-control": "private, max-age=600"}
    return Response(data, media_type="image/jpeg", headers=headers)


def _in_words(failure: RowFailure) -> str:
    return f"{failure.status.value}: {failure.reason}"


def _message(text: str) -> Response:
    return JSONResponse({"message": text})


async def _refuse(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"message": error.detail}, error.status_code)
