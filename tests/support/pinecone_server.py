"""A strict Pinecone on 127.0.0.1: its REST API as documented, and its refusals.

It is no copy of the service: it keeps vectors in a dictionary, compares them exactly and answers
at once. It refuses what the documentation says that the service refuses, and fails by order.
"""

import json
import threading
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

MAX_REQUEST_BYTES = 2 * 1024 * 1024
MAX_METADATA_BYTES = 40 * 1024
MAX_ROWS = 1000
MAX_K = 10_000


class Refusal(Exception):  # noqa: N818 - an answer of the server
    def __init__(self, message, status=400):
        super().__init__(message)
        self.message = message
        self.status = status


class PineconeServer:
    """The state of one project; `requests` lists (method, path, bytes) in order."""

    def __init__(self, api_key):
        self.api_key = api_key
        self.indexes = {}
        self.requests = []
        self.orders = deque()
        self.poison = {}
        self.descriptions_until_ready = 0
        # The statistics of the service are some seconds late.
        self.counts_nothing = False
        self.port = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def fail_next(self, *orders, path=""):
        """Fail the next requests to a path: a status, (status, headers), 'drop' or 'lose'.

        'drop' hangs up before anything is done, and 'lose' after it.
        """
        self.orders.extend((path, order) for order in orders)

    def order_for(self, path):
        if self.orders and self.orders[0][0] in path:
            return self.orders.popleft()[1]
        return None

    # The control plane.

    def create_index(self, body):
        if body["name"] in self.indexes:
            raise Refusal(f"Resource {body['name']} already exists", 409)
        [(name, vectors)] = body["schema"]["fields"].items()
        if vectors["type"] != "dense_vector" or body["deployment"]["deployment_type"] != "managed":
            raise Refusal("this server makes serverless indexes of dense vectors")
        if not 1 <= vectors["dimension"] <= 20_000:
            raise Refusal("dimension must be between 1 and 20000")
        self.indexes[body["name"]] = {"body": body, "field": name, "namespaces": {}, "waits": 0}
        self.indexes[body["name"]]["waits"] = self.descriptions_until_ready
        return self.describe_index(body["name"])

    def describe_index(self, name):
        if name not in self.indexes:
            raise Refusal(f"Resource {name} not found", 404)
        index = self.indexes[name]
        is_ready = index["waits"] == 0
        index["waits"] = max(0, index["waits"] - 1)
        return {
            "name": name,
            "schema": index["body"]["schema"],
            "deployment": index["body"]["deployment"] | {"environment": "local"},
            "deletion_protection": "disabled",
            "host": f"{self.url}/hosts/{name}",
            "status": {"ready": is_ready, "state": "Ready" if is_ready else "Initializing"},
        }

    # The data plane.

    def vectors_of(self, index):
        return index["body"]["schema"]["fields"][index["field"]]

    def upsert(self, index, body):
        records = body["vectors"]
        if not 1 <= len(records) <= MAX_ROWS:
            raise Refusal(f"a request has 1 to {MAX_ROWS} vectors, not {len(records)}")
        for record in records:
            self.check_record(index, record)
        space = index["namespaces"].setdefault(body.get("namespace", ""), {})
        for record in records:
            space[record["id"]] = record
        return {"upsertedCount": len(records)}

    def check_record(self, index, record):
        name = record.get("id")
        if not isinstance(name, str) or not 1 <= len(name) <= 512 or not name.isascii():
            raise Refusal(f"Vector ID {name!r:.40} must be an ASCII string of 1 to 512 characters")
        self.check_vector(index, record["values"])
        metadata = record.get("metadata", {})
        if len(json.dumps(metadata, ensure_ascii=False).encode()) > MAX_METADATA_BYTES:
            raise Refusal("metadata size exceeds the limit of 40960 bytes per vector")
        for field, value in metadata.items():
            is_list = isinstance(value, list) and all(isinstance(each, str) for each in value)
            if not (isinstance(value, str | bool | int | float) or is_list):
                raise Refusal(
                    "Metadata value must be a string, number, boolean or list of strings, "
                    f"got {value!r:.40} for field '{field}'"
                )
        if name in self.poison:
            raise Refusal(self.poison[name])

    def check_vector(self, index, values):
        dimension = self.vectors_of(index)["dimension"]
        if len(values) != dimension:
            raise Refusal(
                f"Vector dimension {len(values)} does not match the dimension of the index "
                f"{dimension}"
            )
        if not all(isinstance(each, int | float) for each in values):
            raise Refusal("values must be numbers")
        if not any(values):
            raise Refusal("Dense vectors must contain at least one non-zero value.")

    def query(self, index, body):
        if not 1 <= body["topK"] <= MAX_K:
            raise Refusal(f"top_k must be between 1 and {MAX_K}")
        self.check_vector(index, body["vector"])
        space = index["namespaces"].get(body.get("namespace", ""), {})
        kept = [each for each in space.values() if matches(each, body.get("filter", {}))]
        scores = self.scores(index, body["vector"], kept)
        best = sorted(range(len(kept)), key=lambda place: -scores[place])[: body["topK"]]
        found = []
        for place in best:
            match = {"id": kept[place]["id"], "score": float(scores[place])}
            if body.get("includeMetadata"):
                match["metadata"] = kept[place].get("metadata", {})
            found.append(match)
        return {"matches": found, "namespace": body.get("namespace", "")}

    def scores(self, index, vector, kept):
        if not kept:
            return []
        query = np.array(vector, np.float32)
        stored = np.array([each["values"] for each in kept], np.float32)
        if self.vectors_of(index)["metric"] == "cosine":
            query = query / np.linalg.norm(query)
            stored = stored / np.linalg.norm(stored, axis=1, keepdims=True)
        return stored @ query

    def fetch(self, index, query):
        ids = query.get("ids", [])
        if not 1 <= len(ids) <= MAX_ROWS:
            raise Refusal(f"a fetch has 1 to {MAX_ROWS} ids")
        name = query.get("namespace", [""])[0]
        space = index["namespaces"].get(name, {})
        found = {each: space[each] for each in ids if each in space}
        return {"vectors": found, "namespace": name}

    def delete(self, index, body):
        name = body.get("namespace", "")
        if name not in index["namespaces"]:
            raise Refusal("Namespace not found", 404)
        if body.get("deleteAll"):
            del index["namespaces"][name]
            return {}
        if not 1 <= len(body["ids"]) <= MAX_ROWS:
            raise Refusal(f"a delete has 1 to {MAX_ROWS} ids")
        for each in body["ids"]:
            index["namespaces"][name].pop(each, None)
        return {}

    def update(self, index, body):
        record = index["namespaces"].get(body.get("namespace", ""), {}).get(body["id"])
        if record is not None:
            changed = record | ({"values": body["values"]} if "values" in body else {})
            changed["metadata"] = record.get("metadata", {}) | body.get("setMetadata", {})
            self.check_record(index, changed)
            record |= changed
        return {}

    def describe_index_stats(self, index, body):
        if body.get("filter"):
            raise Refusal("Serverless indexes do not support describing stats by a filter")
        spaces = {} if self.counts_nothing else index["namespaces"]
        counts = {name: {"vectorCount": len(v)} for name, v in spaces.items()}
        vectors = self.vectors_of(index)
        return {
            "namespaces": counts,
            "dimension": vectors["dimension"],
            "indexFullness": 0.0,
            "totalVectorCount": sum(each["vectorCount"] for each in counts.values()),
            "metric": vectors["metric"],
            "vectorType": "dense",
        }

    def answer(self, method, target, body):
        """The answer to a request, as a value that becomes JSON."""
        parts = urlsplit(target)
        if parts.path.startswith("/indexes"):
            name = unquote(parts.path.removeprefix("/indexes").strip("/"))
            if method == "POST" and not name:
                return self.create_index(body)
            if method == "GET":
                if name:
                    return self.describe_index(name)
                return {"indexes": [self.describe_index(each) for each in self.indexes]}
        elif parts.path.startswith("/hosts/"):
            _, _, name, action = parts.path.split("/", 3)
            if name not in self.indexes:
                raise Refusal(f"Resource {name} not found", 404)
            if (method, action) == ("GET", "vectors/fetch"):
                return self.fetch(self.indexes[name], parse_qs(parts.query))
            calls = {
                "vectors/upsert": self.upsert,
                "vectors/delete": self.delete,
                "vectors/update": self.update,
                "query": self.query,
                "describe_index_stats": self.describe_index_stats,
            }
            if method == "POST" and action in calls:
                return calls[action](self.indexes[name], body)
        raise Refusal(f"{method} {parts.path} is unknown", 404)


def matches(record, terms):
    metadata = record.get("metadata", {})
    for field, term in terms.items():
        [(operator, value)] = term.items()
        if operator not in ("$eq", "$in"):
            raise Refusal(f"{operator} is not supported by this server")
        if metadata.get(field) not in (value if operator == "$in" else [value]):
            return False
    return True


@contextmanager
def serve_pinecone(api_key="key-of-the-test"):
    """Run a `PineconeServer` in threads that end with the block."""
    state = PineconeServer(api_key)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body leave together.
        wbufsize = -1
        disable_nagle_algorithm = True

        def respond(self, status, value, headers=None):
            body = json.dumps(value).encode()
            self.send_response(status)
            for name, each in (headers or {}).items():
                self.send_header(name, each)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def handle_any(self):
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                state.requests.append((self.command, self.path, len(content)))
                order = state.order_for(self.path)
                if order == "drop":
                    self.close_connection = True
                    return
                if order is not None and order != "lose":
                    status, headers = order if isinstance(order, tuple) else (order, {})
                    self.respond(status, error_body(status, "by order"), headers)
                    return
                status, value = self.outcome(content)
            if order == "lose":
                self.close_connection = True
                return
            self.respond(status, value)

        def outcome(self, content):
            try:
                if self.headers.get("Api-Key") != state.api_key:
                    raise Refusal("Invalid API Key", 401)
                if not self.headers.get("X-Pinecone-Api-Version"):
                    raise Refusal("the header X-Pinecone-Api-Version is missing")
                if len(content) > MAX_REQUEST_BYTES:
                    raise Refusal(f"Request size {len(content)} exceeds 2 MB", 413)
                return 200, state.answer(
                    self.command, self.path, json.loads(content) if content else {}
                )
            except Refusal as refusal:
                return refusal.status, error_body(refusal.status, refusal.message)

        do_GET = do_POST = handle_any  # noqa: N815

        def log_message(self, *arguments):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def error_body(status, message):
    code = {401: "UNAUTHENTICATED", 404: "NOT_FOUND", 409: "ALREADY_EXISTS"}
    return {"status": status, "error": {"code": code.get(status, "UNKNOWN"), "message": message}}
