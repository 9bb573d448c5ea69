"""The pool hands out the newest live connection and lets none grow old."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from services.transport.connect import Route
from services.transport.pool import Pool

HERE, THERE = Route("http", "here", 80), Route("http", "there", 80)

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made = [socket.socketpair() for _ in range(4)]
    yield made
    for pair in made:
        for sock in pair:
            sock.close()


def closed(sock: socket.socket) -> bool:
    return sock.fileno() < 0


def test_newest_connection_comes_first_and_routes_do_not_mix(pairs: list[Pair]) -> None:
    pool = Pool(4)
    for ours, _ in pairs[:2]:
        pool.give(HERE, ours)
    assert pool.take(THERE) is None
    assert pool.take(HERE) is pairs[1][0]
    assert pool.take(HERE) is pairs[0][0]
    assert pool.take(HERE) is None


def test_oldest_connection_makes_room(pairs: list[Pair]) -> None:
    pool = Pool(2)
    for ours, _ in pairs[:3]:
        pool.give(HERE, ours)
    assert [closed(ours) for ours, _ in pairs[:3]] == [True, False, False]


def test_connection_with_news_is_closed_and_the_next_tried(pairs: list[Pair]) -> None:
    pool = Pool(4)
    for ours, _ in pairs[:3]:
        pool.give(HERE, ours)
    pairs[2][1].close()
    pairs[1][1].sendall(b"unasked")
    assert pool.take(HERE) is pairs[0][0]
    assert closed(pairs[1][0])
    assert closed(pairs[2][0])


def test_aged_connections_are_closed_even_on_routes_nobody_asks_for(pairs: list[Pair]) -> None:
    pool = Pool(4, max_age=0.05)
    pool.give(HERE, pairs[0][0])
    pool.give(THERE, pairs[1][0])
    time.sleep(0.06)
    assert pool.take(HERE) is None
    assert closed(pairs[0][0])
    pool.give(HERE, pairs[2][0])
    assert closed(pairs[1][0])
    assert not closed(pairs[2][0])


def test_closed_pool_closes_what_it_has_and_gets(pairs: list[Pair]) -> None:
    pool = Pool(4)
    pool.give(HERE, pairs[0][0])
    pool.close()
    pool.give(HERE, pairs[1][0])
    assert closed(pairs[0][0])
    assert closed(pairs[1][0])


def test_two_threads_never_get_the_same_connection(pairs: list[Pair]) -> None:
    pool = Pool(4)
    for ours, _ in pairs:
        pool.give(HERE, ours)
    together, taken = threading.Barrier(8), []

    def take() -> None:
        together.wait(5)
        taken.append(pool.take(HERE))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert {id(wire) for wire in taken if wire} == {id(ours) for ours, _ in pairs}
    assert taken.count(None) == 4
