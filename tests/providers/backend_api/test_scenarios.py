"""What the upstream says, as events and as the text that clients know."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from services.core.events import (
    Citation,
    CodeBlock,
    Conversation,
    ExecutionOutput,
    File,
    Finish,
    Image,
    Reasoning,
    Text,
)
from services.pipeline.profiles import NORMAL, parse_profile

from .support import STOP, Stage, message, text_of

BOT = parse_profile("bot")


def test_plain_text(stage: Stage) -> None:
    assert stage.events("#plain") == [Text("Hello world!"), STOP]


def test_finish_is_the_last_event_and_alone(stage: Stage) -> None:
    events = [e for batch in stage.ask("#plain") for e in batch]
    assert [type(e) for e in events].count(Finish) == 1
    assert type(events[-1]) is Finish


def test_text_comes_in_the_upstreams_steps(stage: Stage) -> None:
    events = [e for batch in stage.ask("#plain") for e in batch]
    assert [e.text for e in events if isinstance(e, Text)] == ["Hel", "lo world", "!"]


def test_last_characters_that_only_the_finished_event_has_are_not_lost(stage: Stage) -> None:
    assert stage.events("#tail_in_finished") == [Text("Hello world!"), STOP]


def test_later_message_of_a_turn_keeps_its_first_characters(stage: Stage) -> None:
    assert stage.events("#two_messages") == [Text("First answerSecond message text"), STOP]


def test_code_then_output_then_text(stage: Stage) -> None:
    assert stage.events("#code") == [
        CodeBlock("print(1)", first=True, language="python"),
        ExecutionOutput("1\n", first=True),
        Text("It is 1."),
        STOP,
    ]


@pytest.mark.parametrize(
    ("profile", "text"),
    [
        ("normal", "\n```python\nprint(1)\n```\n`Result:` \n```\n1\n```\nIt is 1."),
        ("bot", "It is 1."),
    ],
)
def test_code_reads_as_clients_know_it(stage: Stage, profile: str, text: str) -> None:
    assert stage.rendered("#code", parse_profile(profile)) == text


def test_second_code_block_is_not_garbled(stage: Stage) -> None:
    expected = (
        "\n```python\na()\n```\n`Result:` \n```\n1\n```\n"
        "\n```python\nb()\n```\n`Result:` \n```\n2\n```\nEnd"
    )
    assert stage.rendered("#code_twice", NORMAL) == expected


def test_text_in_the_event_that_closes_an_output_is_not_lost(stage: Stage) -> None:
    assert stage.events("#code_in_closing_event") == [
        CodeBlock("print(2)", first=True, language="python"),
        ExecutionOutput("2\n", first=True),
        Text("It is 2."),
        STOP,
    ]


def test_plot_comes_after_the_output_and_the_text_after_it_is_kept(stage: Stage) -> None:
    events = stage.events("#plot")
    assert events[:2] == [
        CodeBlock("plot()", first=True, language="python"),
        ExecutionOutput("图片生成中，请稍后\n", first=True),
    ]
    assert isinstance(events[2], Image)
    assert events[3:] == [Text("Here is"), STOP]


def test_plot_reads_as_clients_know_it(stage: Stage) -> None:
    text = stage.rendered("#plot", NORMAL)
    url = text.partition("![image](")[2].partition(")")[0]
    assert url.startswith(stage.upstream.url)
    assert text == (
        "\n```python\nplot()\n```\n`Result:` \n```\n图片生成中，请稍后\n```\n"
        f"![image]({url})\nHere is"
    )


def test_traceback_is_output(stage: Stage) -> None:
    events = stage.events("#traceback")
    assert events[1] == ExecutionOutput(
        "Traceback (most recent call last):\n  Cell In[1], line 1\n"
        "ZeroDivisionError: division by zero\n",
        first=True,
    )
    assert events[2] == Text("It cannot be divided.")


def test_browsing_shows_commands_and_hides_pages(stage: Stage) -> None:
    assert stage.events("#browsing") == [
        CodeBlock('search("x")', first=True, language="text"),
        Text("Sky is blue"),
        Citation("5", "https://ex.com/a", "T"),
        Text("."),
        STOP,
    ]


@pytest.mark.parametrize(
    ("scene", "normal", "bot"),
    [
        (
            "marks_in_delta",
            "Blue yes[[5]](https://ex.com/a) and more[[6]](https://ex.com/b).",
            "Blue yes and more.",
        ),
        ("marks_adjacent", "Both[[5]](https://ex.com/a)[[6]](https://ex.com/b).", "Both."),
        ("marks_unknown", "Gone.", "Gone."),
        ("marks_chinese", "天空[[5]](https://ex.com/a)是蓝色。", "天空是蓝色。"),
    ],
)
def test_citation_marks_are_rewritten_wherever_they_stand(
    stage: Stage, scene: str, normal: str, bot: str
) -> None:
    assert stage.rendered(f"#{scene}", NORMAL) == normal
    assert stage.rendered(f"#{scene}", BOT) == bot


def test_unclosed_mark_is_released_at_the_end(stage: Stage) -> None:
    assert stage.events("#marks_unclosed") == [Text("Sky【not a mark】 ends【5†sou"), STOP]


def test_drawing(stage: Stage) -> None:
    events = stage.events("#dalle")
    assert events[0] == CodeBlock(
        '{"size":"1024x1024","prompt":"otter"}', first=True, language="json"
    )
    assert isinstance(events[1], Image)
    assert events[1].revised_prompt == "otter"
    assert events[2:] == [Text("Here is it."), STOP]


@pytest.mark.parametrize(
    ("profile", "text"),
    [
        (
            "normal",
            '\n```json\n{"size":"1024x1024","prompt":"otter"}\n```\n\n![image](URL)\nHere is it.',
        ),
        ("bot", "URL\nHere is it."),
        ("bot+markdown_image", "\n![image](URL)\nHere is it."),
        (
            "bot+plugins",
            '\n```json\n{"size":"1024x1024","prompt":"otter"}\n```\nURL\nHere is it.',
        ),
    ],
)
def test_drawing_reads_as_clients_know_it(stage: Stage, profile: str, text: str) -> None:
    said = stage.rendered("#dalle", parse_profile(profile))
    assert re.sub(rf"{stage.upstream.url}[^)\n]+", "URL", said) == text


def test_all_pictures_of_one_event_are_shown(stage: Stage) -> None:
    pictures = [e for e in stage.events("#dalle_two") if isinstance(e, Image)]
    assert len({p.url for p in pictures}) == 2


def test_refused_drawing_is_text(stage: Stage) -> None:
    events = stage.events("#dalle_refused")
    assert not any(isinstance(e, Image) for e in events)
    assert text_of(events) == "I can't draw that: it goes against the content policy."


def test_picture_that_cannot_be_had_is_told_not_dropped(stage: Stage) -> None:
    events = stage.events("#dalle_403")
    [picture] = [e for e in events if isinstance(e, Image)]
    assert picture.url is None
    assert "图片下载失败" in (picture.missing or "")
    assert text_of(events).endswith("Here is it.")


def test_sandbox_link_split_anywhere_becomes_a_file(stage: Stage) -> None:
    events = stage.events("#sandbox")
    assert events[0] == Text("Get [file](")
    assert isinstance(events[1], File)
    assert events[1].name == "report.csv"
    assert events[1].link == "sandbox:/mnt/data/report.csv"
    assert events[2:] == [Text(") now"), STOP]


def test_two_links_after_a_newline_are_both_found(stage: Stage) -> None:
    files = [e for e in stage.events("#sandbox_two") if isinstance(e, File)]
    assert [f.name for f in files] == ["report.csv", "chart.html"]


def test_link_with_spaces_and_chinese(stage: Stage) -> None:
    files = [e for e in stage.events("#sandbox_unicode") if isinstance(e, File)]
    assert [f.name for f in files] == ["季度 报告.csv"]


def test_file_that_cannot_be_had_is_told(stage: Stage) -> None:
    text = text_of(stage.events("#sandbox_refused"))
    assert text.startswith("Get [file]\n```\nError: 沙箱文件下载失败")
    assert text.endswith("\n```\n now")
    assert "sandbox:" not in text


def test_download_name_has_no_folders(stage: Stage) -> None:
    files = [e for e in stage.events("#sandbox_traversal") if isinstance(e, File)]
    assert [f.name for f in files] == ["evil.csv"]


def test_parentheses_that_are_no_links_stay(stage: Stage) -> None:
    expected = "f(x) = (1 + 2) [see](https://ex.com/a) (sandy) not (a link)"
    assert stage.events("#parentheses") == [Text(expected), STOP]


def test_reply_that_ends_with_a_parenthesis_is_whole(stage: Stage) -> None:
    assert stage.events("#open_parenthesis_end") == [Text("f(x) = 1 ("), STOP]


def test_knowledge_files_stay_hidden_and_their_mark_is_a_citation(stage: Stage) -> None:
    assert stage.events("#gizmo_files", model="gpt-4-gizmo-g-otter") == [
        CodeBlock('msearch(["otters"])', first=True, language="text"),
        Text("Otters hold hands"),
        Citation("8:0", None, "notes.pdf"),
        Text("."),
        STOP,
    ]


def test_upload_notice_is_dropped_or_replaced(stage: Stage) -> None:
    assert stage.events("#files_loaded") == [Text("It is a list."), STOP]
    wordy = stage.provider(upload_success_text="`read`\n")
    assert stage.events("#files_loaded", provider=wordy)[0] == Text("`read`\nIt is a list.")


def test_thinking_is_reasoning(stage: Stage) -> None:
    assert stage.events("#o1_thinking", model="o1-mini") == [
        Reasoning("Counting the otters"),
        Text("There are three."),
        STOP,
    ]


def test_action_waits_unless_the_operator_allows_it(stage: Stage) -> None:
    events = stage.events("#action_sse", model="gpt-4-gizmo-g-weather")
    assert events[0] == CodeBlock('{"city":"Paris"}', first=True, language="json")
    assert "weather.example.com" in text_of(events)
    assert events[-1] == STOP
    assert stage.upstream.count("conversation") == 1


@pytest.mark.parametrize("scene", ["action_json", "action_sse"])
def test_allowed_action_goes_on_in_the_same_answer(stage: Stage, scene: str) -> None:
    provider = stage.provider(auto_allow_actions=True)
    events = stage.events(f"#{scene}", model="gpt-4-gizmo-g-weather", provider=provider)
    assert events == [
        CodeBlock('{"city":"Paris"}', first=True, language="json"),
        Text("Sunny, 21 degrees."),
        STOP,
    ]
    assert stage.upstream.count("conversation") == 2


@pytest.mark.parametrize(("scene", "reason"), [("max_tokens", "length"), ("interrupted", "length")])
def test_cut_answer_says_so(stage: Stage, scene: str, reason: str) -> None:
    assert stage.events(f"#{scene}")[-1] == Finish(reason)  # type: ignore[arg-type]


def test_text_that_looks_like_the_protocol_is_untouched(stage: Stage) -> None:
    expected = "Send `data: {}`:\n```\ndata: [DONE]\n\ndata: x\n```\nevent: ping\n"
    assert stage.events("#backticks_and_data_prefix") == [Text(expected), STOP]


def test_raw_chinese(stage: Stage) -> None:
    assert stage.events("#chinese") == [Text("你好，世界。水獭🦦很可爱"), STOP]


@pytest.mark.parametrize("scene", ["noise", "crlf", "byte_by_byte"])
def test_noise_and_line_ends_change_nothing(stage: Stage, scene: str) -> None:
    assert stage.events(f"#{scene}") == [Text("Hello world!"), STOP]


@pytest.mark.parametrize(
    "scene",
    ["browsing", "marks_adjacent", "cites", "sandbox_unicode", "code_twice", "chinese", "plot"],
)
def test_any_cut_of_the_bytes_gives_the_same(stage: Stage, scene: str) -> None:
    seed = random.randrange(10**6)
    print(f"seed={seed}")
    stage.upstream.script({"scenario": scene}, {"scenario": scene, "split": "random", "seed": seed})
    whole, cut = stage.rendered("", NORMAL), stage.rendered("", NORMAL)
    assert _without_links(stage, cut) == _without_links(stage, whole)


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("encoding", ["whole", "v1"])
@pytest.mark.parametrize("name", ["marks_in_delta", "cites", "other_markers"])
def test_any_step_of_the_text_gives_the_same(
    stage: Stage, name: str, encoding: str, step: int
) -> None:
    scene = {"scenario": name, "encoding": encoding}
    stage.upstream.script(scene, {**scene, "step": step})
    assert stage.rendered("", NORMAL) == stage.rendered("", NORMAL)


def test_long_reply_is_whole(stage: Stage) -> None:
    stage.upstream.script({"scenario": "long", "size": 60000, "events": 400})
    events = stage.events("")
    assert len(text_of(events)) == 60000


def test_text_behind_a_mark_waits_for_its_source_and_not_the_text_before_it(stage: Stage) -> None:
    cite = "\ue200cite\ue202turn0search0\ue201"
    page = {"matched_text": cite, "type": "webpage", "url": "https://ex.com/a", "title": "T"}
    known = {"content_references": [page]}
    texts = [
        "Sky",
        f"Sky is{cite} blue",
        f"Sky is{cite} blue, they",
        f"Sky is{cite} blue, they say",
    ]
    stage.says(*map(message, texts[:3]), message(texts[3], metadata=known))
    batches = [e for batch in stage.ask("") for e in batch if not isinstance(e, Conversation)]
    assert batches == [
        Text("Sky"),
        Text(" is"),
        Citation("1", "https://ex.com/a", "T"),
        Text(" blue"),
        Text(", they"),
        Text(" say"),
        STOP,
    ]


@pytest.mark.parametrize("complete", [True, False])
def test_deltas_without_an_end_mark_are_whole_only_if_the_upstream_says_so(
    stage: Stage, complete: bool
) -> None:
    deltas: list[Any] = [
        '"v1"',
        {"p": "", "o": "add", "v": message(""), "c": 0},
        {"p": "/message/content/parts/0", "o": "append", "v": "Hel"},
        {"v": "lo"},
    ]
    if complete:
        deltas.append({"type": "message_stream_complete", "conversation_id": "c1"})
        stage.says(*deltas, end="")
        assert stage.events("") == [Text("Hello"), STOP]
    else:
        stage.says(*deltas, end="")
        told, failure = stage.failure("")
        assert (told, failure.code) == ([Text("Hello")], "upstream_protocol_error")


def test_conversation_is_named_with_the_first_words_and_at_the_end(stage: Stage) -> None:
    batches = [batch for batch in stage.ask("#plain") if batch]
    told = [e for batch in batches for e in batch if isinstance(e, Conversation)]
    call = stage.upstream.calls("conversation")[0]
    assert {c.id for c in told} == {call.conversation_id}
    assert batches[0][0] == Conversation(call.conversation_id)
    assert told[-1].message_id in stage.upstream.state.conversations[call.conversation_id].messages


def test_blocked_answer_says_so(stage: Stage) -> None:
    stage.says(message("Hm"), {"moderation_response": {"blocked": True}})
    assert stage.events("") == [Text("Hm"), Finish("content_filter")]


def test_picture_that_the_tool_refused_says_so_unless_a_second_try_goes_well(
    stage: Stage,
) -> None:
    assert stage.events("#dalle_policy")[-2:] == [
        Text("I was unable to draw that."),
        Finish("content_filter"),
    ]
    tool = {"role": "tool", "name": "dalle.text2im", "status": "finished_successfully"}
    policy = message("User's requests didn't follow our content policy.", id="t1", **tool)
    again = message([], kind="multimodal_text", id="t2", **tool)
    stage.says(policy, again, message("Here is it."))
    assert stage.events("")[-1] == STOP
    stage.says(policy)
    assert stage.events("") == [Finish("content_filter")]


def test_shapes_that_nobody_knows_are_skipped(stage: Stage) -> None:
    stage.says(
        "7",
        '"text"',
        "[]",
        {"message": 7},
        {"message": {"id": "m0", "author": {"role": "critic"}, "content": {}}},
        {"v": "patch", "p": "/message"},
        message(
            "Hello", metadata={"citations": [7, {"metadata": {"url": 5}}], "finish_details": 7}
        ),
    )
    assert stage.events("") == [Text("Hello"), STOP]


def test_rewritten_text_loses_nothing_new(stage: Stage) -> None:
    stage.says(message("The sky is gray"), message("The sky is blue"), message("The sky is blue!"))
    assert stage.events("") == [Text("The sky is grayblue!"), STOP]


def test_picture_that_comes_twice_is_shown_once(stage: Stage) -> None:
    pointer = {"content_type": "image_asset_pointer", "asset_pointer": "sediment://file_0"}
    drawn = message([pointer], role="tool", kind="multimodal_text", name="dalle.text2im")
    done = {**drawn, "message": {**drawn["message"], "status": "finished_successfully"}}
    link = {"status": "success", "download_url": "https://files.example/x"}
    stage.upstream.script({"endpoint": "file_download", "status": 200, "body": link})
    stage.says(drawn, done, done)
    assert stage.events("") == [Image(url="https://files.example/x"), STOP]


def test_file_mark_is_found_by_its_name(stage: Stage) -> None:
    page = {"type": "webpage", "url": "https://ex.com/n", "name": "notes", "title": "Notes"}
    stage.says(message("A【3†notes】B【3†other】", metadata={"citations": [{"metadata": page}]}))
    assert stage.events("") == [
        Text("A"),
        Citation("3", "https://ex.com/n", "Notes"),
        Text("B【3†other】"),
        STOP,
    ]


def _without_links(stage: Stage, text: str) -> str:
    parts = text.split(stage.upstream.url)
    return parts[0] + "".join("URL" + part[part.index(")") :] for part in parts[1:])
