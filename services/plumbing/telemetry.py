"""What operations see: metrics with a closed list of names, JSON logs, traces. No patient value.

A patient key may stand in a log line; it tells nothing by itself. Everything else about a
person may not (architecture.md, promise 5).
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Literal
from uuid import UUID

import structlog
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import Counter, Gauge, Histogram

CounterName = Literal[
    # By reader: events that could not be taken in. Any: look at `passerelle replay --list`.
    "log_dead_letters_total",
    # By service: what met a key id that is not in the keyring, and waits. Any: give the key.
    "unknown_keys_total",
    # By service and whom (client, address): requests answered 429. Rising: a feed runs wild, or
    # somebody tries tokens; an address that is the proxy's own: FORWARDED_ALLOW_IPS is not set.
    "limited_total",
    # By site and reason: refused resources. Rising: a hospital changed its feed.
    "ingest_refused_total",
    # By site and reason: held resources. Rising: a mapping is missing.
    "ingest_held_total",
    # By site: accepted messages.
    "ingest_accepted_total",
    # By outcome: decisions on a recipient.
    "notify_decisions_total",
    # By outcome: delivery attempts.
    "notify_deliveries_total",
    # By outcome: flags announced.
    "screening_flags_total",
]
GaugeName = Literal[
    # By reader, seconds: age of the newest event read. Over 60: cards are late.
    "log_lag_seconds",
    # By service, seconds: age of the oldest event not yet carried to Kafka. Over 60: look at
    # the log of that service for `carrier_waits` or `carrier_stopped`.
    "log_uncarried_seconds",
    # By service: audit records not yet in the chain. Over 0 for a minute: the sealer is stuck.
    "audit_unsealed",
    # Seconds: age of the oldest row due by time alone. Over 120: the sweep is stuck.
    "screening_due_seconds",
    # By state: cards.
    "notify_unroutable",
    # 1 while the region file cannot be read: until then nothing is disclosed (CS-52).
    "notify_directory_away",
    # By kind: items a person must look at.
    "waiting_for_a_person",
    # By reason: those of them that wait longer than PASSERELLE_HOLD_ALARM_HOURS. Any: somebody's
    # cards are held back and nobody has looked at why.
    "waiting_too_long",
]
HistogramName = Literal[
    # By service, seconds: time to answer a request.
    "http_seconds",
    # By reader, seconds: one batch, from fetched to committed.
    "log_batch_seconds",
]

_counters: dict[str, Counter] = {}
_gauges: dict[str, Gauge] = {}
_histograms: dict[str, Histogram] = {}
_propagator = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("passerelle")


def counter(name: CounterName, by: str) -> Counter:
    """The counter `name` for the label value `by`: a service, site or outcome, never a person."""
    if name not in _counters:
        _counters[name] = Counter(f"passerelle_{name}", name, ["by"])
    return _counters[name].labels(by)


def gauge(name: GaugeName, by: str) -> Gauge:
    if name not in _gauges:
        _gauges[name] = Gauge(f"passerelle_{name}", name, ["by"])
    return _gauges[name].labels(by)


def histogram(name: HistogramName, by: str) -> Histogram:
    if name not in _histograms:
        _histograms[name] = Histogram(f"passerelle_{name}", name, ["by"])
    return _histograms[name].labels(by)


def new_id() -> UUID:
    """A random UUID (version 4)."""
    return UUID(bytes=os.urandom(16), version=4)


def traceparent() -> str | None:
    """The W3C traceparent of what is going on now, if it is traced."""
    carried: dict[str, str] = {}
    _propagator.inject(carried)
    return carried.get("traceparent")


@contextlib.contextmanager
def following(parent: str | None, name: str) -> Iterator[None]:
    """A span called `name` that follows `parent`, a W3C traceparent of another process.

    Of an error it says that there was one: its text, which the library would make the span's
    status, may quote a value.
    """
    context = _propagator.extract({"traceparent": parent}) if parent else None
    with _tracer.start_as_current_span(
        name, context=context, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield
        except Exception:
            span.set_status(trace.StatusCode.ERROR)
            raise


def set_up(service: str, level: str, otlp_endpoint: str | None) -> None:
    """Logs as JSON lines on standard error; traces to `otlp_endpoint`, if given."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    for name in ("uvicorn", "uvicorn.access", "uvicorn.error", "httpx", "asyncio", "aiokafka"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).setLevel(logging.CRITICAL)
    root = logging.getLogger()
    root.handlers = [_ToStructlog()]
    root.setLevel(logging.WARNING)
    if otlp_endpoint is not None:
        _export(service, otlp_endpoint)


class _ToStructlog(logging.Handler):
    """Libraries' warnings: where and of what kind, not their text, which may quote a value."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        structlog.get_logger().warning(
            "library", logger=record.name, line=record.lineno, error=kind
        )


def _export(service: str, endpoint: str) -> None:
    # Imported here: half a second and 30 MB that only those pay who want traces.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider(resource=Resource.create({"service.name": f"passerelle-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)
