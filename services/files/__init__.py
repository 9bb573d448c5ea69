"""Pictures and files: adopted, served, swept; and those that callers upload and refer to."""

from services.files.adopter import Adopter
from services.files.cache import MEGABYTE, FileCache, Kept, Swept
from services.files.kinds import Kind, Lifetimes
from services.files.own_parts import OwnFiles, fill_in_own_files
from services.files.picture_bytes import PictureBytes
from services.files.public_base import public_base
from services.files.storage import FileGone, StorageAway
from services.files.user_files import UserFile, UserFiles, owner_of

__all__ = [
    "MEGABYTE",
    "Adopter",
    "FileCache",
    "FileGone",
    "Kept",
    "Kind",
    "Lifetimes",
    "PictureBytes",
    "StorageAway",
    "Swept",
    "UserFile",
    "UserFiles",
    "OwnFiles",
    "fill_in_own_files",
    "owner_of",
    "public_base",
]
