"""ICC profiles made by hand (ICC.1:2001-04): three primaries, a white point and a gamma."""

from __future__ import annotations

import struct

import numpy as np

# Columns: XYZ (D50) of red, green, blue of Adobe RGB (1998), as its own profile has them.
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


def make_profile(colours: np.ndarray, gamma: float) -> bytes:
    """A display profile of version 2 with these primaries and one gamma."""

    def xyz(values: object) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)  # type: ignore[attr-defined]

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    tags = {
        b"desc": text + bytes(-len(text) % 4),
        b"wtpt": xyz((0.9642, 1.0, 0.8249)),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        **{name: xyz(colours[:, k]) for k, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    at = 128 + 4 + 12 * len(tags)
    table, content = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(content), len(data))
        content += data
    size = at + len(content)
    head = struct.pack(">I4sI4s4s4s12s4s", size, b"test", 0x02100000, b"mntr", b"RGB ", b"XYZ ", bytes(12), b"acsp")
    head = head.ljust(68, b"\0") + struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + content


def to_srgb_by_hand(rgb: np.ndarray, colours: np.ndarray, gamma: float) -> np.ndarray:
    """Levels 0 to 255 of the same colours in sRGB (IEC 61966-2-1)."""
    linear = (rgb / 255.0) ** gamma @ (np.linalg.inv(SRGB) @ colours).T
    clipped = np.clip(linear, 0, 1)
    return 255 * np.where(clipped <= 0.0031308, 12.92 * clipped, 1.055 * clipped ** (1 / 2.4) - 0.055)
