"""MC-JEPA: one encoder that learns motion (optical flow) and content (VICReg) together.

In the repository the rooms of this package are the folders at its top; here are links to them.
"""

from __future__ import annotations

import os

_root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if not os.path.isdir(os.path.join(os.path.dirname(__file__), "model")) and os.path.isfile(
    os.path.join(_root, "pyproject.toml")
):
    # An archive or a file system without links (torch.hub unpacks a zip): the rooms are found where they lie.
    __path__.append(_root)
