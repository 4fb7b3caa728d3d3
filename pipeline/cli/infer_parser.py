"""The shape of `mcjepa infer`."""

from __future__ import annotations

from mcjepa.pipeline.cli.parsing import Commands, command

PRODUCTS = "flo, kitti, colour, video, features"


def add_infer(commands: Commands) -> None:
    """`mcjepa infer`."""
    parser = command(
        commands,
        "infer",
        "flow and features of your own frames and videos",
        "mcjepa infer RUN/weights/step-000001200 first.png second.png --out results\n"
        "  mcjepa infer RUN/weights/step-000001200 holiday.mp4 frames/ --out results --write flo,video,features",
        "mcjepa.pipeline.cli.infer:run_infer",
    )
    parser.add_argument("weights", metavar="WEIGHTS", help="a weights folder: model.safetensors and config.json")
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="videos, folders of frames, and images; the images are the frames of one clip, in the order given",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the results: DIR/CLIP/…")
    parser.add_argument("--write", metavar="LIST", default="flo,colour,video", help=f"some of {PRODUCTS} (%(default)s)")
    parser.add_argument(
        "--tile", metavar="PX", type=int, default=1920, help="longest side computed at once; 0: any (%(default)s)"
    )
    parser.add_argument("--overlap", metavar="PX", type=int, default=256, help="of neighbouring tiles (%(default)s)")
    parser.add_argument("--batch", metavar="N", type=int, default=2, help="pairs computed at once (%(default)s)")
    parser.add_argument("--stride", metavar="PX", type=int, default=8, help="level of the features (%(default)s)")
    parser.add_argument(
        "--max-flow", metavar="PX", type=float, default=0.0, help="flow of full colour; 0: by the clip (%(default)s)"
    )
    parser.add_argument("--max-frames", metavar="N", type=int, default=0, help="first N frames of each input; 0: all")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="write anew what is there already")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
