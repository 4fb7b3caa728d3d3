"""Recipes: bases, overrides, substitution, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.files import apply_overrides, find_recipe, merge, override, read_recipe, substitute
from mcjepa.pipeline.recipe.recipe import load_recipe


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_defaults_of_the_model_are_the_papers(tmp_path: Path) -> None:
    recipe, _ = load_recipe(str(write(tmp_path / "r.yaml", "train: {run: r, steps: 1}\n")), [])
    assert recipe.model.encoder.depths == (3, 3, 9, 3)
    assert recipe.model.expander.widths == (8192, 8192, 8192)
    assert recipe.train is not None and recipe.train.terms.video_balance == 0.1


def test_a_recipe_is_laid_over_its_base(tmp_path: Path) -> None:
    write(tmp_path / "below.yaml", "train: {run: r, steps: 5, seed: 3}\n")
    path = write(tmp_path / "above.yaml", "base: below.yaml\ntrain: {steps: 7}\n")
    assert read_recipe(path)["train"] == {"run": "r", "steps": 7, "seed": 3}


def test_a_key_with_an_exclamation_mark_replaces_instead_of_merging() -> None:
    below = {"sets": {"a": 1}, "more": {"a": 1}}
    assert merge(below, {"sets!": {"b": 2}, "more": {"b": 2}}) == {"sets": {"b": 2}, "more": {"a": 1, "b": 2}}
    assert merge({}, {"eval": {"sets!": {"b": 2}}}) == {"eval": {"sets": {"b": 2}}}


def test_bases_that_go_in_a_circle_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    path = write(tmp_path / "b.yaml", "base: a.yaml\n")
    with pytest.raises(UsageError, match="circle"):
        read_recipe(path)


def test_overrides_have_yaml_types() -> None:
    content = apply_overrides({"a": {"b": 1}}, ["a.b=[1, 2]", "a.c=null", "d=1e-3", "e=text"])
    assert content == {"a": {"b": [1, 2], "c": None}, "d": "1e-3", "e": "text"}


@pytest.mark.parametrize("text", ["/data/a # b", "/o/📷", "a: b", " x ", "'", "null", "1:30", "[", "a\tb", "ü # 1"])
def test_an_override_gives_exactly_the_text_that_it_was_made_of(text: str) -> None:
    assert apply_overrides({}, [override("out", text)]) == {"out": text}
    assert apply_overrides({}, [override("out", [text])]) == {"out": [text]}


def test_a_blank_and_a_hash_in_a_typed_path_begin_no_comment() -> None:
    typed = ["a=/data/run # 2", "b='quoted # x'  # y", "c=3 # three"]
    assert apply_overrides({}, typed) == {"a": "/data/run # 2", "b": "quoted # x", "c": 3}


def test_merging_does_not_touch_what_is_below() -> None:
    below = {"a": {"b": 1}}
    assert merge(below, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert below == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("override", "mark"),
    [
        ("train.stepps=3", "unknown key 'train.stepps': did you mean 'train.steps'"),
        ("train.optimizer.encoder_rl=3", "did you mean 'train.optimizer.encoder_lr'"),
        ("prep.datasets.clips.kinds=clip", "did you mean 'prep.datasets.clips.kind'"),
        ("zzzz=3", "expected one of"),
        ("train.steps=many", "train.steps is 'many'"),
        ("train.steps=0", "one of them above 0"),
        ("train.engine.zero_stage=4", "train.engine.zero_stage is 4"),
        ("nonsense", "expected key=value"),
        ("out=${home}/x", "expected one of"),
        ("steps=5", "did you mean 'train.steps'?"),
        ("train.lr=5", "did you mean 'train.optimizer.encoder_lr' or 'train.optimizer.estimator_lr'?"),
        ("train.steps=", "train.steps is empty (null), expected a whole number"),
        ("train.steps==3", "train.steps is '=3', expected a whole number"),
        ("train.steps=yes", "train.steps is true, expected a number"),
        ("train.optimizer.betas=[0.9, on]", "train.optimizer.betas.1 is true, expected a number"),
        ("train.optimizer.encoder_lr=.nan", "train.optimizer.encoder_lr is nan, expected a finite number"),
        ("train.optimizer.encoder_lr=inf", "train.optimizer.encoder_lr is 'inf', expected a finite number"),
        ("train.optimizer.betas=0.9", "train.optimizer.betas is 0.9, expected a list"),
        ("train.stream.pairs.0.location=x", "write the whole list"),
        ("train=5", "train is 5, expected a mapping of keys"),
        ("name=no", "name is false, expected a text; quote it"),
        ("out=", "out is empty, expected a text"),
        ("name=''", "name is empty, expected a text"),
    ],
)
def test_a_wrong_override_is_named(override: str, mark: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("quickstart", [override])
    assert mark in str(caught.value)


@pytest.mark.parametrize("word", [".nan", "-.inf", "1e999"])
def test_a_number_that_is_not_finite_is_refused_wherever_it_is(word: str) -> None:
    for key in ("train.optimizer.betas=[{}, 0.9]", "train.stream.views=[{{location: x, weight: {}}}]"):
        with pytest.raises(UsageError, match=r"train\.(optimizer|stream)\..* is .*, expected a finite number"):
            load_recipe("paper", [key.format(word)])


def test_times_of_the_clock_are_text_and_no_numbers_of_base_60(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "begin: 20:00\nmore: [1:30:00, 1:20:30.5]\nplain: [20, -1.5, 1_000, 0x1f]\n")
    assert read_recipe(path) == {"begin": "20:00", "more": ["1:30:00", "1:20:30.5"], "plain": [20, -1.5, 1000, 31]}
    assert apply_overrides({}, ["begin=20:00", "n=20", "m={at: 1:30, of: 2}"]) == {
        "begin": "20:00", "n": 20, "m": {"at": "1:30", "of": 2},
    }  # fmt: skip


def test_a_number_that_begins_with_a_zero_is_no_octal_one(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "a: 010\nb: [08, 0, -0, 0.5, 00, -012]\n")
    assert read_recipe(path) == {"a": "010", "b": ["08", 0, 0, 0.5, "00", "-012"]}
    recipe, _ = load_recipe("quickstart", ["train.steps=010", "train.seed=09", "name=007"])
    assert recipe.train is not None and (recipe.train.steps, recipe.train.seed, recipe.name) == (10, 9, "007")
    assert apply_overrides({}, [override("a", "010"), override("b", 10)]) == {"a": "010", "b": 10}


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("", "holds nothing, expected a mapping"),
        ("a text", "holds a text, expected a mapping"),
        ("- a\n", "holds a list, expected a mapping"),
        ("base: quickstart\n\ttrain: 1\n", "not valid YAML, line 2: found character '\\t'"),
        ("a: [1\n", "not valid YAML, line 2: expected ',' or ']'"),
        ("base: nope\n", "wrong.yaml, base: no recipe 'nope'"),
        ("base: .\n", "wrong.yaml, base: recipe . is a folder"),
        ("base: quickstart\non: 1\n", "key true is no text, expected the name of a setting"),
        ("base: quickstart\na: &a [*a]\n", "an alias names what it is in"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_clear_error(tmp_path: Path, text: str, mark: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(str(write(tmp_path / "wrong.yaml", text)), [])
    assert mark in str(caught.value) and "unicode string" not in str(caught.value)


def test_what_stands_where_a_recipe_is_expected_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    write(tmp_path / "results" / "resolved-recipe.yaml", "base: quickstart\n")
    for name, mark in (
        (str(tmp_path / "results"), "results is a folder, expected a YAML file; name one in it, such as "),
        (str(tmp_path / "away" / "r.yaml"), r"no file .*r\.yaml, expected a YAML file"),
        ("train.steps=5", "'train.steps=5' stands where the recipe is expected"),
        ("a" * 300, "File name too long"),
    ):
        with pytest.raises(UsageError, match=mark):
            find_recipe(name)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"override 'train=.*given twice"):
        apply_overrides({}, ["train={steps: 1, steps: 2}"])
    path = write(tmp_path / "r.yaml", "train:\n  steps: 1\n  steps: 2\n")
    with pytest.raises(UsageError, match="given twice"):
        read_recipe(path)


def test_yaml_s_own_merging_of_mappings_works(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "a: {<<: &x {k: 1, m: 2}}\nb:\n  <<: *x\n  m: 3\n")
    assert read_recipe(path) == {"a": {"k": 1, "m": 2}, "b": {"k": 1, "m": 3}}


def test_recipes_may_name_the_place_of_their_datasets(tmp_path: Path) -> None:
    text = (
        "out: o\ndatasets: s3://b/${name}\ntrain: {run: r, steps: 1, stream: {views: [{location: '${datasets}/i'}]}}\n"
    )
    recipe, _ = load_recipe(str(write(tmp_path / "r.yaml", text)), [])
    assert recipe.train is not None and recipe.train.stream.views[0].location == "s3://b/r/i"


def test_texts_may_name_one_another_in_any_order(tmp_path: Path) -> None:
    text = "out: ${datasets}/out\ndatasets: ${data}/ds\ndata: raw\ntrain: {run: '${out}/run', steps: 1}\n"
    recipe, _ = load_recipe(str(write(tmp_path / "r.yaml", text)), [])
    data = Path("raw").absolute()
    assert (recipe.data, recipe.datasets, recipe.out) == (f"{data}", f"{data}/ds", f"{data}/ds/out")
    assert recipe.train is not None and recipe.train.run == f"{data}/ds/out/run"
    recipe, _ = load_recipe(str(tmp_path / "r.yaml"), ["datasets=s3://b/${name}", "out='file://${data}'"])
    assert (recipe.datasets, recipe.out) == ("s3://b/r", f"file://{data}")


@pytest.mark.parametrize("wrong", [["out=${data}", "data=${out}/x"], ["out=${out}/x"]])
def test_texts_that_name_one_another_in_a_circle_are_refused(tmp_path: Path, wrong: list[str]) -> None:
    path = write(tmp_path / "r.yaml", "train: {run: r, steps: 1}\n")
    with pytest.raises(UsageError, match=r"out: \$\{.*go round in a circle"):
        load_recipe(str(path), wrong)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UsageError, match="not valid YAML"):
        read_recipe(path)


def test_only_named_texts_are_substituted() -> None:
    assert substitute({"a": ["${out}/x", 3]}, {"out": "/o"}) == {"a": ["/o/x", 3]}


def test_a_recipe_is_found_by_name_but_not_outside_the_package() -> None:
    assert find_recipe("quickstart").name == "quickstart.yaml"
    with pytest.raises(UsageError, match="shipped recipe"):
        find_recipe("../quickstart")
