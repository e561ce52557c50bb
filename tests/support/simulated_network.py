"""A network whose names and addresses are made up: whatever is dialled is a server on 127.0.0.1."""

import socket

import httpcore


class SimulatedNetwork:
    """Resolves names as a test says, and notes each address that is dialled.

    Attributes:
        names: The answers of each name: a list for each time that it is asked for; the last stays.
        servers: Which local port an address leads to; others lead to `port`.
        asked: The names that were resolved.
        dialled: The addresses that were connected to, with the port as asked for.
    """

    def __init__(self, port, monkeypatch):
        self.port = port
        self.names = {}
        self.servers = {}
        self.asked = []
        self.dialled = []
        connect, resolve = httpcore.SyncBackend.connect_tcp, socket.getaddrinfo

        def connect_here(backend, host, port, *rest):
            self.dialled.append((host, port))
            return connect(backend, "127.0.0.1", self.servers.get(host, self.port), *rest)

        def resolve_here(host, port, *rest, **options):
            if host == "127.0.0.1":
                return resolve(host, port, *rest, **options)
            self.asked.append(host)
            answers = self.names.get(host)
            if not answers:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            current = answers.pop(0) if len(answers) > 1 else answers[0]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in current]

        monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect_here)
        monkeypatch.setattr(socket, "getaddrinfo", resolve_here)
