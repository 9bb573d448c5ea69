"""What can be counted, for Prometheus. Several workers write files that any of them can add up.

A request costs an append or two; once a second a worker sums up what came and writes it. No
label holds a secret, and none takes values that callers think up.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.values import ValueClass

from services.core import errors
from services.keys.usage import RequestUsage

FIRST_TOKEN_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0)

_KINDS: tuple[tuple[type[errors.GatewayError], str], ...] = (
    (errors.UpstreamUnreachable, "unreachable"),
    (errors.UpstreamTimeout, "timeout"),
    (errors.ProtocolError, "protocol"),
    (errors.RateLimited, "limited"),
    (errors.Unauthorized, "unauthorized"),
    (errors.PermissionDenied, "unauthorized"),
    (errors.Unavailable, "unavailable"),
)
_REFUSALS = {401: "unauthorized", 403: "unauthorized", 429: "limited"}


class Metrics(Collector):
    """One per worker. `routes` are the application's URL rules, `under_way` counts open answers.

    `accounts` gives each account's provider and state, `store_is_up` what is known of the store;
    both are asked at a scrape, since they are the same for all workers.
    """

    def __init__(
        self,
        routes: Callable[[], Iterable[str]],
        under_way: Callable[[], int],
        accounts: Callable[[], Iterable[tuple[str, str]]] = tuple,
        store_is_up: Callable[[], bool] = lambda: True,
    ) -> None:
        self._routes = Routes(routes)
        self._under_way = under_way
        self._accounts = accounts
        self._store_is_up = store_is_up
        self._answers: deque[tuple[str, str]] = deque()
        self._own = own = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"causeway_{name}", about, labels, registry=own)

        self._requests = counter("requests", "Answers by route and status", "route", "status")
        self._turns = counter(
            "turns", "Questions to models by outcome", "provider", "model", "outcome"
        )
        self._tokens = counter(
            "tokens", "Tokens, in: prompts, out: answers", "provider", "model", "direction"
        )
        self._images = counter("images", "Pictures made", "provider", "model")
        self._upstream_errors = counter(
            "upstream_errors", "Failed calls to upstreams", "provider", "kind"
        )
        self._refreshes = counter(
            "refreshes", "Renewals of upstream credentials", "provider", "outcome"
        )
        self._refreshed = Gauge(
            "causeway_last_refresh_timestamp_seconds",
            "When a credential was last renewed; its age is time() less this",
            ["provider"],
            registry=own,
            multiprocess_mode="max",
        )
        self._streams = Gauge(
            "causeway_streams_open", "Answers under way", registry=own, multiprocess_mode="livesum"
        )
        self._first_token = Histogram(
            "causeway_first_token_seconds",
            "From a request's arrival to the first piece of its answer",
            ["provider"],
            buckets=FIRST_TOKEN_SECONDS,
            registry=own,
        )

    def answered(self, path: str, status: str) -> None:
        """An answer has begun, to a path in its one spelling."""
        self._answers.append((path, status))

    def upstream_failed(self, provider: str, error: errors.GatewayError) -> None:
        """An upstream failed a call, whether or not the caller got to see it."""
        self._upstream_errors.labels(provider, kind_of(error)).inc()

    def refreshed(self, provider: str, ok: bool) -> None:
        """An upstream credential was renewed, or could not be."""
        self._refreshes.labels(provider, "ok" if ok else "failed").inc()
        if ok:
            self._refreshed.labels(provider).set(time.time())

    def turns(self, turns: Sequence[RequestUsage]) -> None:
        """Count turns that are over; their models are listed ones or "other"."""
        outcomes: Tally[tuple[str, str, str]] = Tally()
        tokens: Tally[tuple[str, str, str]] = Tally()
        images: Tally[tuple[str, str]] = Tally()
        for turn in turns:
            provider, model = turn.provider or "none", turn.model
            outcomes[provider, model, turn.outcome] += 1
            tokens[provider, model, "in"] += turn.prompt_tokens
            tokens[provider, model, "out"] += turn.completion_tokens
            images[provider, model] += turn.images
            if turn.first_token is not None:
                self._first_token.labels(provider).observe(turn.first_token)
        _add(self._turns, outcomes)
        _add(self._tokens, tokens)
        _add(self._images, images)

    def tick(self) -> None:
        """Write what the requests since the last tick have noted."""
        noted = (self._answers.popleft() for _ in range(len(self._answers)))
        _add(self._requests, Tally((self._routes.name(path), status[:3]) for path, status in noted))
        self._streams.set(self._under_way())

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format, over all workers."""
        self.tick()
        registry = self._own
        if ValueClass._multiprocess:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # as it comes
        asked = CollectorRegistry()
        asked.register(self)
        return generate_latest(registry) + generate_latest(asked)

    def collect(self) -> Iterable[Metric]:
        """What is asked at a scrape; prometheus-client calls it."""
        states = GaugeMetricFamily(
            "causeway_accounts", "Upstream accounts by state", labels=["provider", "state"]
        )
        for labels, number in Tally(self._accounts()).items():
            states.add_metric(list(labels), number)
        up = GaugeMetricFamily("causeway_store_up", "Whether the store serves")
        up.add_metric([], float(self._store_is_up()))
        return [states, up]


class Routes:
    """Names a path by its URL rule; what follows none is "other"."""

    def __init__(self, rules: Callable[[], Iterable[str]]) -> None:
        self._rules = rules
        self._fixed: frozenset[str] | None = None
        self._open: tuple[tuple[str, str], ...] = ()

    def name(self, path: str) -> str:
        if self._fixed is None:
            rules = sorted(self._rules())
            opened = [(rule.partition("<")[0], rule) for rule in rules if "<" in rule]
            self._open = tuple(sorted(opened, key=lambda pair: -len(pair[0])))
            self._fixed = frozenset(rule for rule in rules if "<" not in rule)
        if path in self._fixed:
            return path
        fitting = (rule for beginning, rule in self._open if path.startswith(beginning))
        return next(fitting, "other")


def kind_of(error: errors.GatewayError) -> str:
    """One of a few words for an upstream's failure."""
    if isinstance(error, errors.UpstreamRefused):
        status = error.upstream_status
        return _REFUSALS.get(status, "failed" if status >= 500 else "rejected")
    return next((word for kind, word in _KINDS if isinstance(error, kind)), "other")


def _add(counter: Counter, tally: Tally[Any]) -> None:
    for labels, number in tally.items():
        if number:
            counter.labels(*labels).inc(number)
