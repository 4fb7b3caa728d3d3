"""The loop of a study: order, going on where it ended, what it refuses; and the arm whose encoder is frozen."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_recipe import train_small, write_small_recipe

from mcjepa.cluster.local import GRACE_S
from mcjepa.evals.cards import Card, Score, read_scores, stored_key, write_scores
from mcjepa.evals.models import read_weights
from mcjepa.evals.run import evaluation_key
from mcjepa.model.config import EncoderConfig, ExpanderConfig, FlowConfig, ModelConfig
from mcjepa.model.mcjepa import MCJEPA, TERMS
from mcjepa.model.pretrained import save
from mcjepa.pipeline.engine.parameters import stop_gradients
from mcjepa.pipeline.errors import RunError, UsageError
from mcjepa.pipeline.launch.study import run_study, study_runs
from mcjepa.pipeline.recipe.recipe import Recipe, load_recipe, required
from mcjepa.pipeline.recipe.validation import validate
from mcjepa.pipeline.stages.study import study_table
from mcjepa.pipeline.tracking.lineage import PARENT_VARIABLE

STUDY = {
    "arms": {
        "content-only": {"overrides": {"train.stream.pair_batch": 0}},
        "frozen": {"starts_from": "content-only", "overrides": {"train.frozen_encoder": True}},
    },
    "seeds": [0, 7],
    "measures": {"mIoU": {"of": ["probe/moving-photos/miou"], "better": "higher"}},
}


@functools.cache
def _small_model() -> MCJEPA:
    encoder = EncoderConfig(stem_channels=(4, 4), stage_channels=(8, 8, 8, 8), depths=(1, 1, 1, 1))
    return MCJEPA(
        ModelConfig(encoder=encoder, flow=FlowConfig(width_factor=0.1), expander=ExpanderConfig(widths=(16, 16)))
    )


class Commands:
    """Stands for the commands: writes what they leave behind, and fails or stops where it is told to."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.parents: set[str] = set()
        self.code_of: dict[str, int] = {}

    def __call__(self, words: list[str], log: Path, variables: Mapping[str, str], grace_s: float) -> int:
        content = yaml.safe_load(Path(words[-1]).read_text())
        out, kind = Path(content["out"]), words[3]
        name = f"{kind} {out.parent.name} {content['train']['seed']}"
        self.seen.append(name)
        if name in self.code_of:
            log.write_text("a line\nthe disk is full\n")
            return self.code_of[name]
        assert grace_s == (content["train"]["checkpoint"]["grace_s"] if kind == "train" else GRACE_S)
        if kind == "train":
            self.parents.add(variables[PARENT_VARIABLE])
            weights = out / "run" / "weights" / "step-000000004"
            save(_small_model().state_dict(), _small_model().config, weights, {"step": 4})
            (out / "run" / "train_report.json").write_text('{"finished": true, "steps": 4}')
        else:
            assert content["eval"]["seed"] == content["train"]["seed"]
            miou = 20.0 + content["train"]["seed"]
            config = required((recipe := validate(Recipe, content, "test")).eval, "eval", recipe)
            weights = read_weights(out / "run" / "weights" / "step-000000004")
            told = dict.fromkeys(("split", "root", "resolution", "masks", "aggregation"), "")
            card = Card(data_set="moving-photos", frames=2, unit="images", **told)
            score = Score(name="probe/moving-photos", metrics={"miou": miou}, card=card)
            write_scores([score], out / "eval" / "step-000000004", evaluation_key(weights.identity, config))
            (out / "summary.json").write_text("{}")
        return 0


ALL = [f"{kind} {arm} {seed}" for seed in (0, 7) for arm in ("content-only", "frozen") for kind in ("train", "eval")]


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    content = {"base": "quickstart", "name": "small", "out": str(tmp_path / "study"), "study": STUDY}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_every_arm_and_seed_is_trained_and_scored_below_one_mlflow_run(recipe_file: Path) -> None:
    recipe, plain = load_recipe(str(recipe_file), [])
    commands, said = Commands(), list[str]()
    run_study(recipe, plain, said.append, commands)
    assert commands.seen == ALL and said[-1] == "4/4 frozen/seed-7: trained and evaluated"
    frozen = yaml.safe_load((Path(recipe.out) / "runs/frozen/seed-7/recipe.yaml").read_text())
    assert frozen["train"]["init_from"].endswith("content-only/seed-7/run/weights/step-000000004")
    assert frozen["train"]["frozen_encoder"] and frozen["study"] is None
    assert frozen["tracking"] == plain["tracking"]  # one MLflow for all
    table, text = study_table(recipe, plain)
    assert table.missing == () and "| content-only | 23.5 ± 4.9 (2) |" in text
    assert (Path(recipe.out) / "small.table.md").read_text() == text

    again = Commands()
    run_study(recipe, plain, said.append, again)
    assert again.seen == [] and said[-1] == "4/4 frozen/seed-7: finished before"
    known = json.loads((Path(recipe.out) / "study.json").read_text())
    assert {known["small"]} == commands.parents


def test_a_half_finished_study_goes_on_where_it_ended(recipe_file: Path) -> None:
    recipe, plain = load_recipe(str(recipe_file), [])
    broken = Commands()
    broken.code_of = {"eval frozen 0": 3}
    with pytest.raises(RunError, match=r"eval all .*frozen/seed-0/recipe.yaml ended with 3: the disk is full"):
        run_study(recipe, plain, lambda line: None, broken)
    table, _ = study_table(recipe, plain)
    assert table.missing == ("content-only/seed-7", "frozen/seed-0", "frozen/seed-7")
    commands = Commands()
    run_study(recipe, plain, lambda line: None, commands)
    assert commands.seen == ["eval frozen 0", *ALL[4:]]


def test_scores_that_lack_items_are_named_in_the_table(recipe_file: Path) -> None:
    recipe, plain = load_recipe(str(recipe_file), [])
    run_study(recipe, plain, lambda line: None, Commands())
    assert study_table(recipe, plain)[0].incomplete == ()
    folder = Path(recipe.out) / "runs/frozen/seed-7/eval/step-000000004"
    key, (score,) = stored_key(folder), read_scores(folder)
    card = dataclasses.replace(score.card, failed=("a.png: torn", "b.png: torn"))
    write_scores([dataclasses.replace(score, card=card)], folder, key)
    table, text = study_table(recipe, plain)
    assert table.incomplete == ("frozen/seed-7 probe/moving-photos: 2 items failed",)
    assert f"not comparable with the others**: {table.incomplete[0]}." in text


def test_other_protocols_are_scored_again_and_other_trainings_refused(recipe_file: Path) -> None:
    recipe, plain = load_recipe(str(recipe_file), [])
    run_study(recipe, plain, lambda line: None, Commands())
    commands = Commands()
    run_study(*load_recipe(str(recipe_file), ["eval.probe.steps=77"]), lambda line: None, commands)
    assert commands.seen == [name for name in ALL if name.startswith("eval")]
    with pytest.raises(UsageError, match="content-only/seed-0 was begun with another `train`"):
        run_study(*load_recipe(str(recipe_file), ["train.steps=9"]), lambda line: None, Commands())


def test_scores_of_another_protocol_are_not_shown_as_the_studys(recipe_file: Path) -> None:
    recipe, plain = load_recipe(str(recipe_file), [])
    run_study(recipe, plain, lambda line: None, Commands())
    broken, other = Commands(), load_recipe(str(recipe_file), ["eval.probe.steps=77"])
    broken.code_of = {"eval frozen 7": 3}
    with pytest.raises(RunError):
        run_study(*other, lambda line: None, broken)
    assert study_table(*other)[0].missing == ("frozen/seed-7",)
    assert len(study_table(recipe, plain)[0].missing) == 3
    commands = Commands()
    run_study(*other, lambda line: None, commands)
    assert commands.seen == ["eval frozen 7"] and study_table(*other)[0].missing == ()


def test_a_run_that_another_command_works_on_is_left_to_it(recipe_file: Path) -> None:
    recipe, plain = load_recipe(str(recipe_file), ["study.seeds=[0]"])
    first = study_runs(recipe)[0]
    first.folder.mkdir(parents=True)
    commands, said = Commands(), list[str]()
    with (first.folder / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="frozen/seed-0 starts from content-only/seed-0, which is not trained"):
            run_study(recipe, plain, said.append, commands)
    assert commands.seen == [] and said == ["1/2 content-only/seed-0: left to the command that works on it"]


def test_a_stop_is_passed_on_and_no_run_is_called_failed(recipe_file: Path) -> None:
    recipe, plain = load_recipe(str(recipe_file), [])
    commands = Commands()
    commands.code_of = {"train frozen 0": 130}
    with pytest.raises(KeyboardInterrupt):
        run_study(recipe, plain, lambda line: None, commands)


def test_wrong_studies_are_refused_before_anything_starts(recipe_file: Path) -> None:
    recipe, plain = load_recipe(str(recipe_file), ["study.arms.content-only.overrides={train.stpes: 3}"])
    commands = Commands()
    with pytest.raises(UsageError, match=r"unknown key 'train.stpes': did you mean 'train.steps'"):
        run_study(recipe, plain, lambda line: None, commands)
    assert commands.seen == []
    with pytest.raises(UsageError, match="is scored by its `eval`; run `mcjepa study run`"):
        study_table(*load_recipe(str(recipe_file), ["out=elsewhere"]))
    recipe_file.write_text(yaml.safe_dump({"base": "quickstart", "study": {"seeds": [0]}}))
    with pytest.raises(UsageError, match="no arms"):
        study_runs(load_recipe(str(recipe_file), [])[0])


@pytest.mark.parametrize("stage", [0, 1])
def test_a_frozen_encoder_keeps_its_weights_to_the_bit_while_the_estimator_learns(tmp_path: Path, stage: int) -> None:
    recipe = write_small_recipe(tmp_path, meters={"every": 1})
    first = tmp_path / "first"
    assert train_small(recipe, first, "train.steps=2", "train.stream.pair_batch=0").returncode == 0
    run = tmp_path / "frozen"
    words = ("train.frozen_encoder=true", f"train.init_from={first}/weights/step-000000002", "train.steps=4")
    words = (*words, f"train.engine.zero_stage={stage}", "train.optimizer.encoder_weight_decay=0.1")
    done = train_small(recipe, run, *words)
    assert done.returncode == 0, done.stderr
    before = load_file(first / "weights/step-000000002/model.safetensors")
    after = load_file(run / "weights/step-000000004/model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("encoder.") for name in moved)
    assert any(name.startswith("flow_estimator.") for name in moved) and any(n.startswith("expander.") for n in moved)
    records = [json.loads(line) for line in (run / "logs/metrics.jsonl").read_text().splitlines()]
    assert all(record["gradient_norm"] > 0.0 and "gradient_cosine" not in record for record in records)


def test_a_frozen_encoder_drops_no_branch() -> None:
    """Its features are those of use."""
    torch.manual_seed(0)
    encoder = MCJEPA(ModelConfig(encoder=EncoderConfig(drop_path=0.9), flow=FlowConfig(width_factor=0.1))).encoder
    encoder.train()
    image = torch.rand(2, 3, 64, 64)
    assert not torch.equal(encoder(image)[-1], encoder(image)[-1])
    stop_gradients(encoder)
    assert torch.equal(encoder(image)[-1], encoder(image)[-1])


def test_no_gradient_leaves_the_estimator_towards_a_frozen_encoder() -> None:
    model = MCJEPA(
        ModelConfig(
            encoder=EncoderConfig(stem_channels=(4, 4), stage_channels=(8, 8, 8, 8), depths=(1, 1, 1, 1)),
            flow=FlowConfig(width_factor=0.1),
            expander=ExpanderConfig(widths=(16, 16)),
        )
    )
    stop_gradients(model.encoder)
    generator = torch.Generator().manual_seed(0)
    pairs, views = ((torch.rand(4, 3, 64, 64, generator=generator), torch.rand(4, 3, 64, 64, generator=generator)),) * 2
    model(pairs, views, dict.fromkeys(TERMS, 1.0)).loss.backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    for learner in (model.flow_estimator, model.expander):
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in learner.parameters())
