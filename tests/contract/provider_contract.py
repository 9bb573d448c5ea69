"""What every provider must do: subclass, fill in the hooks, and run.

    class TestMine(ProviderContract):
        scenarios = {"plain": "…", …}     # what to say to the upstream for each of SCENARIOS
        …hooks…

A subclass has a fixture `upstream`: a fake one on real sockets.
"""

from __future__ import annotations

import logging
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from services.core.errors import GatewayError, ProtocolError, UpstreamUnreachable
from services.core.events import Event, Events, Finish, Text, Usage
from services.core.models import Credential, Secret
from services.core.requests import ChatRequest
from services.providers.base import Provider
from services.transport import Timeouts, Transport
from tests.gateway import free_port, wait_for

from .folded import folded, plain_text

SCENARIOS = {
    "plain": "a short answer",
    "other": "an answer with other words than the plain one",
    "unicode": "an answer with characters of several bytes",
    "bytes": "the same as unicode, one byte a write",
    "long": "an answer of at least five seconds",
    "silent": "some text, three silent seconds, the rest",
    "unanswered": "five seconds without a status line",
    "cut": "some text, then the connection closes",
}
SOUND = ("plain", "unicode", "bytes")
CANARY = "canary7f3e-8c1f04d2-secret"
SOON = Timeouts(connect=5.0, first_byte=10.0, idle=10.0, total=30.0)


class ProviderContract(ABC):
    scenarios: Mapping[str, str]
    """What to say to the upstream for each of `SCENARIOS`."""

    refusals: Mapping[str, tuple[type[GatewayError], int]]
    """What to say for each kind of refusal, and what the operator's caller sees: a class and a
    status. Should hold a 401, a 429, a 500 and an HTML page.
    """

    own_refusals: Mapping[str, int] = {}
    """What to say, and the status for a caller whose own credential it is."""

    @abstractmethod
    def make_provider(self, url: str, wires: Transport) -> Provider:
        """The provider before the upstream at `url` (scheme, host and port)."""

    @abstractmethod
    def request(self, said: str, stream: bool) -> ChatRequest:
        """A question that says `said`."""

    @abstractmethod
    def asked(self, upstream: Any) -> int:
        """How many questions have reached the upstream."""

    @abstractmethod
    def answering(self, upstream: Any) -> int:
        """How many answers the upstream is in the middle of; one whose reader has left is not."""

    def token(self, upstream: Any) -> str:
        """What the upstream takes as a credential; it may be any, where it takes any."""
        return CANARY

    @pytest.fixture
    def wires(self) -> Iterator[Transport]:
        transport = Transport(SOON)
        yield transport
        transport.close()

    @pytest.fixture
    def provider(self, upstream: Any, wires: Transport) -> Provider:
        return self.make_provider(upstream.url, wires)

    def ask(
        self, provider: Provider, upstream: Any, said: str, stream: bool = True, own: bool = False
    ) -> Events:
        request = self.request(said, stream)
        route = provider.route(request.model)
        assert route is not None
        credential = Credential(Secret(self.token(upstream)), from_caller=own)
        return provider.stream(request, route, credential)

    def ask_for(
        self, provider: Provider, upstream: Any, scenario: str, stream: bool = True
    ) -> Events:
        return self.ask(provider, upstream, self.scenarios[scenario], stream)

    def test_every_scenario_is_named(self) -> None:
        assert set(self.scenarios) == set(SCENARIOS)
        assert len(self.refusals) >= 4

    @pytest.mark.parametrize("scenario", SOUND)
    def test_stream_and_whole_answer_say_the_same(
        self, provider: Provider, upstream: Any, scenario: str
    ) -> None:
        streamed, whole = (
            folded(self.ask_for(provider, upstream, scenario, stream)) for stream in (True, False)
        )
        assert plain_text(streamed)
        assert streamed == whole

    def test_any_split_of_the_bytes_gives_the_same_events(
        self, provider: Provider, upstream: Any
    ) -> None:
        whole, split = (
            folded(self.ask_for(provider, upstream, name)) for name in ("unicode", "bytes")
        )
        assert whole == split
        assert not plain_text(whole).isascii()

    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("scenario", SOUND)
    def test_each_choice_has_one_finish_and_only_usage_after_it(
        self, provider: Provider, upstream: Any, scenario: str, stream: bool
    ) -> None:
        events = _events(self.ask_for(provider, upstream, scenario, stream))
        ends = [event.index for event in events if isinstance(event, Finish)]
        assert ends
        assert len(ends) == len(set(ends))
        last = max(place for place, event in enumerate(events) if isinstance(event, Finish))
        assert all(isinstance(event, Usage) for event in events[last + 1 :])

    def test_cut_stream_raises_after_what_came(self, provider: Provider, upstream: Any) -> None:
        told: list[Event] = []
        with pytest.raises(ProtocolError):
            for batch in self.ask_for(provider, upstream, "cut"):
                told += batch
        assert any(isinstance(event, Text) and event.text for event in told)
        assert not any(isinstance(event, Finish) for event in told)

    @pytest.mark.parametrize("stream", [True, False])
    def test_refusal_is_the_operators_trouble_in_neutral_words(
        self, provider: Provider, upstream: Any, stream: bool
    ) -> None:
        for said, (kind, status) in self.refusals.items():
            with pytest.raises(kind) as caught:
                list(self.ask(provider, upstream, said, stream))
            assert caught.value.status == status, said
            assert caught.value.message
            assert "<" not in caught.value.message

    def test_refusal_of_the_callers_own_credential_is_passed_on(
        self, provider: Provider, upstream: Any
    ) -> None:
        seen = {}
        for said in self.own_refusals:
            with pytest.raises(GatewayError) as caught:
                list(self.ask(provider, upstream, said, own=True))
            seen[said] = caught.value.status
        assert seen == self.own_refusals

    def test_refused_connection_is_unreachable(self, upstream: Any, wires: Transport) -> None:
        provider = self.make_provider(f"http://127.0.0.1:{free_port()}", wires)
        with pytest.raises(UpstreamUnreachable):
            list(self.ask_for(provider, upstream, "plain"))

    def test_silence_yields_empty_batches(self, provider: Provider, upstream: Any) -> None:
        batches = list(self.ask_for(provider, upstream, "silent"))
        assert batches.count([]) >= 2
        assert plain_text(folded(batches))

    @pytest.mark.parametrize("scenario", ["long", "silent", "unanswered"])
    def test_closing_early_closes_the_upstream_connection(
        self, provider: Provider, upstream: Any, scenario: str
    ) -> None:
        events = self.ask_for(provider, upstream, scenario)
        for batch in events:
            if not batch or scenario == "long":
                break
        assert self.answering(upstream) == 1
        _close(events)
        wait_for(lambda: self.answering(upstream) == 0, 2, "the end of the upstream connection")

    def test_nothing_is_sent_before_the_first_next(self, provider: Provider, upstream: Any) -> None:
        before = self.asked(upstream)
        unread = self.ask_for(provider, upstream, "plain")
        read = self.ask_for(provider, upstream, "plain")
        next(read)
        assert self.asked(upstream) == before + 1
        _close(read)
        _close(unread)
        assert self.asked(upstream) == before + 1

    def test_interleaved_streams_do_not_mix(self, provider: Provider, upstream: Any) -> None:
        names = ("plain", "other", "unicode")
        alone = [folded(self.ask_for(provider, upstream, name)) for name in names]
        running = {n: self.ask_for(provider, upstream, name) for n, name in enumerate(names)}
        told: list[list[list[Event]]] = [[] for _ in names]
        while running:
            for number, events in list(running.items()):
                batch = next(events, None)
                if batch is None:
                    del running[number]
                else:
                    told[number].append(batch)
        assert [folded(batches) for batches in told] == alone
        assert len({plain_text(answer) for answer in alone}) == len(names)

    def test_secrets_are_told_nowhere(
        self, provider: Provider, upstream: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        secret = self.token(upstream)
        told = [repr(provider), repr(vars(provider))]
        for said in [*self.refusals, self.scenarios["cut"]]:
            for own in (True, False):
                with pytest.raises(GatewayError) as caught:
                    list(self.ask(provider, upstream, said, own=own))
                told += traceback.format_exception(caught.value)
                told += [repr(caught.value), str(vars(caught.value))]
        told += [
            f"{record.getMessage()} {record.args} {record.exc_text}" for record in caplog.records
        ]
        assert secret not in "\n".join(told)


def _events(batches: Events) -> list[Event]:
    return [event for batch in batches for event in batch]


def _close(events: Events) -> None:
    events.close()  # type: ignore[attr-defined]  # a provider's events are a generator
