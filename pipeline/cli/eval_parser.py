"""The shape of `mcjepa eval`."""

from __future__ import annotations

import argparse

from mcjepa.pipeline.cli.parsing import Commands, add_recipe_arguments, command


def add_eval(commands: Commands) -> None:
    """`mcjepa eval` and its verbs."""
    evaluate = commands.add_parser("eval", help="weights to scores", description="Weights to scores.")
    verbs = evaluate.add_subparsers(dest="verb", metavar="VERB", required=True)
    parser = command(
        verbs,
        "all",
        "run every benchmark of a recipe on its run's newest weights, and write the report",
        "mcjepa eval all quickstart",
        "mcjepa.pipeline.cli.eval_all:evaluate_all",
    )
    add_recipe_arguments(parser)
    parser.add_argument("--weights", metavar="DIR", help="a weights folder instead of the run's newest")
    parser.add_argument(
        "--follow", action="store_true", help="score all weights of the run, and new ones until the training ends"
    )
    parser.add_argument("--again", action="store_true", help="score again what has been scored")
    parser.add_argument(
        "--poll-s", type=float, metavar="S", default=30.0, help="with --follow: seconds between looks (%(default)s)"
    )
    parser.add_argument(
        "--patience-s",
        type=float,
        metavar="S",
        default=0.0,
        help="with --follow: give up after so long without new weights; 0: never (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    _add_flow(verbs)
    _add_probe(verbs)
    _add_vos(verbs)
    _add_compare(verbs)
    _add_finetune(verbs)
    _add_classify(verbs)


def _add_flow(verbs: Commands) -> None:
    parser = command(
        verbs,
        "flow",
        "optical flow against ground truth, or an archive for a benchmark's test server",
        "mcjepa eval flow RUN/weights/step-000001200 --data DATA --set sintel-clean,kitti2015 --baselines\n"
        "  mcjepa eval flow RUN/weights/step-000001200 --data DATA --set sintel-test --submission sintel.zip",
        "mcjepa.pipeline.cli.eval_flow:evaluate_flow",
    )
    weights = "a weights folder: model.safetensors and config.json"
    parser.add_argument("weights", metavar="WEIGHTS", nargs="?", help=weights)
    parser.add_argument(
        "--data",
        metavar="ROOT",
        required=True,
        help="folder a set's archive unpacks to, or one that holds such folders",
    )
    parser.add_argument("--set", metavar="NAMES", required=True, help="flow sets, with commas between them")
    parser.add_argument(
        "--baselines",
        metavar="NAMES",
        nargs="?",
        const="all",
        help="score classical methods too: zero, dis-ultrafast, dis-fast, dis-medium, farneback; alone: all of them "
        "(without the option: zero and dis-medium)",
    )
    parser.add_argument(
        "--estimates", metavar="DIR", help="score flow files laid out like the ground truth instead of WEIGHTS"
    )
    parser.add_argument(
        "--submission",
        metavar="FILE.zip",
        help="write the archive of sintel-test, kitti2012-test or kitti2015-test and check it; without WEIGHTS and "
        "--estimates: check the one that is there",
    )
    _add_results_arguments(parser)
    setting = "setting of eval.flow (resize, subset, max_pairs, pictures, workers), device or threads, as name=value"
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=setting)


def _add_probe(verbs: Commands) -> None:
    parser = command(
        verbs,
        "probe",
        "segmentation probe on frozen features: a linear head or nearest neighbours",
        "mcjepa eval probe RUN/weights/step-000001200 --data CamVid --set camvid 'seeds=[0,1,2]'",
        "mcjepa.pipeline.cli.eval_probe:evaluate_probe",
    )
    _add_benchmark_arguments(parser, "probe")
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        help="named settings: vicregl-voc, vicregl-ade20k, vicregl-cityscapes, cached, knn (default: the set's own)",
    )
    parser.add_argument("--head", choices=("linear", "knn"), help="knn = nearest training cells, nothing is trained")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    parser.add_argument("--threads", metavar="N", type=int, default=0, help="CPU threads of torch (0: its own choice)")


def _add_vos(verbs: Commands) -> None:
    parser = command(
        verbs,
        "vos",
        "video object segmentation by label propagation, or of masks that are there already",
        "mcjepa eval vos RUN/weights/step-000001200 --data DAVIS --set davis2017 --preset crw\n"
        "  mcjepa eval vos --estimates results/osvos --data DAVIS --set davis2016",
        "mcjepa.pipeline.cli.eval_vos:evaluate_vos",
    )
    parser.add_argument("weights", metavar="WEIGHTS", nargs="?", help="a weights folder; none with --estimates")
    parser.add_argument("--data", metavar="ROOT", required=True, help="folder the data set's archive unpacks to")
    parser.add_argument(
        "--set", metavar="NAME", required=True, help="davis2016, davis2017, davis2017-test-dev or moving-photos"
    )
    parser.add_argument(
        "--preset", metavar="NAME", default="dino", help="protocol: dino, crw or vfs (%(default)s); key=value over it"
    )
    parser.add_argument("--estimates", metavar="DIR", help="score DIR/SEQUENCE/FRAME.png, palette or grey, instead")
    parser.add_argument("--masks", action="store_true", help="write the predicted masks as DAVIS' palette PNGs")
    parser.add_argument("--overlays", action="store_true", help="write each sequence tinted by its masks, as mp4")
    _add_results_arguments(parser)
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="setting of eval.vos, as name=value")


def _add_compare(verbs: Commands) -> None:
    parser = command(
        verbs,
        "compare",
        "set evaluations side by side, and beside the paper's table",
        "mcjepa eval compare outputs/a/eval/step-000001200 mine=outputs/b/eval/step-000001200 --out compared.html",
        "mcjepa.pipeline.cli.eval_compare:compare_evaluations",
    )
    parser.add_argument("folders", metavar="[LABEL=]DIR", nargs="+", help="a folder with scores.json, or of such")
    parser.add_argument("--out", metavar="FILE", default="outputs/compared.html", help="page to write (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def _add_finetune(verbs: Commands) -> None:
    parser = command(
        verbs,
        "finetune",
        "semantic segmentation: train the whole encoder with UperNet; a rerun continues",
        "mcjepa eval finetune RUN/weights/step-000001200 --data CamVid --set camvid steps=2000 batch=8",
        "mcjepa.pipeline.cli.eval_finetune:evaluate_finetune",
    )
    _add_benchmark_arguments(parser, "finetune")
    parser.add_argument("--seed", type=int, default=0, help="of the head, the batches and the augmentation")
    parser.add_argument("--ranks", type=int, metavar="N", default=1, help="train with N processes on this machine")


def _add_classify(verbs: Commands) -> None:
    parser = command(
        verbs,
        "classify",
        "image classification on frozen features: nearest neighbours and a linear head",
        "mcjepa eval classify RUN/weights/step-000001200 --data imagenet --set imagefolder",
        "mcjepa.pipeline.cli.eval_classify:evaluate_classify",
    )
    _add_benchmark_arguments(parser, "classify")
    parser.add_argument("--seed", type=int, default=0, help="of the linear head")


def _add_benchmark_arguments(parser: argparse.ArgumentParser, kind: str) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="a weights folder: model.safetensors and config.json")
    parser.add_argument("--data", metavar="ROOT", required=True, help="folder the data set's archive unpacks to")
    parser.add_argument("--set", metavar="NAME", required=True, help="name of the data set")
    _add_results_arguments(parser)
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=f"setting of eval.{kind}, as name=value")


def _add_results_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", default="outputs/eval", help="folder of the results (%(default)s)")
    parser.add_argument("--tracking", metavar="URI", help="record in MLflow too: a server, or sqlite:///FILE")
    parser.add_argument("--experiment", metavar="NAME", default="mcjepa", help="MLflow experiment (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
