"""A real HTTP server on 127.0.0.1 whose answers a test writes, down to single bytes and pauses."""

import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LocalServer:
    """Answers by path; `requests` lists the paths asked for, `headers` what came with the last."""

    def __init__(self):
        self.answers = {}
        self.requests = []
        self.headers = {}
        self.port = 0
        self.scheme = "http"

    def url(self, path="/", credentials=""):
        return f"{self.scheme}://{credentials}127.0.0.1:{self.port}{path}"

    def give(self, path, body=b"", status=200, headers=None):
        """Answer with these bytes, their length announced unless the headers say otherwise."""

        def answer(request):
            request.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
                if value is not None:
                    request.send_header(name, value)
            request.end_headers()
            request.wfile.write(body)

        self.answers[path] = answer

    def give_in_turn(self, path, *answers):
        """Answer the first request by the first answer, and so on; the last one stays."""
        waiting = list(answers)

        def answer(request):
            (waiting.pop(0) if len(waiting) > 1 else waiting[0])(request)

        self.answers[path] = answer


def status_answer(status, **headers):
    def answer(request):
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


@contextmanager
def serve(tls_context=None):
    """Run a `LocalServer` in threads that end with the block, whatever state they are in."""
    local = LocalServer()
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            local.requests.append(self.path)
            local.headers = dict(self.headers)
            path = self.path.partition("?")[0]
            try:
                local.answers.get(path, status_answer(404))(self)
            except ConnectionError:
                self.close_connection = True

        def pause(self, seconds):
            """Sleep, but not beyond the end of the test."""
            if ended.wait(seconds):
                raise ConnectionAbortedError

        def log_message(self, *arguments):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address):
            # A client that has seen enough hangs up; only other errors are the test's.
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    if tls_context is not None:
        server.socket = tls_context.wrap_socket(server.socket, server_side=True)
    local.port = server.server_address[1]
    local.scheme = "http" if tls_context is None else "https"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield local
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
