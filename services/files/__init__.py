"""Pictures and files: adopted, served, swept; and those that callers upload and refer to."""

from services.files.adopter import Adopter
from services.files.attachments import Attachment, Sources, resolve_attachment
from services.files.cache import MEGABYTE, FileCache, Kept, Swept
from services.files.downloads import caller_fetcher, download_limits, upstream_fetcher
from services.files.kinds import Kind, Lifetimes
from services.files.picture_bytes import PictureBytes
from services.files.public_base import public_base
from services.files.storage import FileGone, StorageAway
from services.files.uploaded_parts import fill_in_uploads
from services.files.user_files import UserFile, UserFiles, owner_of

__all__ = [
    "MEGABYTE",
    "Adopter",
    "Attachment",
    "FileCache",
    "FileGone",
    "Kept",
    "Kind",
    "Lifetimes",
    "PictureBytes",
    "Sources",
    "StorageAway",
    "Swept",
    "UserFile",
    "UserFiles",
    "caller_fetcher",
    "download_limits",
    "fill_in_uploads",
    "owner_of",
    "public_base",
    "resolve_attachment",
    "upstream_fetcher",
]
