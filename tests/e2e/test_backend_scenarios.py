"""Every scenario of the backend-api emulator in every output profile: the text a caller gets.

N: normal, B: bot, M: bot with markdown images, P: bot with plain image URLs, R: bot with
references, C: bot with code and its output. URL stands for a link of ours.
"""

import json
import random
import re
from collections.abc import Iterator

import pytest

from emulators.backend_api import BackendApi
from tests.gateway import KEY, GatewayProcess, question

PROFILES = {
    "N": "normal",
    "B": "bot",
    "M": "bot+markdown_image",
    "P": "bot+plain_image",
    "R": "bot+references",
    "C": "bot+plugins",
}

TEXTS: dict[str, dict[str, str]] = {
    "plain": {
        "NBMPRC": "Hello world!",
    },
    "tail_in_finished": {
        "NBMPRC": "Hello world!",
    },
    "two_messages": {
        "NBMPRC": "First answerSecond message text",
    },
    "code": {
        "NC": "\n```python\nprint(1)\n```\n`Result:` \n```\n1\n```\nIt is 1.",
        "BMPR": "It is 1.",
    },
    "code_in_closing_event": {
        "NC": "\n```python\nprint(2)\n```\n`Result:` \n```\n2\n```\nIt is 2.",
        "BMPR": "It is 2.",
    },
    "code_twice": {
        "NC": (
            "\n```python\na()\n```\n`Result:` \n```\n1\n```\n\n```python\nb()\n```\n`Result:` \n"
            "```\n2\n```\nEnd"
        ),
        "BMPR": "End",
    },
    "plot": {
        "N": (
            "\n```python\nplot()\n```\n`Result:` \n```\n图片生成中，请稍后\n```\n"
            "![image](URL.png)\nHere is"
        ),
        "BPR": "URL.png\nHere is",
        "M": "![image](URL.png)\nHere is",
        "C": (
            "\n```python\nplot()\n```\n`Result:` \n```\n图片生成中，请稍后\n```\nURL.png\nHere is"
        ),
    },
    "traceback": {
        "NC": (
            "\n```python\n1 / 0\n```\n`Result:` \n```\nTraceback (most recent call last):\n"
            "  Cell In[1], line 1\nZeroDivisionError: division by zero\n```\n"
            "It cannot be divided."
        ),
        "BMPR": "It cannot be divided.",
    },
    "browsing": {
        "N": '\n```text\nsearch("x")\n```\nSky is blue[[5]](https://ex.com/a).',
        "BMP": "Sky is blue.",
        "R": "Sky is blue[[5]](https://ex.com/a).",
        "C": '\n```text\nsearch("x")\n```\nSky is blue.',
    },
    "marks_in_delta": {
        "NR": "Blue yes[[5]](https://ex.com/a) and more[[6]](https://ex.com/b).",
        "BMPC": "Blue yes and more.",
    },
    "marks_adjacent": {
        "NR": "Both[[5]](https://ex.com/a)[[6]](https://ex.com/b).",
        "BMPC": "Both.",
    },
    "marks_unknown": {
        "NBMPRC": "Gone.",
    },
    "marks_chinese": {
        "NR": "天空[[5]](https://ex.com/a)是蓝色。",
        "BMPC": "天空是蓝色。",
    },
    "marks_unclosed": {
        "NBMPRC": "Sky【not a mark】 ends【5†sou",
    },
    "cites": {
        "N": (
            '\n```json\n{"search_query":[{"q":"sky"}]}\n```\n'
            "Sky is blue[[1]](https://ex.com/a_%281%29)[[2]](https://ex.com/b)."
            " Grass is green[[2]](https://ex.com/b)."
        ),
        "BMP": "Sky is blue. Grass is green.",
        "R": (
            "Sky is blue[[1]](https://ex.com/a_%281%29)[[2]](https://ex.com/b)."
            " Grass is green[[2]](https://ex.com/b)."
        ),
        "C": ('\n```json\n{"search_query":[{"q":"sky"}]}\n```\nSky is blue. Grass is green.'),
    },
    "cites_late": {
        "NR": (
            "Sky is blue[[1]](https://ex.com/a)[[2]](https://ex.com/b), they say."
            " Grass is green[[3]](https://ex.com/c)."
        ),
        "BMPC": "Sky is blue, they say. Grass is green.",
    },
    "cites_unknown": {
        "NBMPRC": "Gone 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19.",
    },
    "cites_unclosed": {
        "NR": "Sky[[1]](https://ex.com/a) is blue",
        "BMPC": "Sky is blue",
    },
    "other_markers": {
        "N": (
            "Use Node.js of [the (docs)](https://ex.com/d%20%281%29) or"
            " [this page](https://ex.com/a), see an otter."
        ),
        "BMPRC": (
            "Use Node.js of the (docs) (https://ex.com/d%20%281%29) or"
            " this page (https://ex.com/a), see an otter."
        ),
    },
    "dalle": {
        "N": (
            '\n```json\n{"size":"1024x1024","prompt":"otter"}\n```\n\n'
            "![image](URL.png)\nHere is it."
        ),
        "BPR": "URL.png\nHere is it.",
        "M": "\n![image](URL.png)\nHere is it.",
        "C": ('\n```json\n{"size":"1024x1024","prompt":"otter"}\n```\nURL.png\nHere is it.'),
    },
    "dalle_two": {
        "N": (
            '\n```json\n{"size":"1024x1024","prompt":"otter"}\n```\n\n'
            "![image](URL.png)\n\n![image](URL.png)\nHere is it."
        ),
        "BPR": "URL.png\nURL.png\nHere is it.",
        "M": "\n![image](URL.png)\n\n![image](URL.png)\nHere is it.",
        "C": (
            '\n```json\n{"size":"1024x1024","prompt":"otter"}\n```\nURL.png\nURL.png\nHere is it.'
        ),
    },
    "dalle_refused": {
        "NC": (
            '\n```json\n{"size":"1024x1024","prompt":"otter"}\n```\n'
            "I can't draw that: it goes against the content policy."
        ),
        "BMPR": "I can't draw that: it goes against the content policy.",
    },
    "dalle_403": {
        "N": (
            '\n```json\n{"size":"1024x1024","prompt":"otter"}\n```\n\n```\n'
            "Error: 图片下载失败，请稍后再试\n```\nHere is it."
        ),
        "BMPR": "\nError: 图片下载失败，请稍后再试\nHere is it.",
        "C": (
            '\n```json\n{"size":"1024x1024","prompt":"otter"}\n```\n\n'
            "Error: 图片下载失败，请稍后再试\nHere is it."
        ),
    },
    "sandbox": {
        "N": "Get [file](URL.csv) now",
        "BMPRC": "Get file (URL.csv) now",
    },
    "sandbox_two": {
        "N": "Done:\n[table](URL.csv) and [chart](URL.html).",
        "BMPRC": "Done:\ntable (URL.csv) and chart (URL.html).",
    },
    "sandbox_unicode": {
        "N": "[报告](URL.csv)",
        "BMPRC": "报告 (URL.csv)",
    },
    "sandbox_refused": {
        "N": "Get [file]\n```\nError: 沙箱文件下载失败，可能是因为开启了隐私模式\n```\n now",
        "BMPRC": "Get [file]\nError: 沙箱文件下载失败，可能是因为开启了隐私模式\n now",
    },
    "parentheses": {
        "N": "f(x) = (1 + 2) [see](https://ex.com/a) (sandy) not (a link)",
        "BMPRC": "f(x) = (1 + 2) see (https://ex.com/a) (sandy) not (a link)",
    },
    "open_parenthesis_end": {
        "NBMPRC": "f(x) = 1 (",
    },
    "gizmo_files": {
        "NC": '\n```text\nmsearch(["otters"])\n```\nOtters hold hands.',
        "BMPR": "Otters hold hands.",
    },
    "files_loaded": {
        "NBMPRC": "It is a list.",
    },
    "action_json": {
        "N": (
            '\n```json\n{"city":"Paris"}\n```\n\n```\n'
            "操作需要确认（auto_allow_actions 未开启）：weather.example.com\n```\n"
        ),
        "BMPR": "\n操作需要确认（auto_allow_actions 未开启）：weather.example.com\n",
        "C": (
            '\n```json\n{"city":"Paris"}\n```\n\n'
            "操作需要确认（auto_allow_actions 未开启）：weather.example.com\n"
        ),
    },
    "o1_thinking": {
        "NBMPRC": "There are three.",
    },
    "noise": {
        "NBMPRC": "Hello world!",
    },
    "crlf": {
        "NBMPRC": "Hello world!",
    },
    "backticks_and_data_prefix": {
        "N": "Send `data: {}`:\n```\ndata: [DONE]\n\ndata: x\n```\nevent: ping\n",
        "BMPRC": "Send data: {}:\ndata: [DONE]\n\ndata: x\nevent: ping\n",
    },
    "chinese": {
        "NBMPRC": "你好，世界。水獭🦦很可爱",
    },
    "max_tokens": {
        "NBMPRC": "Once upon a time",
    },
}

OWN_LINK = re.compile(r"http://127\.0\.0\.1:\d+/(?:images|files)/[\w-]+\.(\w+)")


@pytest.fixture(scope="module")
def web() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def bridge(web: BackendApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    own = {"access_token": web.accounts["alice"].access_token, "calls_per_minute": 0}
    settings = {
        "auth": {"keys": [KEY]},
        "use_pandora_file_server": False,
        "upstream_base_url": web.url,
        "providers": {"backend_api": own},
    }
    with GatewayProcess(tmp_path_factory.mktemp("scenarios"), settings) as process:
        yield process


def answer(bridge: GatewayProcess, profile: str, stream: bool) -> str:
    body = question("Hi", model="gpt-4-s", stream=stream)
    reply = bridge.post(body, headers={"X-Output-Profile": PROFILES[profile]})
    assert reply.status_code == 200, reply.text
    text = streamed(reply.text) if stream else reply.json()["choices"][0]["message"]["content"]
    return OWN_LINK.sub(r"URL.\1", text)


def streamed(body: str) -> str:
    frames = [line[6:] for line in body.split("\n") if line]
    assert frames.pop() == "[DONE]"
    chunks = [json.loads(frame)["choices"][0] for frame in frames]
    assert chunks[-1]["finish_reason"] in ("stop", "length")
    return "".join(chunk["delta"].get("content") or "" for chunk in chunks)


@pytest.mark.parametrize("scenario", TEXTS)
def test_text_of_a_scenario_in_every_profile(
    bridge: GatewayProcess, web: BackendApi, scenario: str
) -> None:
    seed = random.randrange(10_000)
    print(f"byte splits with seed {seed}")
    for profiles, expected in TEXTS[scenario].items():
        for profile in profiles:
            for stream in (False, True):
                entry = {"scenario": scenario, "split": "random", "seed": seed}
                web.script(entry)
                assert answer(bridge, profile, stream) == expected, (profile, stream)


@pytest.mark.parametrize("scenario", TEXTS)
def test_text_of_a_scenario_that_comes_as_deltas_in_every_profile(
    bridge: GatewayProcess, web: BackendApi, scenario: str
) -> None:
    seed = random.randrange(10_000)
    print(f"byte splits with seed {seed}")
    entry = {"scenario": scenario, "encoding": "v1", "split": "random", "seed": seed}
    for profiles, expected in TEXTS[scenario].items():
        for profile in profiles:
            for stream in (False, True):
                web.script(entry)
                assert answer(bridge, profile, stream) == expected, (profile, stream)


@pytest.mark.parametrize("transport", ["socket_flat", "socket_nested"])
@pytest.mark.parametrize("scenario", sorted(set(TEXTS) - {"crlf"}))
def test_text_of_a_scenario_that_comes_as_deltas_over_a_socket(
    bridge: GatewayProcess, web: BackendApi, scenario: str, transport: str
) -> None:
    entry = {"scenario": scenario, "transport": transport, "encoding": "v1"}
    for profiles, expected in TEXTS[scenario].items():
        for profile in profiles:
            for stream in (False, True):
                web.script(entry)
                assert answer(bridge, profile, stream) == expected, (profile, stream)
