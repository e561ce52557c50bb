"""A Milvus service on 127.0.0.1: Milvus Lite's own engine behind gRPC, with a token and failures.

It shows what the client does over a connection; a cluster's limits and delays it does not have.
"""

import base64
import threading
from collections import deque
from concurrent import futures
from contextlib import contextmanager

import grpc
from milvus_lite.adapter.grpc.servicer import MilvusServicer
from milvus_lite.db import MilvusLite
from pymilvus.grpc_gen import common_pb2, milvus_pb2, milvus_pb2_grpc


class MilvusService(MilvusServicer):
    """`upserts` lists the bytes of each request to upsert, refused ones too."""

    def __init__(self, database):
        super().__init__(database)
        self.orders = deque()
        self.upserts = []
        self.ended = threading.Event()
        self.port = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def fail_next(self, *orders):
        """Fail the next upserts: 'busy', 'full', 'hang', 'away', or 'lose' (after it is done)."""
        self.orders.extend(orders)

    def Upsert(self, request, context):  # noqa: N802
        self.upserts.append(request.ByteSize())
        order = self.orders.popleft() if self.orders else None
        if order == "busy":
            status = common_pb2.Status(
                code=8, reason="rate limit exceeded", error_code=common_pb2.RateLimit
            )
            return milvus_pb2.MutationResult(status=status)
        if order == "full":
            # Milvus' code of a quota that is used up.
            status = common_pb2.Status(code=9, reason="disk quota exhausted")
            return milvus_pb2.MutationResult(status=status)
        if order == "hang":
            self.ended.wait()
        if order == "away":
            context.abort(grpc.StatusCode.UNAVAILABLE, "by order")
        answer = super().Upsert(request, context)
        if order == "lose":
            context.abort(grpc.StatusCode.UNAVAILABLE, "by order")
        return answer


class TokenCheck(grpc.ServerInterceptor):
    def __init__(self, token):
        self.expected = base64.b64encode(token.encode()).decode()

    def intercept_service(self, continuation, details):
        given = dict(details.invocation_metadata).get("authorization")
        if given == self.expected:
            return continuation(details)

        def refuse(request, context):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth check failure")

        return grpc.unary_unary_rpc_method_handler(refuse)


@contextmanager
def serve_milvus(folder, token="root:token-of-the-test", max_request_bytes=64 * 1024 * 1024):
    database = MilvusLite(str(folder))
    service = MilvusService(database)
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=4),
        interceptors=[TokenCheck(token)],
        options=[("grpc.max_receive_message_length", max_request_bytes)],
    )
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(service, server)
    service.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield service
    finally:
        service.ended.set()
        server.stop(grace=None).wait()
        database.close()
