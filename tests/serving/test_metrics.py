"""Logs as JSON lines; metrics are read in `test_app`."""

from __future__ import annotations

import json
import logging
import sys

import pytest

pytest.importorskip("prometheus_client", reason="the serving extra is not installed")

from overtone.serving.metrics import JsonLines


def test_logs_are_json_lines() -> None:
    record = logging.LogRecord("overtone.x", logging.INFO, "x.py", 1, "%s took %d s", ("it", 3), None)
    record.call = {"method": "Recognize", "tenant": "", "code": "OK"}
    found = json.loads(JsonLines().format(record))
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "info", "logger": "overtone.x", "message": "it took 3 s", "method": "Recognize", "code": "OK",
    }  # fmt: skip
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "\n" not in JsonLines().format(record)
    assert "two\nlines" in json.loads(JsonLines().format(record))["exception"]
