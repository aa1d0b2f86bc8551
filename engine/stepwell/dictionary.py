"""The dictionary that small bodies are compressed with: a file beside this module, and a part of the format.

On disk: never change it.  Logs cannot be read without it; another dictionary takes another file and a form of its own.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Final

import zstandard

FILE: Final = Path(__file__).with_name("loose-1.dict")
BYTES: Final = 8192
DIGEST: Final = "241ad2d0d59e4ea3051fc9ac6215af95d8d1ab9e31dd094578e1f2d150293350"  # BLAKE2b-256


def load(file: Path = FILE) -> bytes:
    """The dictionary's bytes.

    Raises:
        ImportError: The file is missing or is another: nothing could be read or written with it.
    """
    advice = "install stepwell again"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ImportError(f"the dictionary {str(file)!r} cannot be read ({error}); {advice}") from error
    if blake2b(content, digest_size=32).hexdigest() != DIGEST:
        raise ImportError(f"{str(file)!r} is not the dictionary that logs are written with; {advice}")
    return content


def digested(content: bytes, level: int) -> zstandard.ZstdCompressionDict:
    """The dictionary made ready once, for all compressors of a level and for all decompressors, in any thread."""
    dictionary = zstandard.ZstdCompressionDict(content)
    dictionary.precompute_compress(level=level)
    # For decompressors the first use of it does that, and two threads must not come to it at once.
    frame = zstandard.ZstdCompressor(dict_data=dictionary).compress(b"any")
    zstandard.ZstdDecompressor(dict_data=dictionary).decompress(frame)
    return dictionary
