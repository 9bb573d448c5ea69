"""Rich events as text, in every profile."""

from collections.abc import Iterator

import msgspec
import pytest

from services.config import BotMode
from services.config.settings import ProfileName
from services.core.errors import InvalidRequest, ProtocolError
from services.core.events import (
    Citation,
    CodeBlock,
    Conversation,
    Event,
    Events,
    ExecutionOutput,
    File,
    Finish,
    Image,
    Reasoning,
    Text,
    ToolCall,
    Usage,
    WireEvent,
)
from services.pipeline.profiles import (
    _EXTRAS,
    NORMAL,
    Labels,
    Profile,
    parse_profile,
    profile_for,
    profile_from,
)
from services.pipeline.render import render

U = "https://me.example/images/a.png"
IMAGE = f"![image]({U})\n"

MODES = {
    "normal": BotMode(),
    "bot": BotMode(enabled=True),
    "bot+md": BotMode(enabled=True, enabled_markdown_image_output=True),
    "bot+plain": BotMode(enabled=True, enabled_plain_image_url_output=True),
    "bot+md+plain": BotMode(
        enabled=True, enabled_markdown_image_output=True, enabled_plain_image_url_output=True
    ),
    "bot+bing": BotMode(enabled=True, enabled_bing_reference_output=True),
    "bot+plugin": BotMode(enabled=True, enabled_plugin_output=True),
}


def said(profile: Profile, *events: Event) -> str:
    """What choice 0 says, the same whether the events come one by one or all at once."""
    one_by_one = [e for batch in render(iter([[e] for e in events]), profile) for e in batch]
    at_once = [e for batch in render(iter([list(events)]), profile) for e in batch]
    texts = ["".join(e.text for e in run if isinstance(e, Text)) for run in (one_by_one, at_once)]
    assert texts[0] == texts[1]
    return texts[0]


CODE: list[Event] = [
    CodeBlock("print(", first=True, language="python"),
    CodeBlock("1)"),
    ExecutionOutput("1\n", first=True),
    Text("It is 1."),
    Finish("stop"),
]
CODE_SHOWN = "\n```python\nprint(1)\n```\n`Result:` \n```\n1\n```\nIt is 1."

PLOT: list[Event] = [
    CodeBlock("plot()", first=True, language="python"),
    ExecutionOutput("图片生成中，请稍后\n", first=True),
    Image(U),
    Text("Here is"),
    Finish("stop"),
]
PLOT_CODE = "\n```python\nplot()\n```\n`Result:` \n```\n图片生成中，请稍后\n```\n"

DALLE: list[Event] = [
    CodeBlock('{"size":"1024x1024","prompt":"otter"}', first=True, language="json"),
    Image(U),
    Text("Here is it."),
    Finish("stop"),
]
DALLE_CODE = '\n```json\n{"size":"1024x1024","prompt":"otter"}\n```\n'

SKY: list[Event] = [
    CodeBlock('search("x")', first=True, language="text"),
    Text("Sky is blue"),
    Citation("5", "https://ex.com/a"),
    Text("."),
    Finish("stop"),
]
SEARCH = '\n```text\nsearch("x")\n```\n'

GET_FILE: list[Event] = [Text("Get [file]("), File(U), Text(") now"), Finish("stop")]

EXACT: list[tuple[list[Event], dict[str, str]]] = [
    (CODE, {"normal": CODE_SHOWN, "bot": "It is 1.", "bot+plugin": CODE_SHOWN}),
    (
        PLOT,
        {
            "normal": f"{PLOT_CODE}{IMAGE}Here is",
            "bot": f"{U}\nHere is",
            "bot+md": f"{IMAGE}Here is",
            "bot+plain": f"{U}\nHere is",
            "bot+md+plain": f"{U}\nHere is",
            "bot+plugin": f"{PLOT_CODE}{U}\nHere is",
        },
    ),
    (
        DALLE,
        {
            "normal": f"{DALLE_CODE}\n{IMAGE}Here is it.",
            "bot": f"{U}\nHere is it.",
            "bot+md": f"\n{IMAGE}Here is it.",
            "bot+plain": f"{U}\nHere is it.",
            "bot+plugin": f"{DALLE_CODE}{U}\nHere is it.",
        },
    ),
    (
        SKY,
        {
            "normal": f"{SEARCH}Sky is blue[[5]](https://ex.com/a).",
            "bot": "Sky is blue.",
            "bot+bing": "Sky is blue[[5]](https://ex.com/a).",
            "bot+plugin": f"{SEARCH}Sky is blue.",
        },
    ),
    (GET_FILE, {"normal": f"Get [file]({U}) now", "bot": f"Get file ({U}) now"}),
]


@pytest.mark.parametrize(
    ("events", "mode", "expected"),
    [(events, mode, text) for events, modes in EXACT for mode, text in modes.items()],
)
def test_strings_are_exact(events: list[Event], mode: str, expected: str) -> None:
    assert said(profile_from(MODES[mode]), *events) == expected


def test_a_second_block_of_code_is_whole() -> None:
    events: list[Event] = []
    for code, output in ((("a()",), "1"), (("b(", ")"), "2")):
        events += [CodeBlock(p, not i, "python" if not i else "") for i, p in enumerate(code)]
        events.append(ExecutionOutput(output, first=True))
    expected = (
        "\n```python\na()\n```\n`Result:` \n```\n1\n```\n"
        "\n```python\nb()\n```\n`Result:` \n```\n2\n```\nEnd"
    )
    assert said(NORMAL, *events, Text("End"), Finish("stop")) == expected


def test_two_calls_in_a_row_are_two_blocks() -> None:
    shown = said(NORMAL, CodeBlock("a", first=True), CodeBlock("b", first=True), Finish("stop"))
    assert shown == "\n```\na\n```\n\n```\nb\n```\n"


def test_a_block_has_no_empty_line_before_its_end_however_its_text_is_cut() -> None:
    pieces: list[Event] = [CodeBlock("a", first=True, language="python"), CodeBlock("\n")]
    output: list[Event] = [ExecutionOutput("1", first=True), ExecutionOutput("\n")]
    expected = "\n```python\na\n```\n`Result:` \n```\n1\n```\nEnd"
    assert said(NORMAL, *pieces, *output, Text("End"), Finish("stop")) == expected


@pytest.mark.parametrize("mode", ["bot", "bot+bing", "bot+plugin"])
def test_a_bot_without_a_setting_for_pictures_still_gets_their_address(mode: str) -> None:
    shown = said(profile_from(MODES[mode]), Text("Two:"), Image(U), Text("**ok**"), Finish("stop"))
    assert shown == f"Two:\n{U}\nok"


def test_an_open_block_is_closed_before_the_finish() -> None:
    [batch] = render(iter([[CodeBlock("a", first=True), Finish("stop")]]), NORMAL)
    assert batch[-2:] == [Text("\n```\n"), Finish("stop")]


def test_several_pictures_are_all_shown() -> None:
    v = U.replace("a.png", "b.png")
    events: list[Event] = [Text("Two:"), Image(U), Image(v), Text("ok"), Finish("stop")]
    shown = said(NORMAL, *events)
    assert shown == f"Two:\n{IMAGE}\n{IMAGE.replace(U, v)}ok"
    assert said(profile_from(MODES["bot+plain"]), *events) == f"Two:\n{U}\n{v}\nok"


def test_labels_are_the_operators() -> None:
    labels = Labels(download="get it", plain_image="图片链接：")
    assert (
        said(profile_from(MODES["normal"], labels), Image(U)) == f"\n![image]({U})\n[get it]({U})\n"
    )
    plain = profile_from(MODES["bot+plain"], labels)
    assert said(plain, Image(U), Text("Here is it.")) == f"图片链接：{U}\nHere is it."


def test_markup_characters_cannot_break_a_link() -> None:
    shown = said(NORMAL, Image("https://x/a b(1).png", title="a]\n(b"))
    assert shown == ("\n![a) (b](https://x/a%20b%281%29.png)\n")


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://x/a_(b) c", "https://x/a_%28b%29%20c"),
        ("https://x/?q=a\u3000b\n", "https://x/?q=a%E3%80%80b"),
        ('https://x/<a>|b`c\\d"$e', "https://x/%3Ca%3E%7Cb%60c%5Cd%22%24e"),
        ("https://x/100%25?q=水獭&a[]=1#z", "https://x/100%25?q=水獭&a[]=1#z"),
    ],
)
def test_address_of_a_source_cannot_break_its_link(url: str, target: str) -> None:
    assert said(NORMAL, Text("Blue"), Citation("5", url), Text(".")) == f"Blue[[5]]({target})."


def test_a_file_without_a_link_around_it_gets_one() -> None:
    assert said(NORMAL, Text("Done. "), File(U, name="r.csv")) == f"Done. [r.csv]({U})"
    assert said(NORMAL, File(U, link="sandbox:/mnt/data/r.csv")) == U
    assert said(profile_from(MODES["bot"]), Text("Done. "), File(U, name="r_1_.csv")) == (
        f"Done. r_1_.csv ({U})"
    )


def test_a_citation_without_a_source_is_dropped() -> None:
    assert said(NORMAL, Text("a"), Citation("7", None), Text(".")) == "a."


def test_bot_mode_makes_the_text_plain_across_batches_and_events() -> None:
    events: list[Event] = [
        Text("## Ti"),
        Text("tle\n**bo"),
        Citation("1", "https://x"),
        Text("ld** `x"),
        Text("`"),
        Finish("stop"),
    ]
    assert said(profile_from(MODES["bot"]), *events) == "Title\nbold x"


def test_choices_are_made_plain_apart() -> None:
    batch: list[Event] = [Text("*a", 0), Text("*b", 1), Text("*", 0), Finish("stop", 0)]
    rest: list[Event] = [Text("* c", 1), Finish("stop", 1)]
    events = [e for out in render(iter([batch, rest]), profile_from(MODES["bot"])) for e in out]
    assert events == [
        Text("a"),
        Finish("stop"),
        Text("b c", 1),
        Finish("stop", 1),
    ]


def test_what_is_not_text_passes_in_every_profile() -> None:
    events: list[Event] = [
        Conversation("c"),
        Reasoning("**hm**"),
        ToolCall(0, "id", "f", "{}"),
        Usage(1, 2, 3),
        Finish("tool_calls"),
    ]
    for mode in MODES.values():
        assert list(render(iter([events]), profile_from(mode))) == [events]


def test_a_batch_without_rich_events_is_passed_on_itself() -> None:
    batch: list[Event] = [Text("a"), Usage(1, 2, 3), Finish("stop")]
    assert [out is batch for out in render(iter([batch]), NORMAL)] == [True]


def test_silence_stays_silence() -> None:
    for profile in (NORMAL, profile_from(MODES["bot"])):
        assert list(render(iter([[], [Text("a")], []]), profile)) == [[], [Text("a")], []]


def broken(*batches: list[Event]) -> Events:
    yield from batches
    raise ProtocolError("it broke")


def test_text_held_back_comes_before_the_error_of_a_broken_answer() -> None:
    seen: list[WireEvent] = []
    with pytest.raises(ProtocolError):
        for batch in render(broken([Text("Say")], [Text(" **it")]), profile_from(MODES["bot"])):
            seen += batch
    assert seen == [Text("Say"), Text(" "), Text("**it")]


def test_a_block_that_breaks_off_is_closed_before_the_error() -> None:
    seen: list[WireEvent] = []
    with pytest.raises(ProtocolError):
        for batch in render(broken([CodeBlock("a", first=True)]), NORMAL):
            seen += batch
    assert seen == [Text("\n```\na"), Text("\n```\n")]


def test_an_error_before_any_text_stays_the_first_thing() -> None:
    batches = render(broken([Text("**it")]), profile_from(MODES["bot"]))
    assert next(batches) == []
    with pytest.raises(ProtocolError):
        next(batches)


def test_closing_closes_the_source() -> None:
    closed = []

    def source() -> Iterator[list[Event]]:
        try:
            yield [Text("a")]
            yield [Text("b")]
        finally:
            closed.append(True)

    rendered = render(source(), NORMAL)
    next(rendered)
    rendered.close()  # type: ignore[attr-defined]  # it is a generator
    assert closed == [True]


def test_profiles_have_names() -> None:
    assert parse_profile("normal") == NORMAL
    assert parse_profile("Bot") == profile_from(MODES["bot"])
    assert parse_profile("bot+markdown_image") == profile_from(MODES["bot+md"])
    assert parse_profile("bot+plain_image+markdown_image") == profile_from(MODES["bot+plain"])
    assert parse_profile("bot+references") == profile_from(MODES["bot+bing"])
    assert parse_profile("bot+plugins") == profile_from(MODES["bot+plugin"])


@pytest.mark.parametrize(
    "name", ["", "bots", "normal+plugins", "bot+", "bot+x", "bot plugins", "机"]
)
def test_an_unknown_profile_is_an_invalid_request(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_profile(name)
    assert caught.value.param == "X-Output-Profile"
    assert "bot+EXTRA" in caught.value.message
    assert caught.value.message.isascii()


def test_the_header_wins_over_the_settings() -> None:
    bot = profile_from(MODES["bot"], Labels(download="x"))
    assert profile_for(None, bot) == bot
    assert profile_for("normal", bot) == Profile(labels=Labels(download="x"))


@pytest.mark.parametrize("base", ["", "normal", "bot", "bto", "bot+", "+plain_image"])
@pytest.mark.parametrize("extra", ["", *_EXTRAS, "nothing", "plain_image+references"])
def test_settings_take_the_profiles_that_requests_may_name(base: str, extra: str) -> None:
    name = f"{base}+{extra}" if extra else base
    try:
        parse_profile(name)
    except InvalidRequest:
        is_one = name == ""
    else:
        is_one = True
    try:
        msgspec.convert(name, ProfileName)
    except msgspec.ValidationError:
        assert not is_one
    else:
        assert is_one
