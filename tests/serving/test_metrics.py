"""Logs as JSON lines; metrics are read in `test_app`."""

from __future__ import annotations

import json
import logging
import sys
import threading
import warnings

import pytest

pytest.importorskip("prometheus_client", reason="the serving extra is not installed")

from overtone.serving.metrics import JsonLines, TextLines, set_up_logs, take_down


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


def test_logs_for_people_tell_adapter_tenant_and_request() -> None:
    record = logging.LogRecord("overtone.x", logging.INFO, "x.py", 1, "http POST 200", (), None)
    record.call = {"adapter": "medical", "tenant": "clinic", "request_id": "req_1", "ignored": ()}
    line = TextLines().format(record)
    assert line.endswith("INFO overtone.x: http POST 200 adapter=medical tenant=clinic request_id=req_1")


def test_whatever_logs_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Other packages, warnings and threads that fail, too: a reader of the lines meets nothing else."""
    handler = set_up_logs("json")
    try:
        logging.getLogger("asyncio").error("a task has failed")
        warnings.warn("soon gone", stacklevel=1)
        failing = threading.Thread(target=lambda: 1 / 0, name="failing")
        failing.start()
        failing.join()
    finally:
        take_down(handler)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["logger"] for line in lines] == ["asyncio", "py.warnings", "overtone.serving"]
    assert "ZeroDivisionError" in lines[-1]["exception"]
    assert threading.excepthook is threading.__excepthook__
