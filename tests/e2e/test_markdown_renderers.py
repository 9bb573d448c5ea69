"""What the markdown renderers of Open WebUI and NextChat make of answers: links, pictures, code."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest

from emulators.backend_api import BackendApi
from tests.e2e.symptoms.support import OWN_LINK, alice, ask, gateway, message, say
from tests.gateway import GatewayProcess

FOLDER = Path(__file__).parent / "npm"
APPS = ("Open WebUI", "NextChat")
PROMPT = '{"size":"1024x1024","prompt":"otter"}\n'


class Page(NamedTuple):
    """What a reader sees: the text without its code blocks, with blanks and line ends alike; links
    as text and target; the sources of pictures; code blocks as language and text.
    """

    text: str
    links: list[tuple[str, str]] = []
    pictures: list[str] = []
    blocks: list[tuple[str, str]] = []


EXPECTED = {
    "browsing": Page(
        "Sky is blue[5].",
        links=[("[5]", "https://ex.com/a")],
        blocks=[("text", 'search("x")\n')],
    ),
    "marks_in_delta": Page(
        "Blue yes[5] and more[6].",
        links=[("[5]", "https://ex.com/a"), ("[6]", "https://ex.com/b")],
    ),
    "marks_adjacent": Page(
        "Both[5][6].", links=[("[5]", "https://ex.com/a"), ("[6]", "https://ex.com/b")]
    ),
    "marks_chinese": Page("天空[5]是蓝色。", links=[("[5]", "https://ex.com/a")]),
    "cites": Page(
        "Sky is blue[1][2]. Grass is green[2].",
        links=[
            ("[1]", "https://ex.com/a_%281%29"),
            ("[2]", "https://ex.com/b"),
            ("[2]", "https://ex.com/b"),
        ],
        blocks=[("json", '{"search_query":[{"q":"sky"}]}\n')],
    ),
    "other_markers": Page(
        "Use Node.js of the (docs) or this page, see an otter.",
        links=[
            ("the (docs)", "https://ex.com/d%20%281%29"),
            ("this page", "https://ex.com/a"),
        ],
    ),
    "dalle": Page("Here is it.", pictures=["URL.png"], blocks=[("json", PROMPT)]),
    "dalle_two": Page("Here is it.", pictures=["URL.png"] * 2, blocks=[("json", PROMPT)]),
    "plot": Page(
        "Result: Here is",
        pictures=["URL.png"],
        blocks=[("python", "plot()\n"), ("", "图片生成中，请稍后\n")],
    ),
    "sandbox": Page("Get file now", links=[("file", "URL.csv")]),
    "sandbox_two": Page(
        "Done: table and chart.", links=[("table", "URL.csv"), ("chart", "URL.html")]
    ),
    "sandbox_unicode": Page("报告", links=[("报告", "URL.csv")]),
    "code": Page("Result: It is 1.", blocks=[("python", "print(1)\n"), ("", "1\n")]),
    "code_twice": Page(
        "Result: Result: End",
        blocks=[("python", "a()\n"), ("", "1\n"), ("python", "b()\n"), ("", "2\n")],
    ),
    "traceback": Page(
        "Result: It cannot be divided.",
        blocks=[
            ("python", "1 / 0\n"),
            (
                "",
                "Traceback (most recent call last):\n  Cell In[1], line 1\n"
                "ZeroDivisionError: division by zero\n",
            ),
        ],
    ),
}

ADDRESSES = [
    "https://ex.com/a_(b)_c",
    "https://ex.com/a b",
    "https://ex.com/?q=[1]&r=*x*_y_~z~",
    "https://ex.com/`code`|$5<b>",
    "https://ex.com/水獭#季 度",
]


@pytest.fixture(scope="module")
def web() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def bridge(web: BackendApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway(tmp_path_factory.mktemp("renderers"), web) as process:
        yield process


class _Reader(HTMLParser):
    """Reads a page out of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.page = Page("", [], [], [])
        self.text: list[str] = []
        self._open: dict[str, str] = {}
        self._within: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "img":
            self.page.pictures.append(found["src"])
        elif tag == "a":
            self._open["a"] = found["href"]
            self._within = []
        elif tag == "pre":
            self._open["pre"] = ""
            self._within = []
        elif tag == "code" and "pre" in self._open:
            classes = found.get("class", "").split()
            languages = [c.removeprefix("language-") for c in classes if c != "hljs"]
            self._open["pre"] = " ".join(languages)
        elif tag in ("p", "br"):
            self.text.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self.page.links.append(("".join(self._within), self._open.pop("a")))
        elif tag == "pre":
            self.page.blocks.append((self._open.pop("pre"), "".join(self._within)))

    def handle_data(self, data: str) -> None:
        if self._open:
            self._within.append(data)
        if "pre" not in self._open:
            self.text.append(data)


def read(html: str) -> Page:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.page._replace(text=" ".join("".join(reader.text).split()))


def rendered(texts: list[str]) -> list[dict[str, Page]]:
    """What each app shows of each text; links of ours are made alike."""
    node = shutil.which("node")
    if node is None or not (FOLDER / "node_modules" / "marked").is_dir():
        pytest.skip("needs Node.js 20 or newer, and npm ci --prefix tests/e2e/npm")
    done = subprocess.run(
        [node, str(FOLDER / "render.mjs")],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(OWN_LINK.sub(r"URL.\2", done.stdout))
    return [dict(zip(APPS, map(read, pages), strict=True)) for pages in shown]


def answered(bridge: GatewayProcess, web: BackendApi, said: str) -> str:
    told = ask(bridge, said, alice(web))
    assert (told.status, told.done) == (200, True)
    return told.text


def test_citations_pictures_files_and_code_are_shown_rightly_in_both_apps(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    texts = [answered(bridge, web, f"#{scenario}") for scenario in EXPECTED]
    for scenario, shown in zip(EXPECTED, rendered(texts), strict=True):
        assert shown == dict.fromkeys(APPS, EXPECTED[scenario]), scenario


def test_no_address_of_a_source_breaks_its_link_in_either_app(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    texts = []
    for address in ADDRESSES:
        page = {"type": "webpage", "url": address, "extra": {"cited_message_idx": 5}}
        cited = {"citations": [{"metadata": page}]}
        say(web, message("*For* $5, `x`【5†source】【5†source】 *or* ~~so~~.", metadata=cited))
        texts.append(answered(bridge, web, "Hi"))
    for address, shown in zip(ADDRESSES, rendered(texts), strict=True):
        for page in shown.values():
            assert [(text, unquote(href)) for text, href in page.links] == [("[5]", address)] * 2
