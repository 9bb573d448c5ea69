"""What a piece of data really is, by its bytes: type, file extension, width and height."""

from services.media.images import ImageInfo, measure_image
from services.media.mimes import INLINE_IMAGES, UNKNOWN, extension, is_text
from services.media.sniffing import sniff
from services.media.structure import Data

__all__ = [
    "INLINE_IMAGES",
    "UNKNOWN",
    "Data",
    "ImageInfo",
    "extension",
    "is_text",
    "measure_image",
    "sniff",
]
