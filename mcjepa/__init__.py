"""MC-JEPA: one encoder that learns motion (optical flow) and content (VICReg) together.

    import mcjepa

    model = mcjepa.load("RUN/weights/step-000001200")           # a folder of weights, its file, or a hub's download
    flow_B2HW = model.estimate_flow(frame0_B3HW, frame1_B3HW)   # pixels, from frame 0 to frame 1
    pyramid = model.forward_pyramid(image_B3HW)                 # six maps of strides 2 to 64, finest first

    stream = mcjepa.open_stream(pairs="s3://bucket/clips", views="s3://bucket/images")    # for a loop of your own
    for step in stream: ...                                     # its whole state is one integer, stream.next_step

Public are the names below and what they return; everything else may move. Each is imported when it is first used, so
that `import mcjepa` is quick. In the repository the rooms of this package are the folders at its top; here are links.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcjepa.model.config import ModelConfig
    from mcjepa.model.mcjepa import MCJEPA
    from mcjepa.model.pretrained import load, load_encoder
    from mcjepa.pipeline.stream.loader import open_stream

    __version__: str

__all__ = ["MCJEPA", "ModelConfig", "__version__", "load", "load_encoder", "open_stream"]

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if not os.path.isdir(os.path.join(os.path.dirname(__file__), "model")) and os.path.isfile(
    os.path.join(_ROOT, "pyproject.toml")
):
    # An archive or a file system without links (torch.hub unpacks a zip): the rooms are found where they lie.
    __path__.append(_ROOT)

_HOMES = {
    "MCJEPA": "mcjepa.model.mcjepa",
    "ModelConfig": "mcjepa.model.config",
    "load": "mcjepa.model.pretrained",
    "load_encoder": "mcjepa.model.pretrained",
    "open_stream": "mcjepa.pipeline.stream.loader",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        value: Any = _version()
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'mcjepa' has no attribute {name!r}; public are {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("mcjepa")
    except metadata.PackageNotFoundError:  # an unpacked archive that nobody installed
        import tomllib

        with open(os.path.join(_ROOT, "pyproject.toml"), "rb") as file:
            return str(tomllib.load(file)["project"]["version"])
