"""Fixtures that several folders of the server's tests share."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from support.tone_model import ToneModel


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`server`, signed by itself for localhost, and `client`, signed by `authority`."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, capture_output=True, check=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name, subject in (("server", "localhost"), ("authority", "authority")):
        openssl(
            *new, "-x509", "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={subject}",
            "-addext", "subjectAltName=DNS:localhost",
        )  # fmt: skip
    openssl(*new, "-keyout", "client.key", "-out", "client.csr", "-subj", "/CN=client")
    openssl(
        "x509", "-req", "-in", "client.csr", "-CA", "authority.crt", "-CAkey", "authority.key", "-CAcreateserial",
        "-days", "2", "-out", "client.crt",
    )  # fmt: skip
    return folder


@pytest.fixture
def tones() -> ToneModel:
    """A model that needs no training."""
    return ToneModel()
