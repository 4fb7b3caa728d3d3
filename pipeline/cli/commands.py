"""The commands: one table of names, handlers, purposes, examples and options, of which `main` makes the parser."""

from __future__ import annotations

from typing import NamedTuple

from mcjepa.pipeline.cli.options import (
    ARTIFACT,
    BESIDE,
    DATA,
    DEVICE,
    DRILL,
    DRY_RUN,
    EVAL_FLOW,
    EVAL_VOS,
    EXPORT,
    INFER,
    INIT,
    JSON,
    KEEP_LOGS,
    LAUNCHED,
    NODES,
    OVERRIDES,
    PLAN,
    QUICKSTART,
    RECIPE,
    RESULTS,
    SET,
    SITE,
    THREADS,
    TRACKED,
    UI,
    WEIGHTS,
    Option,
    count,
    flag,
    option,
    seconds,
    settings_of,
)  # fmt: skip

DESCRIPTION = """\
MC-JEPA, from raw video and images to scores: build shards, train the joint model of motion and content, evaluate.

  mcjepa quickstart                          the whole way on this machine, in minutes
  mcjepa init --videos DIR --images DIR      a recipe for your own videos and photos
  mcjepa prep run RECIPE                     corpora -> WebDataset shards, with Ray
  mcjepa train RECIPE                        shards -> checkpoints, with DeepSpeed
  mcjepa eval all RECIPE                     weights -> scores, pictures and a report
  mcjepa infer WEIGHTS INPUT... --out DIR    weights -> flow and features of your own frames and videos

A recipe is a YAML file or the name of a shipped one (quickstart, sample, paper, ablations/no-vc, …);
key=value overrides any of its keys.
"""


class Command(NamedTuple):
    """A command, or a verb of a group, as it is typed: `train`, `prep run`."""

    name: str
    handler: str
    """`MODULE:FUNCTION` of this folder, imported when the command runs."""
    purpose: str
    example: str
    options: tuple[Option, ...]


GROUPS = {
    "prep": "turn corpora into published datasets",
    "eval": "score weights on benchmarks",
    "study": "train, evaluate and compare the arms of a recipe's study over several seeds",
    "launch": "run prep, train or eval in the background, on Slurm or on Ray clusters",
    "drill": "rehearse an interruption of a recipe's run on this machine and compare losses and samples",
    "tracking": "records of runs on their way to MLflow",
}

COMMANDS = (
    Command(
        "quickstart", "train:quickstart",
        "go the whole way on this machine: shards, training, scores, a report",
        "mcjepa quickstart --out /tmp/first-run",
        QUICKSTART,
    ),
    Command(
        "init", "records:init",
        "write a commented recipe for your own videos and photos, sized to them, to the machine and to a time",
        "mcjepa init --videos ~/videos --images ~/photos --minutes 20",
        INIT,
    ),
    Command(
        "prep plan", "prep:plan",
        "print what would be built, how long it will take, and what already exists",
        "mcjepa prep plan quickstart",
        (*RECIPE, JSON, flag("--no-probe", "do not process a few inputs to estimate the time")),
    ),
    Command(
        "prep run", "prep:run",
        "build and publish the recipe's datasets; running it again continues",
        "mcjepa prep run quickstart",
        (
            *RECIPE, JSON,
            option("--submit", metavar="URL", help="run as a job of the Ray cluster with this dashboard"),
        ),
    ),
    Command(
        "prep status", "prep:status",
        "print how far a job is, or how far it came before it died",
        "mcjepa prep status quickstart",
        (*RECIPE, JSON),
    ),
    Command(
        "prep audit", "prep:audit",
        "prove that every input is accounted for and every shard is intact",
        "mcjepa prep audit quickstart",
        (*RECIPE, JSON),
    ),
    Command(
        "prep requeue", "prep:requeue",
        "try quarantined inputs again and publish what they yield as a new revision",
        "mcjepa prep requeue quickstart --reason timeout",
        (
            *RECIPE, JSON,
            option("--reason", metavar="WORDS", default="", help="only inputs whose reason contains these words"),
        ),
    ),
    Command(
        "prep card", "prep:card",
        "write a page about each published dataset: samples, counts, histograms, quarantine",
        "mcjepa prep card quickstart",
        (*RECIPE, JSON),
    ),
    Command(
        "train", "train:train",
        "train the joint model, or continue the run in its folder",
        "mcjepa train quickstart --ranks 2 train.steps=200",
        (
            *RECIPE,
            count(
                "--ranks", "N",
                "start N processes on this machine; 0: one per GPU (per core without GPUs), limited by the batch", 1,
            ),
            JSON,
        ),
    ),
    Command(
        "eval all", "evaluate:everything",
        "run every benchmark of a recipe on its run's newest weights, and write the report",
        "mcjepa eval all quickstart",
        (
            *RECIPE,
            option("--weights", metavar="DIR", help="a weights folder instead of the run's newest"),
            flag("--follow", "score all weights of the run, and new ones as they appear, until the training ends"),
            flag("--again", "score again what has already been scored"),
            seconds("--poll-s", "S", "with --follow: seconds between looks (%(default)s)", 30.0),
            seconds("--patience-s", "S", "with --follow: give up after so long without new weights; 0: never", 0.0),
            JSON,
        ),
    ),
    Command(
        "eval flow", "evaluate:flow",
        "score optical flow against ground truth, or write an archive for a benchmark's test server",
        "mcjepa eval flow RUN/weights/step-000001200 --data DATA --set sintel-clean,kitti2015 --baselines\n"
        "  mcjepa eval flow RUN/weights/step-000001200 --data DATA --set sintel-test --submission sintel.zip",
        EVAL_FLOW,
    ),
    Command(
        "eval probe", "evaluate:probe",
        "score a segmentation probe on frozen features: a linear head or nearest neighbours",
        "mcjepa eval probe RUN/weights/step-000001200 --data CamVid --set camvid 'seeds=[0,1,2]'",
        (
            WEIGHTS, DATA, SET, *RESULTS, settings_of("eval.probe"),
            option(
                "--protocol", metavar="NAME",
                help="named settings: vicregl-voc, vicregl-ade20k, vicregl-cityscapes, cached, knn (default: by set)",
            ),
            option("--head", choices=("linear", "knn"), help="knn: nearest training cells, without training"),
            DEVICE, THREADS,
        ),
    ),
    Command(
        "eval vos", "evaluate:vos",
        "score video object segmentation by label propagation, or score existing masks",
        "mcjepa eval vos RUN/weights/step-000001200 --data DAVIS --set davis2017 --preset crw\n"
        "  mcjepa eval vos --estimates results/osvos --data DAVIS --set davis2016",
        EVAL_VOS,
    ),
    Command(
        "eval compare", "evaluate:compare",
        "set evaluations side by side, and beside the paper's table",
        "mcjepa eval compare outputs/a/eval/step-000001200 mine=outputs/b/eval/step-000001200 --out compared.html",
        (
            option("folders", metavar="[LABEL=]DIR", nargs="+", help="a folder with scores.json, or of such folders"),
            option("--out", metavar="FILE", default="outputs/compared.html", help="page to write (%(default)s)"),
            JSON,
        ),
    ),
    Command(
        "eval finetune", "evaluate:finetune",
        "train the whole encoder with UperNet for semantic segmentation; running it again continues",
        "mcjepa eval finetune RUN/weights/step-000001200 --data CamVid --set camvid steps=2000 batch=8",
        (
            WEIGHTS, DATA, SET, *RESULTS, DEVICE, THREADS, settings_of("eval.finetune"),
            count("--seed", "N", "seed of the head, the batches and the augmentation (%(default)s)"),
            count("--ranks", "N", "train with N processes on this machine (%(default)s)", 1),
        ),
    ),
    Command(
        "eval classify", "evaluate:classify",
        "score image classification on frozen features: nearest neighbours and a linear head",
        "mcjepa eval classify RUN/weights/step-000001200 --data imagenet --set imagefolder",
        (
            WEIGHTS, DATA, SET, *RESULTS, DEVICE, THREADS, settings_of("eval.classify"),
            count("--seed", "N", "seed of the linear head (%(default)s)"),
        ),
    ),
    Command(
        "study run", "study:run",
        "train and evaluate every arm with every seed, then print the tables; running it again continues",
        "mcjepa study run study/main data=DATA",
        (*RECIPE, JSON),
    ),
    Command(
        "study table", "study:table",
        "print means, spreads and tests of significance of what has been scored so far",
        "mcjepa study table study/main data=DATA",
        (*RECIPE, JSON),
    ),
    Command(
        "infer", "infer:infer",
        "compute flow and features of your own frames and videos",
        "mcjepa infer nano first.png second.png --out results\n"
        "  mcjepa infer RUN/weights/step-000001200 holiday.mp4 frames/ --out results --write flo,video,features",
        INFER,
    ),
    Command(
        "export", "train:export",
        "write a checkpoint's weights as a folder: model.safetensors and config.json",
        "mcjepa export outputs/quickstart/run --out weights --layout hub",
        EXPORT,
    ),
    Command(
        "launch prep", "launch:stage",
        "build and publish the recipe's datasets; on several nodes by a Ray cluster that the job starts on them",
        "mcjepa launch prep paper --site my-cluster.yaml --nodes 4 --dry-run",
        (*RECIPE, SITE, NODES, DRY_RUN, JSON),
    ),
    Command(
        "launch train", "launch:stage",
        "train the recipe's run, or all runs of its sweep; it survives signals, dead ranks and lost nodes",
        "mcjepa launch train paper --site my-cluster.yaml --nodes 2 --dry-run",
        (
            *RECIPE, SITE, NODES, DRY_RUN,
            option(
                "--with-eval", nargs="?", choices=("ok", "any", "follow"), const="ok", default="",
                metavar="ok|any|follow",
                help="also evaluate: the newest weights if the training succeeded (ok) or however it ended (any), or "
                "all weights while it runs (follow)",
            ),
            JSON,
        ),
    ),
    Command(
        "launch eval", "launch:stage",
        "evaluate the newest weights of the recipe's run",
        "mcjepa launch eval paper --site my-cluster.yaml --dry-run",
        (*RECIPE, SITE, DRY_RUN, JSON),
    ),
    Command(
        "launch all", "launch:stage",
        "prepare, train and evaluate: each stage as a job that waits for the one before to succeed",
        "mcjepa launch all quickstart --site slurm",
        (*RECIPE, SITE, NODES, DRY_RUN, JSON),
    ),
    Command(
        "launch resume", "launch:resume",
        "submit an earlier launch again, unchanged, and what followed it; a run continues from its newest checkpoint",
        "mcjepa launch resume outputs/paper/run",
        LAUNCHED,
    ),
    Command(
        "launch status", "launch:status",
        "print the state of jobs, how often they were started, and how far the run is",
        "mcjepa launch status outputs/paper/run",
        LAUNCHED,
    ),
    Command(
        "launch logs", "launch:logs",
        "print the output of ranks",
        "mcjepa launch logs outputs/paper/run --rank 3 --lines 50",
        (
            *LAUNCHED,
            count("--rank", "N", "only this rank", None),
            count("--lines", "N", "last lines of each file; 0: all (%(default)s)", 20),
            flag("--follow", "go on printing what is written, until the job has ended"),
        ),
    ),
    Command(
        "launch cancel", "launch:cancel",
        "end jobs and the jobs that wait for them; a run can be resumed",
        "mcjepa launch cancel outputs/paper/run",
        LAUNCHED,
    ),
    Command(
        "launch progress", "launch:progress",
        "print the step of a run's newest complete checkpoint, or -1",
        "mcjepa launch progress outputs/paper/run",
        (option("run", metavar="RUN", help="a run folder or s3 prefix"),),
    ),
    Command(
        "launch keep-logs", "launch:keep_logs",
        "copy the logs of a job's ranks to its run in a bucket; the job's script calls it",
        "mcjepa launch keep-logs s3://bucket/run outputs/paper/jobs/train 4711",
        KEEP_LOGS,
    ),
    Command(
        "explain", "lineage:explain",
        "print the chain from inputs to a score: where a run, weights, scores or a dataset come from, what is missing, "
        "what was changed since",
        "mcjepa explain outputs/quickstart",
        (
            option("artifact", metavar="WHAT", help=f"{ARTIFACT}, or a recipe's results; a folder or an s3 prefix"),
            BESIDE, TRACKED, JSON,
        ),
    ),
    Command(
        "diff", "lineage:diff",
        "print what two runs, weights, scores or datasets differ in, what is likely to matter first",
        "mcjepa diff outputs/a/run outputs/b/run",
        (
            option("first", metavar="A", help=ARTIFACT),
            option("second", metavar="B", help="another of its kind"),
            BESIDE, TRACKED, JSON,
        ),
    ),
    Command(
        "recipe", "records:recipe",
        "print a recipe with everything resolved, or every key with its meaning",
        "mcjepa recipe quickstart train.steps=200",
        (*RECIPE, flag("--keys", "print every key with its type, default and meaning")),
    ),
    Command(
        "ui", "records:ui",
        "show the runs of a recipe as a table in MLflow's interface; starts a server on 127.0.0.1 where none stands",
        "mcjepa ui outputs/quickstart",
        UI,
    ),
    Command(
        "plan", "plan:plan",
        "check what a training run needs and what is wrong with it, before it is queued",
        "mcjepa plan paper --nodes 2 --ranks 16 --step-s 0.4 --memory-gib 80",
        PLAN,
    ),
    Command(
        "drill preempt", "plan:drill",
        "send a stop signal with a grace time, as at a time limit or a pre-emption",
        "mcjepa drill preempt quickstart --out /tmp/drill",
        DRILL,
    ),
    Command(
        "drill node-loss", "plan:drill",
        "kill one rank of two, as when a node is lost",
        "mcjepa drill node-loss quickstart --out /tmp/drill",
        DRILL,
    ),
    Command(
        "drill storage", "plan:drill",
        "make the run folder unwritable while a checkpoint is due, and writable again later",
        "mcjepa drill storage quickstart --out /tmp/drill",
        DRILL,
    ),
    Command(
        "tracking sync", "records:sync",
        "deliver to MLflow the records that a run could not deliver while it was unreachable",
        "mcjepa tracking sync outputs/quickstart/run",
        (
            option("run", metavar="RUN|RECIPE", help="a run folder, or the recipe it was trained from"),
            OVERRIDES,
            JSON,
        ),
    ),
)  # fmt: skip
