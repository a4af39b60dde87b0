"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from toolprm_decode.decoding import Decoded, Decoder
from toolprm_decode.integrations.server.gate import Gate

_SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts of one server, apart from those of others in the process."""

    def __init__(self, decoder: Decoder, gate: Gate):
        self._registry = CollectorRegistry()
        self._gauge("toolprm_queue_length", "Requests that wait for their turn.", lambda: gate.waiting)
        self._gauge("toolprm_requests_running", "Requests that are decoded.", lambda: gate.running)
        self._gauge("toolprm_requests_in_flight", "Requests whose answers are not sent.", lambda: gate.inside)
        for place, side in enumerate(("policy", "prm")):
            self._gauge(
                f"toolprm_kv_blocks_{side}",
                f"Blocks of keys and values of the {side} that requests hold.",
                lambda place=place: decoder.blocks_in_use[place],  # type: ignore[misc]
            )
        self._requests = Counter(
            "toolprm_requests",
            "Requests that ended, by status; 499: the client left.",
            ["path", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "toolprm_request_seconds",
            "From the head of a completion request to the end of its answer.",
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._first = Histogram(
            "toolprm_first_step_seconds",
            "From the head of a streamed request to its first certain step.",
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._tokens = Counter(
            "toolprm_tokens",
            "Tokens of answered requests: run through the policy and the prm, read from their "
            "caches, forced by the grammar, and of prompts and answers.",
            ["kind"],
            registry=self._registry,
        )
        self.cancelled = Counter(
            "toolprm_requests_cancelled", "Requests whose client left before the end.", registry=self._registry
        )

    def _gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        Gauge(name, about, registry=self._registry).set_function(value)

    def ended(self, path: str, status: int, seconds: float) -> None:
        """A request ended."""
        self._requests.labels(path, str(status)).inc()
        if path == COMPLETIONS:
            self._seconds.observe(seconds)

    def began(self, seconds: float) -> None:
        """The first step of a stream is certain."""
        self._first.observe(seconds)

    def answered(self, decoded: Decoded) -> None:
        """Counts what an answer took."""
        stats = decoded.stats
        for kind, count in (
            ("policy", stats.policy_tokens),
            ("prm", stats.prm_tokens),
            ("policy_cached", stats.cached_tokens),
            ("prm_cached", stats.prm_cached_tokens),
            ("forced", stats.forced_tokens),
            ("prompt", stats.prompt_tokens),
            ("completion", len(decoded.tokens)),
        ):
            self._tokens.labels(kind).inc(count)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


COMPLETIONS = "/v1/chat/completions"
