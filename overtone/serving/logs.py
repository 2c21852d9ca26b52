"""Logs, as one JSON object a line. Texts and audio of requests are in none of them."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any


class JsonLines(logging.Formatter):
    """`time`, `level`, `logger`, `message`, the fields of a record's `call`, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        content: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        call = getattr(record, "call", None)
        if isinstance(call, dict):
            content |= {key: value for key, value in call.items() if value not in ("", (), None)}
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False, default=str)


def set_up_logs(form: str, *, level: int = logging.INFO) -> logging.Handler:
    """Log to standard error. form: `json` or `text`. Returns the handler, which `take_down` removes."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonLines() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    for name in ("overtone", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level if name == "overtone" else logging.WARNING)
        logger.propagate = False
    return handler


def take_down(handler: logging.Handler) -> None:
    """Undo `set_up_logs`."""
    for name in ("overtone", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.removeHandler(handler)
        logger.propagate = True
