"""Spans for OpenTelemetry, made of events after the fact: one trace from client to tool. Floor 5.

Rules:

1. A request is a server span, a child of the client's own if that told of it (``traceparent``); each message that is
   handled for it is a span, a child of the handling that sent it, be it by ask or by tell.
2. A span is made when its event comes: what is under way costs nothing but the id that its children name.
3. What belongs to no request, and what the client does not want sampled, leaves no spans.
4. Spans hold names, times and outcomes, never payloads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from grami_actors.errors import ConfigError, ErrorCode
from grami_actors.future import Future, handled
from grami_actors.messages import Scope, ToolCall, new_span_id
from grami_actors.telemetry import Bus, MessageHandled, RequestFinished, family

SERVICE = "grami_actors"
"""The name of the service, unless OTEL_SERVICE_NAME gives another."""


def traceparent() -> str:
    """The W3C header for the message being handled here, to be passed on in calls of other services; "" outside.

    ::

        httpx.get(url, headers={"traceparent": traceparent()})

    Source: https://www.w3.org/TR/trace-context/#traceparent-header
    """
    here = handled()
    if here is None or here.scope is None or not (trace_id := here.scope.trace_id):
        return ""
    return f"00-{trace_id}-{here.trace()}-{here.scope.root.sampled:02x}"


def trace_to(bus: Bus, processor: Any = None, *, clock: Callable[[], int] = time.time_ns) -> Callable[[], None]:
    """Make spans of a system's events.

    Args:
        bus: where the events come from.
        processor: an OpenTelemetry ``SpanProcessor`` that gets the spans. If none is given they go to a collector, in
            batches, by OTLP over HTTP; the standard ``OTEL_*`` variables say where to.
        clock: nanoseconds since the epoch.

    Returns:
        a function that ends it. If no processor was given it also sends what is left, which may take seconds when the
        collector does not answer: call it in a thread.

    Raises:
        ConfigError: the extra ``otel`` is not installed.
    """
    try:
        spans = _Spans(processor or _collector(), clock)
    except ImportError:
        raise ConfigError("traces need a package: pip install 'grami_actors[otel]'") from None
    ends = (bus.subscribe(spans.handled, MessageHandled), bus.subscribe(spans.requested, RequestFinished))

    def end() -> None:
        for each in ends:
            each()
        if processor is None:
            spans.processor.shutdown()

    return end


def _collector() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter())


class _Spans:
    """Makes the spans."""

    def __init__(self, processor: Any, clock: Callable[[], int]) -> None:
        import opentelemetry.trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self.processor = processor
        self._clock = clock
        self._api: Any = opentelemetry.trace
        self._span: Any = ReadableSpan
        resource = Resource.create()
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": SERVICE}))
        self._origin = {"resource": resource, "instrumentation_scope": InstrumentationScope(SERVICE)}
        self._flags = self._api.TraceFlags(self._api.TraceFlags.SAMPLED)

    def handled(self, event: MessageHandled) -> None:
        """A handler finished."""
        trace_id = _traced(event.scope)
        if not trace_id:
            return
        root = event.scope.root
        # A future at the root is an ask from outside: there is no request above it.
        parent = event.cause or ("" if isinstance(root, Future) else _span_of(root))
        actor, kind = family(event.actor), _type_of(event.message)
        self._end(
            actor if isinstance(event.message, ToolCall) else f"{actor} {kind}",
            event,
            self._api.SpanKind.INTERNAL,
            self._context(trace_id, event.span or new_span_id()),
            self._context(trace_id, parent) if parent else None,
            {
                "messaging.operation.name": "handle",
                "messaging.operation.type": "process",
                "messaging.destination.name": event.actor,
                "grami.message_type": kind,
                "grami.sender": event.sender,
            },
        )

    def requested(self, event: RequestFinished) -> None:
        """A client has its answer."""
        trace_id = _traced(event.scope)
        if not trace_id:
            return
        root = event.scope.root
        # A type that nobody knows may be anything, and names of spans are counted.
        kind = "" if event.outcome == ErrorCode.UNKNOWN_TYPE else event.message_type
        self._end(
            f"grami {kind}".rstrip(),
            event,
            self._api.SpanKind.SERVER,
            self._context(trace_id, _span_of(root)),
            self._context(trace_id, root.remote_parent, remote=True) if root.remote_parent else None,
            {
                "messaging.destination.name": event.to,
                "messaging.client.id": event.connection,
                "enduser.id": event.principal,
                "grami.message_type": kind,
                "grami.handling": event.handling,
            },
        )

    def _context(self, trace_id: str, span_id: str, *, remote: bool = False) -> Any:
        return self._api.SpanContext(int(trace_id, 16), int(span_id, 16), remote, self._flags)

    def _end(
        self,
        name: str,
        event: MessageHandled | RequestFinished,
        kind: Any,
        context: Any,
        parent: Any,
        attributes: dict[str, Any],
    ) -> None:
        end = self._clock()
        attributes["messaging.system"] = SERVICE
        attributes["grami.queue_wait"] = event.queue_wait
        status = self._api.Status()
        if event.outcome != "ok":
            attributes["error.type"] = event.outcome
            status = self._api.Status(self._api.StatusCode.ERROR)
        span = self._span(
            name,
            context,
            parent,
            kind=kind,
            status=status,
            attributes=attributes,
            start_time=end - round(event.duration * 1e9),
            end_time=end,
            **self._origin,
        )
        self.processor.on_end(span)


def _traced(scope: Scope | None) -> str:
    """The trace that a scope's spans belong to; empty if there are to be none."""
    return scope.trace_id if scope is not None and scope.root.sampled else ""


def _span_of(root: Scope) -> str:
    """What names the span of a request: made when first asked for, and kept with its scope."""
    span: str = vars(root).setdefault("span", new_span_id())
    return span


def _type_of(message: Any) -> str:
    """The type of a message on the wire; of what is not for the wire, its class."""
    kind = type(message)
    tag = getattr(getattr(kind, "__struct_config__", None), "tag", None)
    return tag if isinstance(tag, str) else kind.__name__
