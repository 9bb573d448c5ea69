"""Pictures and files in a stream become ours; what cannot be had is said, and it goes on."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.core.errors import UpstreamError
from services.core.events import SILENCE, Event, Events, File, Finish, Image, Text
from services.files.addresses import AllowList
from services.files.adopt import Adopter, adopt_files
from services.files.cache import FileCache
from services.files.download import Limits
from services.files.fetch import Fetcher
from services.files.public_url import PublicUrlUnknown
from tests.fetch.servers import Server, answer

from .support import BASE, HTML, local_cache, picture

FAILED = "[lost: {name}]"
PNG = picture()


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return local_cache(tmp_path)


def adopter(cache: FileCache, port: int = 0, max_bytes: int = 10_000) -> Adopter:
    allow = AllowList([f"127.0.0.1:{port}"] if port else ())
    fetcher = Fetcher(allow=allow, limits=Limits(seconds=5, max_bytes=max_bytes))
    return Adopter(cache, fetcher, lambda: BASE, max_bytes)


def through(adopt: Adopter, *batch: Event, keep: bool = False) -> list[Event]:
    """All events that come out when `batch` goes in."""
    stage = adopt_files(iter([list(batch)]), adopt, failed=FAILED, keep_upstream_urls=keep)
    return [event for out in stage for event in out]


def served(cache: FileCache, url: str | None) -> tuple[bytes, str]:
    """The bytes and the label behind one of our URLs."""
    assert url is not None
    area, name = url.removeprefix(f"{BASE}/").split("/")
    found = cache.find(area, name)  # type: ignore[arg-type]
    assert found is not None
    body = found.open(0, found.entry.size)
    try:
        return body.read(), found.label
    finally:
        body.close()


def test_image_behind_a_url_becomes_ours(cache: FileCache) -> None:
    with Server(answer(PNG)) as server:
        url = f"http://127.0.0.1:{server.port}/pic?sig=secret"
        events = through(
            adopter(cache, server.port), Text("a"), Image(url=url, title="otter"), Finish("stop")
        )
    first, image, last = events
    assert (first, last) == (Text("a"), Finish("stop"))
    assert isinstance(image, Image)
    assert image.url is not None
    assert image.url.startswith(f"{BASE}/images/i")
    assert image.url.endswith(".png")
    assert (image.title, image.data) == ("otter", None)
    assert served(cache, image.url)[0] == PNG


def test_bytes_never_pass(cache: FileCache) -> None:
    encoded = base64.b64encode(PNG).decode()
    link = "[r](sandbox:/mnt/data/r.csv)"
    for keep in (False, True):
        events = through(
            adopter(cache),
            Image(data=PNG),
            Image(url=f"data:image/png;base64,{encoded}"),
            File(data=b"1,2", name="../r.csv", link=link),
            keep=keep,
        )
        assert encoded[:20] not in str(events)
        one, two, three = events
        assert isinstance(one, Image)
        assert isinstance(two, Image)
        assert isinstance(three, File)
        assert {one.data, two.data, three.data} == {None}
        assert served(cache, one.url)[0] == served(cache, two.url)[0] == PNG
        assert served(cache, three.url) == (b"1,2", "r.csv")
        assert (three.url or "").endswith(".csv")
        assert three.link == link


@pytest.mark.parametrize(
    "event",
    [
        Image(url="http://10.0.0.1/x.png", title="x"),
        Image(url="http://127.0.0.1:1/x.png", title="x"),
        Image(url="file:///etc/passwd", title="x"),
        Image(title="x"),
        Image(data=HTML, title="x"),
        Image(data=b"", title="x"),
        Image(data=PNG + b"\x00" * 20_000, title="x"),
        Image(url="data:image/png;base64,!!!", title="x"),
        File(url="sandbox:/mnt/data/x", name="x"),
        File(name="x"),
    ],
)
def test_what_cannot_be_had_is_said_and_the_stream_goes_on(
    cache: FileCache, event: Image | File
) -> None:
    events = through(adopter(cache), Text("a"), event, Text("b"), Finish("stop"))
    assert events == [Text("a"), Text("[lost: x]"), Text("b"), Finish("stop")]


@pytest.mark.parametrize(
    "talk",
    [
        answer(b"no", status="403 Forbidden"),
        answer(HTML, "Content-Type: image/png"),
        answer(b"\x00" * 20_000),
    ],
)
def test_server_that_refuses_or_sends_something_else(cache: FileCache, talk) -> None:  # type: ignore[no-untyped-def]
    with Server(talk) as server:
        image = Image(url=f"http://127.0.0.1:{server.port}/x", title="x")
        assert through(adopter(cache, server.port), image) == [Text("[lost: x]")]


def test_failure_names_no_url_in_the_log(
    cache: FileCache, caplog: pytest.LogCaptureFixture
) -> None:
    through(adopter(cache), Image(url="http://127.0.0.1:1/x.png?sig=secret"))
    assert "file not adopted" in caplog.text
    assert "secret" not in caplog.text


def test_failure_is_raised_for_who_wants_nothing_but_files(cache: FileCache) -> None:
    stage = adopt_files(iter([[Image(data=HTML)]]), adopter(cache), failed=None)
    with pytest.raises(UpstreamError) as caught:
        list(stage)
    assert caught.value.status == 502


def test_failure_inside_a_link_stays_on_its_line(cache: FileCache) -> None:
    file = File(url="sandbox:/x", name="r.csv", link="sandbox:/x")
    (text,) = (e for batch in adopt_files(iter([[file]]), adopter(cache)) for e in batch)
    assert isinstance(text, Text)
    assert "r.csv" in text.text
    assert "\n" not in text.text


def test_unknown_public_address_is_a_failure_like_others(cache: FileCache) -> None:
    def unknown() -> str:
        raise PublicUrlUnknown("not known")

    adopt = Adopter(cache, Fetcher(), unknown, 1000)
    assert through(adopt, Image(data=PNG, title="x")) == [Text("[lost: x]")]


def test_kept_upstream_urls_pass_as_they_are(cache: FileCache) -> None:
    events: list[Event] = [
        Image(url="https://cdn.example/x.png?sig=1"),
        File(url="http://cdn.example/y"),
    ]
    assert through(adopter(cache), *events, keep=True) == events
    odd = through(adopter(cache), Image(url="javascript:alert(1)", title="x"), keep=True)
    assert odd == [Text("[lost: x]")]


def test_name_of_the_download_stays_where_the_upstream_gave_none(cache: FileCache) -> None:
    with Server(answer(b"a,b", 'Content-Disposition: attachment; filename="t.csv"')) as server:
        events = through(adopter(cache, server.port), File(url=f"http://127.0.0.1:{server.port}/x"))
    (file,) = events
    assert isinstance(file, File)
    assert served(cache, file.url) == (b"a,b", "t.csv")


def test_other_batches_pass_untouched() -> None:
    batches: list[list[Event]] = [[Text("a")], SILENCE, [Finish("stop")]]

    def never(event: Image | File, stop: threading.Event) -> str:
        raise AssertionError("nothing to adopt")

    out = list(adopt_files(iter(batches), never))
    assert all(came is went for came, went in zip(out, batches, strict=True))


def test_text_before_a_slow_download_goes_out_and_silence_is_told() -> None:
    go = threading.Event()

    def slow(event: Image | File, stop: threading.Event) -> str:
        assert go.wait(10)
        return f"{BASE}/{event.url}"

    stage = adopt_files(iter([[Text("a"), Image(url="1"), Text("b"), Image(url="2")]]), slow)
    assert next(stage) == [Text("a")]
    assert next(stage) == SILENCE
    go.set()
    rest = [event for batch in stage for event in batch]
    assert rest == [Image(url=f"{BASE}/1"), Text("b"), Image(url=f"{BASE}/2")]


def test_images_of_one_batch_are_fetched_together() -> None:
    together = threading.Barrier(4, timeout=10)

    def meet(event: Image | File, stop: threading.Event) -> str:
        together.wait()
        return str(event.url)

    images: list[Event] = [Image(url=str(number)) for number in range(4)]
    assert [e for batch in adopt_files(iter([images]), meet) for e in batch] == images


def test_leaving_during_a_download_closes_the_source() -> None:
    closed, go = threading.Event(), threading.Event()

    def source() -> Iterator[list[Event]]:
        try:
            yield [Image(url="1")]
        finally:
            closed.set()

    def slow(event: Image | File, stop: threading.Event) -> str:
        go.wait(10)
        raise UpstreamError("too late")

    stage = adopt_files(source(), slow)
    assert next(stage) == SILENCE
    _close(stage)
    assert closed.is_set()
    go.set()


def _close(stage: Events) -> None:
    stage.close()  # type: ignore[attr-defined]  # a generator


def test_leaving_stops_a_download_that_is_under_way(cache: FileCache) -> None:
    begun, gone = threading.Event(), threading.Event()

    def endless(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                connection.sendall(b"x" * 100)
                begun.set()
                time.sleep(0.05)
        except OSError:
            gone.set()

    with Server(endless) as server:
        image = Image(url=f"http://127.0.0.1:{server.port}/x", title="x")
        stage = adopt_files(iter([[image]]), adopter(cache, server.port))
        assert next(stage) == SILENCE
        assert begun.wait(5)
        _close(stage)
        assert gone.wait(2)
