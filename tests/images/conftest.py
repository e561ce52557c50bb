"""Fixtures shared by the tests of fetching."""

import shutil
import ssl
import subprocess

import pytest


@pytest.fixture
def certificate(tmp_path):
    """A self-signed certificate for images.example and 127.0.0.1, and a context with it."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl to make a certificate with")
    key, path = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ["-addext", "subjectAltName=DNS:images.example,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(path), "-subj", "/CN=images.example"]
    subprocess.run(
        [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names, *files],
        check=True,
        capture_output=True,
        timeout=30,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, key)
    return path, context
