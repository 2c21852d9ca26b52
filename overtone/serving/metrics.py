"""Metrics for Prometheus, and logs as one JSON object a line: one for each call, without its text and audio."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from overtone.serving.engine.engine import EngineState
from overtone.serving.recognition.bases import Bases
from overtone.serving.recognition.request import Call
from overtone.serving.recognition.service import RecognitionService

LOG = logging.getLogger("overtone.serving.calls")

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
Labels = tuple[str, ...]
States = Callable[[], Mapping[Labels, tuple[EngineState, Mapping[str, float]]]]
"""State of each engine and counts of its adapter store, by the values of its labels."""
F = TypeVar("F", CounterMetricFamily, GaugeMetricFamily)
QUIET = ("GET /v1/health/live", "GET /v1/health/ready", "GET /v1/metrics", "GET /")
"""Calls of monitoring; their success is not logged."""
SUCCESSES = ("OK", "200", "101")

ENGINE_COUNTERS = {
    "rows": "Rows of audio computed",
    "batches": "Forwards of the model",
    "mixed_batches": "Forwards with more than one choice of adapters",
    "audio_seconds": "Audio computed, windows counted as often as they were heard",
    "padded_seconds": "Audio computed, padding included",
    "forward_seconds": "Time spent in forwards",
    "rejected": "Rows refused because the queue was full",
    "cancelled": "Rows given up by their clients",
    "expired": "Rows whose deadline came before their turn",
    "failed": "Rows answered with an error of the forward",
    "restarts": "Times that the worker was started again",
}
ENGINE_GAUGES = {"waiting": "Rows in the queue", "running": "Rows in the forward that runs"}
STORE_GAUGES = {
    "resident": "Adapter versions in the model",
    "leased": "Adapter versions that requests hold",
    "refused": "Adapters that cannot be used",
    "names": "Adapters known",
}


class Observer:
    """Counts and logs every call at its end. The interface, `riva` or `http`, is their label `door`.

    Where a server has several bases, there is a label `base` too; it is empty for calls that mean none.
    """

    def __init__(self, bases: Bases) -> None:
        self.bases = bases
        self.of_base = ["base"] if bases.are_several else []
        self.used: set[tuple[str, str]] = set()
        """Bases and adapters that calls have used and that are not known to be gone."""
        self.registry = CollectorRegistry()
        self.calls = Counter(
            "overtone_requests",
            "Calls that have ended",
            ["door", "method", "code", *self.of_base],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "overtone_request_seconds",
            "Time from a call's beginning to its end",
            ["door", "method", *self.of_base],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.audio = Counter(
            "overtone_request_audio_seconds", "Audio received", ["door", *self.of_base], registry=self.registry
        )
        self.adapters = Counter(
            "overtone_adapter_requests",
            "Successful calls that used the adapter",
            ["adapter", *self.of_base],
            registry=self.registry,
        )
        of_replica = [] if bases.first.elsewhere is None else ["replica"]
        self.registry.register(StateCollector(self.states, [*of_replica, *self.of_base]))

    def at(self, interface: str) -> Callable[[Call], None]:
        """`on_call` of the Riva interface."""
        return partial(self.ended, interface)

    def ended(self, interface: str, call: Call, request_id: str = "") -> None:
        """Count and log a call."""
        base = self.label(call.base)
        self.calls.labels(interface, call.method, call.code, *base).inc()
        self.seconds.labels(interface, call.method, *base).observe(call.seconds)
        self.audio.labels(interface, *base).inc(call.audio_seconds)
        succeeded = call.code in SUCCESSES
        for name in call.adapter.split("+") if succeeded and call.adapter else ():
            self.adapters.labels(name, *base).inc()
            self.used.add((call.base, name))
        quiet = succeeded and call.method in QUIET
        facts = {"door": interface, **call.facts(), **({"request_id": request_id} if request_id else {})}
        LOG.log(
            logging.DEBUG if quiet else logging.INFO,
            "%s %s %s %.3f s",
            interface,
            call.method,
            call.code,
            call.seconds,
            extra={"call": facts},
        )

    def text(self) -> bytes:
        """Metrics in the format of Prometheus, without those of adapters that are gone."""
        stores = {self.base_of(service): service.store for service in self.bases}
        for base, name in [used for used in self.used if used[1] not in stores.get(used[0], ())]:
            self.used.discard((base, name))
            self.adapters.remove(name, *self.label(base))
        return generate_latest(self.registry)

    def states(self) -> Mapping[Labels, tuple[EngineState, Mapping[str, float]]]:
        """State of every engine, here or elsewhere, by the values of its labels."""
        found: dict[Labels, tuple[EngineState, Mapping[str, float]]] = {}
        for service in self.bases:
            base = self.label(self.base_of(service))
            if service.elsewhere is None:
                found[base] = service.engine.state(), service.store.counters()
            else:
                found |= {(replica, *base): state for replica, state in service.elsewhere.states().items()}
        return found

    def base_of(self, service: RecognitionService) -> str:
        """Name of a service's base, as calls have it: empty where there is one."""
        return service.base if self.bases.are_several else ""

    def label(self, base: str) -> Labels:
        """Values of the label `base`."""
        return (base,) if self.of_base else ()


class StateCollector:
    """Counts of engines and adapter stores, read when Prometheus asks for them."""

    def __init__(self, states: States, labels: Sequence[str]) -> None:
        """labels: `replica` and `base`, each where there may be several."""
        self.states = states
        self.labels = labels

    def collect(self) -> Iterator[Metric]:
        states = self.states()
        for name, text in ENGINE_COUNTERS.items():
            counter = CounterMetricFamily(f"overtone_engine_{name}", text, labels=self.labels)
            yield self.filled(counter, {labels: getattr(state, name) for labels, (state, _) in states.items()})
        for name, text in {**ENGINE_GAUGES, "alive": "Whether the worker runs"}.items():
            gauge = GaugeMetricFamily(f"overtone_engine_{name}", text, labels=self.labels)
            yield self.filled(gauge, {labels: getattr(state, name) for labels, (state, _) in states.items()})
        for name in dict.fromkeys(name for _, counters in states.values() for name in counters):
            values = {labels: counters[name] for labels, (_, counters) in states.items() if name in counters}
            if name in STORE_GAUGES:
                gauge = GaugeMetricFamily(f"overtone_adapters_{name}", STORE_GAUGES[name], labels=self.labels)
                yield self.filled(gauge, values)
            else:
                counter = CounterMetricFamily(f"overtone_adapters_{name}", f"Adapters: {name}", labels=self.labels)
                yield self.filled(counter, values)

    def filled(self, family: F, values: Mapping[Labels, float]) -> F:
        """The family with a sample for each engine."""
        for labels, value in values.items():
            family.add_metric(labels, float(value))
        return family


# Logs

TOLD = ("base", "adapter", "tenant", "request_id", "audio_seconds", "ignored")
"""Facts of a call in a text line."""


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


class TextLines(logging.Formatter):
    """Time, level, logger and message, and the facts of a record's `call` that the message does not tell."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        call = getattr(record, "call", None)
        facts = [f" {key}={call[key]}" for key in TOLD if call.get(key)] if isinstance(call, dict) else []
        first, newline, rest = super().format(record).partition("\n")
        return f"{first}{''.join(facts)}{newline}{rest}"


def set_up_logs(form: str, *, level: int = logging.INFO) -> logging.Handler:
    """Log to standard error, warnings of other packages and uncaught errors of threads included.

    form: `json` or `text`. Returns the handler, which `take_down` removes.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.getLogger().addHandler(handler)
    logging.getLogger("overtone").setLevel(level)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    threading.excepthook = log_thread_error
    return handler


def log_thread_error(failed: threading.ExceptHookArgs) -> None:
    """Log the error that ended a thread."""
    error = failed.exc_value
    name = failed.thread.name if failed.thread is not None else "?"
    logging.getLogger("overtone.serving").error("the thread '%s' has failed", name, exc_info=error)


def take_down(handler: logging.Handler) -> None:
    """Undo `set_up_logs`."""
    logging.getLogger().removeHandler(handler)
    logging.captureWarnings(False)
    threading.excepthook = threading.__excepthook__
