"""OpenTelemetry spans of requests (extra `otel`): request, and under it queue, prefill and decode of each choice.

Spans hold times, counts, codes and hashes, as the log does, and never content.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_SERVER_ERROR = 500


def otlp_provider(endpoint: str) -> TracerProvider:
    """A provider that sends spans to `endpoint` in batches; the `OTEL_*` variables of the SDK apply besides."""
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "reft-serve"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


class Tracing:
    """Makes the spans of requests. Without one, a request costs a comparison with None."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("reft_server")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[RequestTrace]:
        """The span of one HTTP request, under the caller's where it sends a W3C `traceparent`."""
        parent = self._propagator.extract({key: headers.get(key, "") for key in ("traceparent", "tracestate")})
        span = self._tracer.start_span(f"{method} request", context=parent, kind=SpanKind.SERVER)
        try:
            yield RequestTrace(self._tracer, span)
        finally:
            span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class RequestTrace:
    """One request's span."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span

    def add_choice(
        self, index: int, *, queue_s: float, time_to_first_token_s: float, total_s: float, num_tokens: int
    ) -> None:
        """Spans of a choice that ends now, from its submission on; durations are in seconds."""
        start_ns = time.time_ns() - round(total_s * 1e9)
        ends_s = (queue_s, time_to_first_token_s, total_s)
        begin_ns, context = start_ns, trace.set_span_in_context(self._span)
        for name, end_s in zip(("queue", "prefill", "decode"), ends_s, strict=True):
            end_ns = max(begin_ns, start_ns + round(end_s * 1e9))
            span = self._tracer.start_span(name, context=context, start_time=begin_ns)
            span.set_attribute("reft.choice", index)
            if name == "decode":
                span.set_attribute("gen_ai.usage.output_tokens", num_tokens)
            span.end(end_ns)
            begin_ns = end_ns

    def end(self, method: str, route: str, status: int, fields: Mapping[str, str | int | float]) -> None:
        """What is known of the request once it has ended."""
        self._span.update_name(f"{method} {route}")
        self._span.set_attributes(
            {"http.request.method": method, "http.route": route, "http.response.status_code": status}
        )
        self._span.set_attributes({f"reft.{name}": value for name, value in fields.items()})
        if status >= _SERVER_ERROR or status == 0:
            self._span.set_status(StatusCode.ERROR)
