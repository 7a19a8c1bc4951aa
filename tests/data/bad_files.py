"""Files that are no pictures, or are not whole."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def png(width: int, height: int, bits: int, pixels: bytes) -> bytes:
    """A grey PNG that says it has this size, with these compressed pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def bomb() -> bytes:
    """A PNG of 200 kB at most that says it has 2e10 pixels."""
    return png(200_000, 100_000, 8, zlib.compress(bytes(1000)))


def truncated(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        buffer, form
    )
    return buffer.getvalue()[:2000]


BAD: dict[str, bytes] = {
    "bomb.png": bomb(),
    "cut.jpg": truncated("JPEG"),
    "cut.png": truncated("PNG"),
    "empty.jpg": b"",
    "text.png": b"this is no picture",
    "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) run\n",
}
