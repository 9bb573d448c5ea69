"""Types by content, and pictures measured without decoding them."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services.core.errors import InvalidRequest
from services.files.sniff import (
    DOCX,
    EXTENSIONS,
    INLINE_IMAGES,
    PPTX,
    UNKNOWN,
    XLSX,
    extension,
    measure_image,
    sniff,
)

FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}


def picture(
    form: str, size: tuple[int, int] = (37, 21), mode: str = "RGB", **options: object
) -> bytes:
    out = io.BytesIO()
    noise = Image.effect_noise(size, 80).convert(mode)
    noise.save(out, form, **options)
    return out.getvalue()


def animation(form: str) -> bytes:
    out = io.BytesIO()
    frames = [Image.effect_noise((37, 21), 80).convert("P") for _ in range(3)]
    frames[0].save(out, form, save_all=True, append_images=frames[1:])
    return out.getvalue()


def archive(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names:
            file.writestr(name, "content of " + name)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + body + struct.pack(">I", zlib.crc32(body))


def png_bomb(width: int, height: int) -> bytes:
    """A whole PNG with correct sums and a few bytes of pixels."""
    pixels = zlib.compress(bytes(1000))
    chunk = struct.pack(">I", len(pixels)) + b"IDAT" + pixels
    chunk += struct.pack(">I", zlib.crc32(b"IDAT" + pixels))
    return png_header(width, height) + chunk + b"\0\0\0\0IEND\xaeB`\x82"


PICTURES = {
    "png": ("image/png", picture("PNG")),
    "png palette": ("image/png", picture("PNG", mode="P")),
    "png alpha": ("image/png", picture("PNG", mode="RGBA")),
    "apng": ("image/png", animation("PNG")),
    "jpeg": ("image/jpeg", picture("JPEG")),
    "jpeg progressive": ("image/jpeg", picture("JPEG", progressive=True)),
    "jpeg grey": ("image/jpeg", picture("JPEG", mode="L")),
    "jpeg cmyk": ("image/jpeg", picture("JPEG", mode="CMYK")),
    "jpeg with thumbnail": (
        "image/jpeg",
        picture("JPEG", exif=b"Exif\0\0" + picture("JPEG")[:60] + b"\xff\xd9"),
    ),
    "mpo": (
        "image/jpeg",
        picture("MPO", save_all=True, append_images=[Image.new("RGB", (37, 21))]),
    ),
    "gif": ("image/gif", picture("GIF", mode="P")),
    "gif animated": ("image/gif", animation("GIF")),
    "webp lossy": ("image/webp", picture("WEBP")),
    "webp lossless": ("image/webp", picture("WEBP", lossless=True)),
    "webp alpha": ("image/webp", picture("WEBP", mode="RGBA")),
    "webp animated": ("image/webp", animation("WEBP")),
}


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_measured(name: str) -> None:
    mime, data = PICTURES[name]
    info = measure_image(data)
    assert (info.mime, info.width, info.height) == (mime, 37, 21)
    assert sniff(data, "text/plain") == mime


@pytest.mark.parametrize("name", PICTURES)
def test_picture_cut_at_any_place_is_refused(name: str) -> None:
    _, data = PICTURES[name]
    # a JPEG ends at its first end mark, an MPO at that of its first picture
    whole = len(data) if name != "mpo" else data.index(b"\xff\xd9", 700)
    for length in (1, 5, 12, 20, 30, 60, whole // 3, whole // 2, whole - 20, whole - 2, whole - 1):
        with pytest.raises(InvalidRequest, match="cut short|broken|not a png"):
            measure_image(data[:length])


def test_zero_bytes_are_no_picture_and_count_as_text() -> None:
    with pytest.raises(InvalidRequest, match="empty") as caught:
        measure_image(b"", param="image")
    assert caught.value.param == "image"
    assert caught.value.status == 400
    assert sniff(b"", "image/png") == "text/plain"


@pytest.mark.parametrize("form", ["BMP", "TIFF", "ICO", "PPM", "TGA"])
def test_other_pictures_are_not_taken(form: str) -> None:
    with pytest.raises(InvalidRequest, match="not a png, jpeg, gif or webp"):
        measure_image(picture(form, (32, 32)))


@pytest.mark.parametrize(
    "data",
    [b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html>", b"%PDF-1.7\n", bytes(100)],
)
def test_things_that_are_no_pictures_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not a png"):
        measure_image(data)


def test_png_with_a_wrong_sum_is_refused() -> None:
    data = bytearray(picture("PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(InvalidRequest, match="broken"):
        measure_image(bytes(data))


@pytest.mark.parametrize("end", [b"x", b"", b"!\xfe\0"], ids=["junk", "none", "comment"])
def test_gif_without_its_trailer_is_refused(end: bytes) -> None:
    data = picture("GIF", mode="P")
    assert data.endswith(b";")
    with pytest.raises(InvalidRequest, match="cut short"):
        measure_image(data[:-1] + end)


def test_gif_without_an_image_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="cut short"):
        measure_image(b"GIF89a\x05\0\x05\0\0\0\0!\xfe\0;")


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidRequest):
        measure_image(png_bomb(*size))


def test_pixel_limit_is_the_callers() -> None:
    data = picture("PNG", (100, 100))
    assert measure_image(data, max_pixels=10_000).width == 100
    with pytest.raises(InvalidRequest, match="100×100 pixels are more than the 9999"):
        measure_image(data, max_pixels=9_999)


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(picture("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_of(width: int, height: int) -> bytes:
    data = bytearray(picture("GIF", mode="P"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def webp_of(width: int, height: int) -> bytes:
    data = bytearray(animation("WEBP"))
    assert data[12:16] == b"VP8X"
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


BOMBS = {
    "png": png_bomb(50_000, 50_000),
    "png at most": png_bomb(0x7FFFFFFF, 0x7FFFFFFF),
    "jpeg": jpeg_of(65_500, 65_500),
    "gif": gif_of(65_535, 65_535),
    "webp": webp_of(16_384, 16_384),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_refused_for_its_pixels(name: str) -> None:
    with pytest.raises(InvalidRequest, match="pixels are more than the 50000000"):
        measure_image(BOMBS[name])


def test_neither_bombs_nor_the_largest_pictures_cost_memory() -> None:
    """In a process of its own, whose peak is the resident memory of these pictures alone."""
    largest = [
        png_bomb(7_000, 7_000),
        jpeg_of(7_000, 7_000),
        gif_of(7_000, 7_000),
        webp_of(7_000, 7_000),
    ]
    program = """
import resource, sys
from services.core.errors import InvalidRequest
from services.files.sniff import measure_image, sniff
def peak():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
pictures = [bytes.fromhex(line) for line in sys.stdin]
measure_image(pictures[0])
before, refused = peak(), 0
for data in pictures[1:]:
    sniff(data)
    try:
        measure_image(data)
    except InvalidRequest:
        refused += 1
print(refused, peak() - before)
"""
    smalls = [png_bomb(10, 10)]
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        input="\n".join(data.hex() for data in [*smalls, *BOMBS.values(), *largest]),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    refused, grown = map(int, result.stdout.split())
    assert refused == len(BOMBS)  # and the largest allowed are measured
    assert grown < 20_000_000


# --- sniffing

TEXTS = sorted(mime for mime in EXTENSIONS if sniff(b"just text", mime) == mime)
MP3 = b"ID3\x03\0\0\0\0\0\0" + b"\xff\xfb\x90\x00" * 50
WAV = (
    b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\0\0\0\0"
)
MP4 = b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41" + bytes(100)
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)


@pytest.mark.parametrize(
    ("mime", "ending"),
    [
        ("image/jpeg", ".jpg"),
        ("image/png", ".png"),
        ("image/gif", ".gif"),
        ("image/webp", ".webp"),
        ("text/x-php", ".php"),
        ("application/msword", ".doc"),
        ("text/x-c", ".c"),
        ("text/html", ".html"),
        (DOCX, ".docx"),
        ("application/json", ".json"),
        ("text/javascript", ".js"),
        ("application/pdf", ".pdf"),
        ("text/x-sh", ".sh"),
        ("text/x-csharp", ".cs"),
        (PPTX, ".pptx"),
        ("text/x-c++", ".cpp"),
        ("application/x-latext", ".latex"),
        ("text/markdown", ".md"),
        ("text/plain", ".txt"),
        ("text/x-ruby", ".rb"),
        ("text/x-script.python", ".py"),
        ("text/x-java", ".java"),
        ("text/x-tex", ".tex"),
        ("text/x-typescript", ".ts"),
        ("text/csv", ".csv"),
        (XLSX, ".xlsx"),
        ("audio/mpeg", ".mp3"),
        ("audio/wav", ".wav"),
        ("video/mp4", ".mp4"),
        ("Text/Plain; charset=utf-8", ".txt"),
        ("image/jpg", ".jpg"),
        ("text/x-unknown", ".txt"),
        ("application/x-unknown", ".bin"),
        ("image/svg+xml", ".bin"),
        ("", ".bin"),
    ],
)
def test_extension_of_each_type(mime: str, ending: str) -> None:
    assert extension(mime) == ending


def test_every_text_type_of_the_table_is_kept_for_text() -> None:
    assert {"text/x-php", "application/json", "application/x-latext", "text/x-c++"} <= set(TEXTS)
    assert len(TEXTS) == 19


@pytest.mark.parametrize(
    ("data", "mime"),
    [
        (archive("[Content_Types].xml", "_rels/.rels", "word/document.xml"), DOCX),
        (archive("docProps/app.xml", "ppt/presentation.xml", "[Content_Types].xml"), PPTX),
        (archive("[Content_Types].xml", "a", "b", "c", "d", "e", "xl/workbook.xml"), XLSX),
        (archive("word/document.xml"), "application/zip"),
        (archive("a.txt"), "application/zip"),
        (b"PK\x03\x04" + bytes(40), "application/zip"),
        (b"%PDF-1.7\n1 0 obj", "application/pdf"),
        (b"{\\rtf1 hello}", "application/rtf"),
        (MP3, "audio/mpeg"),
        (WAV, "audio/wav"),
        (MP4, "video/mp4"),
        (b"OggS" + bytes(30), "audio/ogg"),
        (b"fLaC" + bytes(30), "audio/flac"),
        (b"\x1f\x8b\x08" + bytes(30), "application/gzip"),
        (b"MZ" + bytes(range(256)), UNKNOWN),
        (bytes(range(256)), UNKNOWN),
        (b"\0", UNKNOWN),
    ],
)
@pytest.mark.parametrize("declared", [None, "text/plain", "image/png", "application/json", "x"])
def test_content_wins_over_what_is_declared(data: bytes, mime: str, declared: str | None) -> None:
    assert sniff(data, declared) == mime


@pytest.mark.parametrize(
    ("declared", "mime"),
    [
        ("application/msword", "application/msword"),
        ("application/vnd.ms-excel", "application/vnd.ms-excel"),
        ("image/png", UNKNOWN),
        (None, UNKNOWN),
    ],
)
def test_old_office_files_are_told_apart_by_what_is_declared(
    declared: str | None, mime: str
) -> None:
    assert sniff(OLE, declared) == mime


@pytest.mark.parametrize(
    ("text", "declared", "mime"),
    [
        (b"hello", None, "text/plain"),
        (b"hello", "application/octet-stream", "text/plain"),
        (b"hello", "image/png", "text/plain"),
        (b"<svg onload='x'/>", "image/svg+xml", "text/plain"),
        (b"BMW and MZ, II*", None, "text/plain"),
        (b"print(1)", "text/x-python; charset=utf-8", "text/x-script.python"),
        (b"print(1)", "text/x-nonsense", "text/plain"),
        ("图片".encode(), None, "text/plain"),
        ("图片 text".encode("gb18030"), None, "text/plain"),
        ("図".encode("utf-16"), "text/csv", "text/csv"),
        (b"caf\xe9 noir", "text/markdown", "text/markdown"),
        (b"caf\xe9 noir", None, UNKNOWN),
        (b"a\0b", "text/plain", UNKNOWN),
        ("é".encode() * 70_000, None, "text/plain"),
        (b"x" + "é".encode() * 70_000, None, "text/plain"),
        (b"x" * 200_000 + b"\0", None, UNKNOWN),
    ],
)
def test_text_is_recognised(text: bytes, declared: str | None, mime: str) -> None:
    assert sniff(text, declared) == mime


def test_web_page_that_starts_like_a_gif_is_text() -> None:
    page = b"GIF89a/*<html><script>alert(1)</script>*/=1;"
    assert sniff(page, "image/gif") == "text/plain"
    with pytest.raises(InvalidRequest, match="not a png"):
        measure_image(page)


@pytest.mark.parametrize("form", FORMATS)
def test_picture_with_something_behind_it_is_that_picture(form: str) -> None:
    for tail in (archive("a.txt"), b"<script>alert(1)</script>", b"%PDF-1.7"):
        data = picture(form) + tail
        assert sniff(data, "application/zip") == FORMATS[form]
        assert measure_image(data).mime == FORMATS[form]


def test_archive_with_a_picture_inside_is_an_archive() -> None:
    out = io.BytesIO(archive("a.txt"))
    with zipfile.ZipFile(out, "a") as file:
        file.writestr("b.png", picture("PNG"))
    assert sniff(out.getvalue(), "image/png") == "application/zip"


def test_stored_office_file_does_not_make_its_archive_one() -> None:
    inner = archive("[Content_Types].xml", "word/document.xml")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a.docx", inner)
    assert sniff(out.getvalue(), DOCX) == "application/zip"


@pytest.mark.parametrize(
    "head",
    [
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"RIFF\x10\0\0\0WEBP",
        b"RIFF\x10\0\0\0WEBPVP8 ",
    ],
)
def test_first_bytes_alone_make_no_picture(head: bytes) -> None:
    assert sniff(head + bytes(20), "image/png") not in INLINE_IMAGES


@settings(max_examples=200)
@given(st.sampled_from(sorted(PICTURES)), st.data())
def test_damaged_pictures_never_raise_anything_else(name: str, data: st.DataObject) -> None:
    _, content = PICTURES[name]
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 200)))] = data.draw(
            st.integers(0, 255)
        )
    try:
        info = measure_image(bytes(damaged))
    except InvalidRequest:
        return
    assert info.mime in INLINE_IMAGES
    assert 0 < info.width * info.height <= 50_000_000


@given(st.binary(max_size=300), st.none() | st.text(max_size=20) | st.sampled_from(TEXTS))
def test_any_bytes_have_a_known_type(data: bytes, declared: str | None) -> None:
    assert sniff(data, declared) in {*EXTENSIONS, UNKNOWN}
