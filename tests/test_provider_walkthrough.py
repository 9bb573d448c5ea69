"""The provider of docs/adding-a-provider.md, as printed, works."""

import re
import types
from pathlib import Path

from emulators.http_server import HttpServer, Reply, Request
from services.core.events import Finish, Text
from services.core.models import Credential
from services.core.requests import ChatRequest, Message
from services.transport import Transport

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "adding-a-provider.md"


class Context:
    """As much of a provider's context as this one looks at."""

    def __init__(self, settings: object) -> None:
        self.settings = types.SimpleNamespace(providers={"lines": settings})
        self.transport = Transport()


def answer(request: Request, reply: Reply) -> None:
    reply.start(200, {"Content-Type": "application/x-ndjson"})
    reply.write(b'{"text":"Hel')
    reply.write('lo 你"}\n{"text":"!"}\n{"done":true}\n'.encode())
    reply.end()


def test_printed_provider_answers() -> None:
    (source,) = re.findall(
        r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL
    )
    module = types.ModuleType("lines")
    exec(compile(source, "adding-a-provider.md", "exec"), module.__dict__)
    with HttpServer(answer) as upstream:
        context = Context(module.SETTINGS(base_url=upstream.url))
        provider = module.build(context)
        route = provider.route("lines-1")
        request = ChatRequest("lines-1", (Message("user", "hi"),), stream=True)
        events = [e for batch in provider.stream(request, route, Credential()) for e in batch]
        context.transport.close()
    assert "".join(e.text for e in events if isinstance(e, Text)) == "Hello 你!"
    assert events[-1] == Finish("stop")
