# /// script
# dependencies = ["img2dataset==1.47.0"]
# ///
"""img2dataset: photos of a folder shrunk to 256 px, JPEG of quality 95, into tars, by one process and one thread.

    python -m benchmarks.img2dataset_photos PHOTOS OUT COUNT

It takes addresses; these are files'.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import img2dataset


def main() -> None:
    """List and convert; fails where a photo was left out."""
    photos, out, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    out.mkdir()
    addresses = out / "addresses.txt"
    addresses.write_text("".join(f"{path.resolve().as_uri()}\n" for path in sorted(photos.iterdir())))
    img2dataset.download(
        url_list=str(addresses), output_folder=str(out / "shards"), output_format="webdataset", image_size=256,
        resize_mode="keep_ratio", resize_only_if_bigger=True, encode_quality=95, number_sample_per_shard=256,
        processes_count=1, thread_count=1,
    )  # fmt: skip
    stats = [json.loads(path.read_text()) for path in (out / "shards").glob("*_stats.json")]
    written = sum(each["successes"] for each in stats)
    if written != count:
        raise SystemExit(f"img2dataset wrote {written} photos, expected {count}")


if __name__ == "__main__":
    main()
