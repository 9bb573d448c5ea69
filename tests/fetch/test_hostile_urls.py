"""URLs that must be refused before a single packet leaves."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import InvalidRequest
from services.files.addresses import AllowList, Target, is_public, parse_url
from services.files.fetch import Fetcher

from .servers import Server, answer

PARAM = "messages[0].content[1].image_url.url"

# {port} is where a server listens on 127.0.0.1 and on which the operator opened another address,
# so that only the host stands between these URLs and that server.
HOSTILE = [
    # no address at all
    "",
    " ",
    "http:",
    "http:/",
    "http://",
    "http:///path",
    "http://?query",
    "http://#fragment",
    "example.com/a.png",
    "/etc/passwd",
    # other schemes
    "//example.com/a.png",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "FILE:///etc/passwd",
    "gopher://127.0.0.1:{port}/_GET",
    "ftp://example.com/a",
    "dict://127.0.0.1:{port}/info",
    "ldap://127.0.0.1:{port}/",
    "jar:http://127.0.0.1:{port}!/",
    "javascript:alert(1)",
    "view-source:http://127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/",
    "http:/127.0.0.1:{port}/",
    "https:\\\\127.0.0.1:{port}/",
    # user names, backslashes, white space, control characters
    "http://user@127.0.0.1:{port}/",
    "http://user:pass@example.com/",
    "http://example.com@127.0.0.1:{port}/",
    "http://example.com#@127.0.0.1:{port}@/",
    "http://@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@example.com/",
    "http://example.com\\.evil.example/",
    "http://127.0.0.1:{port}/ a",
    " http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/\r\nX-Injected: 1",
    "http://127.0.0.1:{port}/\x00",
    "http://127.0.0.1\t:{port}/",
    "ht\ntp://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/\x7f",
    "http://127.0.0.1:{port}/\x85",
    "http://127.0.0.1:{port}/\u2028",
    "http://exa\u200bmple.com/",
    "http://example.com/\ud800",
    # IPv4 in other spellings
    "http://0/",
    "http://0:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://0x7f.1:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x:{port}/",
    "http://017700000001:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://0177.0.0.01:{port}/",
    "http://127.0.0.0x1:{port}/",
    "http://2130706433:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://127.0.0.1.1:{port}/",
    "http://127.0.0.256:{port}/",
    "http://127.0.0.1e0:{port}/",
    "http://１２７.0.0.1:{port}/",
    "http://①②⑦.0.0.1:{port}/",
    "http://127。0。0。1:{port}/",
    "http://127．0．0．1:{port}/",
    "http://127｡0｡0｡1:{port}/",
    "http://%31%32%37.0.0.1:{port}/",
    "http://127.0.0.1%00.example.com:{port}/",
    "http://127%2e0%2e0%2e1:{port}/",
    # closed IPv4 addresses, plainly
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1/",
    "http://127.255.255.254:{port}/",
    "http://0.0.0.0:{port}/",
    "http://10.0.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://255.255.255.255/",
    # what clouds keep for their own machines, plainly and inside other addresses
    "http://168.63.129.16/machine?comp=goalstate",
    "http://168.63.129.16:{port}/",
    "http://0xa83f8110/",
    "http://[::ffff:168.63.129.16]/",
    "http://[64:ff9b::168.63.129.16]/",
    "http://[64:ff9b:1::a83f:8110]/",
    "http://[2002:a83f:8110::1]/",
    "http://[2a01:111::5efe:a83f:8110]/",
    "http://[2a01:111::200:5efe:a9fe:a9fe]/",
    "http://100.100.100.200/latest/meta-data/",
    "http://100.96.0.96/latest/meta-data/",
    "http://100.80.80.80/meta-data/",
    "http://192.0.0.192/latest/",
    "http://169.254.0.23/latest/meta-data/",
    "http://169.254.42.42/conf",
    "http://169.254.170.2/v2/credentials",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[fd00:ec2::23]/v1/credentials",
    "http://[fd20:ce::254]/computeMetadata/v1/",
    "http://[fd00:42::42]/conf",
    "http://[fd00:a9fe:a9fe::1]/v1/",
    "http://[64:ff9b::a9fe:a9fe]/latest/",
    "http://[2002:a9fe:a9fe::1]/latest/",
    "http://wireserver.example/",
    "http://ibm.example/",
    "http://carrier.example/",
    "http://bench.example/",
    "http://group.example/",
    # IPv6
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[::ffff:0:127.0.0.1]:{port}/",
    "http://[64:ff9b::127.0.0.1]:{port}/",
    "http://[64:ff9b:1::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[2001:0:7f00:1::1]:{port}/",
    "http://[fe80::1]:{port}/",
    "http://[fe80::1%25lo]:{port}/",
    "http://[fe80::1%lo]:{port}/",
    "http://[2606:4700::1%lo]/",
    "http://[fec0::1]:{port}/",
    "http://[fd00::1]:{port}/",
    "http://[ff02::1]:{port}/",
    "http://[::1:{port}/",
    "http://::1:{port}/",
    "http://[127.0.0.1]:{port}/",
    "http://[[::1]]:{port}/",
    "http://[v1.x]:{port}/",
    "http://[]:{port}/",
    "http://[::1]x:{port}/",
    # names
    "http://localhost:{port}/",
    "http://LOCALHOST:{port}/",
    "http://localhost.:{port}/",
    "http://example.com.:{port}/",
    "http://sub.localhost:{port}/",
    "http://redis:{port}/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://printer.local:{port}/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/",
    "http://localhoſt:{port}/",
    "http://.example.com/",
    "http://example..com/",
    "http://-example.com/",
    "http://exa$mple.com/",
    "http://exa,mple.com/",
    "http://[example.com]/",
    "http://" + "a" * 64 + ".example/",
    "http://" + "a." * 127 + "example/",
    "http://\u0301.example/",
    # ports
    "http://example.com:22/",
    "http://example.com:6379/",
    "http://example.com:0/",
    "http://example.com:65536/",
    "http://example.com:99999999999/",
    "http://example.com:-80/",
    "http://example.com:+80/",
    "http://example.com:8O/",
    "http://example.com:٨٠/",
    "http://example.com:/",
    "http://example.com:80:80/",
    # names whose addresses are closed
    "http://inside.example:{port}/",
    "http://inside.example/",
    "https://inside.example/",
    "http://mixed.example/",
    "http://mapped.example/",
    "http://scoped.example/",
    "http://nonsense.example/",
    "http://nowhere.example/",
    "http://empty.example/",
    # length
    "http://example.com/" + "a" * 10_000,
]

NAMES = {
    "mixed.example": ["93.184.216.34", "10.0.0.1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "scoped.example": ["fe80::1%lo"],
    "nonsense.example": ["93.184.216.34", "not an address"],
    "empty.example": [],
    "wireserver.example": ["168.63.129.16"],
    "ibm.example": ["161.26.0.10"],
    "carrier.example": ["100.100.100.200"],
    "bench.example": ["198.18.0.1"],
    "group.example": ["224.0.0.251"],
}


def resolve(host: str, port: int) -> list[str]:
    """Anything that slips through a check leads to the server that counts."""
    if host == "nowhere.example":
        raise socket.gaierror(socket.EAI_NONAME, "unknown")
    return NAMES.get(host, ["127.0.0.1"])


def test_table_is_long_enough() -> None:
    assert len(set(HOSTILE)) >= 100


def test_hostile_urls_reach_no_server() -> None:
    with Server(answer(b"secret")) as server:
        fetcher = Fetcher(allow=AllowList([f"203.0.113.9:{server.port}"]), resolver=resolve)
        for url in HOSTILE:
            with pytest.raises(InvalidRequest):
                fetcher.fetch(url.replace("{port}", str(server.port)))
    assert server.connections == 0


@pytest.mark.parametrize("url", HOSTILE, ids=lambda url: ascii(url)[:60])
def test_hostile_url_is_a_clear_400_and_is_never_dialled(url: str) -> None:
    dialled: list[str] = []

    def dial(address: str, port: int, seconds: float) -> socket.socket:
        dialled.append(address)
        raise OSError("no network in this test")

    fetcher = Fetcher(allow=AllowList(["203.0.113.9:8080"]), resolver=resolve, dial=dial)
    with pytest.raises(InvalidRequest) as caught:
        fetcher.fetch(url.replace("{port}", "8080"), param=PARAM)
    assert dialled == []
    assert caught.value.status == 400
    assert caught.value.param == PARAM
    assert caught.value.code == "invalid_url"
    assert caught.value.message.startswith("this url cannot be fetched: ")


def test_unknown_private_and_mixed_names_are_told_apart_by_nobody() -> None:
    fetcher = Fetcher(resolver=resolve)
    texts = set()
    for name in ("nowhere", "inside", "mixed", "empty", "mapped"):
        with pytest.raises(InvalidRequest) as caught:
            fetcher.fetch(f"http://{name}.example/")
        texts.add(caught.value.message)
    assert len(texts) == 1
    assert "10.0.0.1" not in texts.pop()


CLOSED = [
    "0.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "169.254.169.254",
    "161.26.0.10",
    "166.8.0.1",
    "166.11.255.255",
    "168.63.129.16",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:8.8.8.8",
    "::8.8.8.8",
    "64:ff9b::808:808",
    "64:ff9b:1::808:808",
    "100::1",
    "2001::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2a01:111::5efe:102:304",
    "2a01:111::200:5efe:102:304",
    "2002:808:808::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fdff::1",
    "fe80::1",
    "fec0::1",
    "ff00::1",
    "ff02::1",
]
OPEN = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.1",
    "161.25.255.255",
    "161.27.0.0",
    "166.7.255.255",
    "166.12.0.0",
    "168.63.129.15",
    "168.63.129.17",
    "169.253.0.1",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2606:4700::1111",
    "2a00:1450::1",
]


def dialled(url: str, *answers: str, allow: tuple[str, ...] = ()) -> list[str]:
    """Which addresses a fetch of `url` dials, where its name stands for `answers`.

    Each is refused, and so is what is closed before.
    """
    tried: list[str] = []

    def dial(address: str, port: int, seconds: float) -> socket.socket:
        tried.append(f"{address} {port}")
        raise ConnectionRefusedError

    fetcher = Fetcher(allow=AllowList(allow), resolver=lambda host, port: answers, dial=dial)
    with pytest.raises(InvalidRequest) as caught:
        fetcher.fetch(url)
    assert caught.value.code == ("url_fetch_failed" if tried else "invalid_url")
    return tried


@pytest.mark.parametrize("text", CLOSED)
def test_closed_address_is_refused_as_literal_and_as_answer(text: str) -> None:
    literal = f"[{text}]" if ":" in text else text
    for host in (literal, "name.example"):
        assert dialled(f"http://{host}/", text) == []


@pytest.mark.parametrize("text", OPEN)
def test_open_address_passes_as_literal_and_as_answer(text: str) -> None:
    literal = f"[{text}]" if ":" in text else text
    for host in (literal, "name.example"):
        assert dialled(f"http://{host}/", text) == [f"{text} 80"]


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("HTTP://Example.COM", "http://example.com/"),
        ("http://example.com:80/a", "http://example.com/a"),
        ("https://example.com:443/a", "https://example.com/a"),
        ("http://example.com:443/a", "http://example.com:443/a"),
        ("https://example.com?a=1#frag", "https://example.com/?a=1"),
        (
            "https://bücher.example/图.png?q=é",
            "https://xn--bcher-kva.example/%E5%9B%BE.png?q=%C3%A9",
        ),
        ("https://例子.example/", "https://xn--fsqu00a.example/"),
        ("https://a_b.example/%7Ea/%2F?sig=a%2Bb%3D", "https://a_b.example/%7Ea/%2F?sig=a%2Bb%3D"),
        ("https://example.com/a@b:c?x=http://y", "https://example.com/a@b:c?x=http://y"),
        ('https://example.com/"<>`{|}^', "https://example.com/%22%3C%3E%60%7B%7C%7D%5E"),
        ("http://[2606:4700:0:0::1]/", "http://[2606:4700::1]/"),
    ],
)
def test_honest_url_is_brought_to_its_plain_form(url: str, plain: str) -> None:
    assert parse_url(url, AllowList()).url == plain


def test_target_repr_hides_path_and_query() -> None:
    target = parse_url("https://example.com/secret/path?sig=secret", AllowList())
    assert "secret" not in repr(target)


@pytest.mark.parametrize(
    "entry",
    ["", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.300", "a b", "host:", "host:0", "host:70000"]
    + ["host:x", "[::1", "[::1]x", "[::1]:x", "http://host", "host/path", "*.example.com", "::g"],
)
def test_malformed_allow_list_entry_is_an_error_that_names_it(entry: str) -> None:
    with pytest.raises(ValueError, match="is not a network|neither|port"):
        AllowList([entry])


@pytest.mark.parametrize(
    ("entry", "url", "admitted"),
    [
        ("10.1.0.0/16", "http://10.1.2.3/", True),
        ("10.1.0.0/16", "http://10.2.2.3/", False),
        ("10.1.0.0/16", "http://10.1.2.3:9000/", False),
        ("10.1.0.0/16:9000", "http://10.1.2.3:9000/", True),
        ("10.1.0.0/16:9000", "http://10.1.2.3/", False),
        ("10.1.2.3:9000", "http://10.1.2.3:9000/", True),
        ("10.1.2.3:9000", "http://10.1.2.4:9000/", False),
        ("[fd00::/8]:8080", "http://[fd00::7]:8080/", True),
        ("fd00::/8", "http://[fd00::7]/", True),
        ("fd00::/8", "http://10.0.0.1/", False),
        ("files.internal:9000", "http://files.internal:9000/", True),
        ("files.internal:9000", "http://other.internal:9000/", False),
        ("Minio", "http://minio/", True),
        ("127.0.0.1", "http://loop.example/", True),
        ("0.0.0.0/0", "http://[::ffff:127.0.0.1]/", False),
        ("100.64.0.0/10", "http://100.64.0.7/", True),
        ("100.64.0.0/10", "http://100.100.100.200/", False),
        ("100.100.100.200", "http://100.100.100.200/", False),
        ("168.63.129.16", "http://168.63.129.16/", False),
        ("168.63.129.16:8080", "http://168.63.129.16:8080/", False),
        ("0.0.0.0/0", "http://169.254.169.254/", False),
        ("64:ff9b::/96", "http://[64:ff9b::808:808]/", True),
        ("64:ff9b::/96", "http://[64:ff9b::a9fe:a9fe]/", False),
        ("::/0", "http://[::ffff:168.63.129.16]/", False),
        ("::/0", "http://[2002:a9fe:a9fe::1]/", False),
        ("fd00::/8", "http://[fd00:ec2::254]/", False),
        ("example.com:8443", "https://example.com:8443/", True),
        ("example.com:8443", "https://example.org:8443/", False),
    ],
)
def test_allow_list_opens_what_it_names_and_no_more(entry: str, url: str, admitted: bool) -> None:
    assert bool(dialled(url, "127.0.0.1", allow=(entry,))) == admitted


_PIECES = st.sampled_from(
    ["http", "https", "file", ":", "//", "/", "\\", "@", "#", "?", "%", "[", "]", ".", "..", "-"]
    + [
        "。",
        "0x7f",
        "127.0.0.1",
        "0",
        "::1",
        "fe80::1%lo",
        "localhost",
        "example.com",
        "xn--",
        "xn--a",
    ]
    + [
        "8.8.8.8",
        "ß",
        "ſ",
        "\u200d",
        "\ufeff",
        "\x00",
        " ",
        "80",
        "443",
        "99999",
        "é",
        "Å",
        "١",
        "💩",
    ]
)
_URLS = (
    st.text()
    | st.text().map("http://".__add__)
    | st.text(alphabet=st.characters(min_codepoint=0x80)).map("https://".__add__)
    | st.lists(_PIECES, max_size=12).map("".join)
    | st.lists(_PIECES, max_size=8).map(lambda pieces: "http://" + "".join(pieces))
)


@given(_URLS)
def test_any_text_is_a_checked_target_or_an_invalid_request(text: str) -> None:
    try:
        target = parse_url(text, AllowList())
    except InvalidRequest:
        return
    assert isinstance(target, Target)
    assert target.scheme in ("http", "https")
    assert target.port in (80, 443)
    assert target.address is None or is_public(target.address)
    assert target.host.isascii()
    assert target.host == target.host.lower()
    assert target.path.startswith("/")
    assert target.path.isascii()
    assert target.path.isprintable()
    assert " " not in target.path
    assert parse_url(target.url, AllowList()) == target
