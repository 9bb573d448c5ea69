"""The types that can be told apart, and their file extensions."""

from __future__ import annotations

from types import MappingProxyType

PLAIN_TEXT = "text/plain"
UNKNOWN = "application/octet-stream"

INLINE_IMAGES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""The only types that may be shown as pictures. SVG is a program and counts as text."""

_OFFICE = "application/vnd.openxmlformats-officedocument."
DOCX = _OFFICE + "wordprocessingml.document"
PPTX = _OFFICE + "presentationml.presentation"
XLSX = _OFFICE + "spreadsheetml.sheet"

# ChatGPT's document types by their upload names, misspelt x-latext included; then csv, xml, yaml.
_TEXTS = {
    "application/json": ".json",
    "application/x-latext": ".latex",
    "text/html": ".html",
    "text/javascript": ".js",
    "text/markdown": ".md",
    "text/plain": ".txt",
    "text/x-c": ".c",
    "text/x-c++": ".cpp",
    "text/x-csharp": ".cs",
    "text/x-java": ".java",
    "text/x-php": ".php",
    "text/x-ruby": ".rb",
    "text/x-script.python": ".py",
    "text/x-sh": ".sh",
    "text/x-tex": ".tex",
    "text/x-typescript": ".ts",
    "text/csv": ".csv",
    "application/xml": ".xml",
    "application/yaml": ".yaml",
}
_BINARIES = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/gif": ".gif",
    "image/webp": ".webp",
    "image/avif": ".avif",
    "image/bmp": ".bmp",
    "image/heic": ".heic",
    "image/tiff": ".tiff",
    "application/pdf": ".pdf",
    "application/rtf": ".rtf",
    "application/msword": ".doc",
    "application/vnd.ms-excel": ".xls",
    "application/vnd.ms-powerpoint": ".ppt",
    DOCX: ".docx",
    PPTX: ".pptx",
    XLSX: ".xlsx",
    "application/epub+zip": ".epub",
    "application/gzip": ".gz",
    "application/x-7z-compressed": ".7z",
    "application/x-tar": ".tar",
    "application/zip": ".zip",
    "audio/aac": ".aac",
    "audio/amr": ".amr",
    "audio/flac": ".flac",
    "audio/mp4": ".m4a",
    "audio/mpeg": ".mp3",
    "audio/ogg": ".ogg",
    "audio/wav": ".wav",
    "video/mp4": ".mp4",
    "video/quicktime": ".mov",
    "video/webm": ".webm",
}
EXTENSIONS = MappingProxyType({**_TEXTS, **_BINARIES})

_OTHER_NAMES = {
    "application/javascript": "text/javascript",
    "application/x-javascript": "text/javascript",
    "application/x-latex": "application/x-latext",
    "application/x-php": "text/x-php",
    "application/x-sh": "text/x-sh",
    "application/x-yaml": "application/yaml",
    "text/xml": "application/xml",
    "text/x-markdown": "text/markdown",
    "text/x-python": "text/x-script.python",
    "text/yaml": "application/yaml",
    "image/jpg": "image/jpeg",
    "audio/mp3": "audio/mpeg",
    "audio/x-flac": "audio/flac",
    "audio/x-wav": "audio/wav",
}


def usual_name(mime: str) -> str:
    """`mime` in lower case, without parameters, by the name that the tables use."""
    bare = mime.partition(";")[0].strip().lower()
    return _OTHER_NAMES.get(bare, bare)


def is_text(mime: str) -> bool:
    return usual_name(mime) in _TEXTS


def extension(mime: str) -> str:
    """The file extension for a type, with its dot: `.txt` for unlisted text types, else `.bin`."""
    name = usual_name(mime)
    return EXTENSIONS.get(name, ".txt" if name.startswith("text/") else ".bin")
