"""Weights folders: an exact round trip, clear refusals of damage, and loading with torch and safetensors alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
import torch

from mcjepa.model.config import ModelConfig
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.model.pretrained import (
    CONFIG_NAME,
    LATER_KEYS,
    WEIGHTS_NAME,
    WeightsError,
    encoder_part,
    load,
    load_encoder,
    read_config,
    save,
    weights_digest,
)

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def saved(tiny_config: ModelConfig, tmp_path: Path) -> tuple[MCJEPA, Path]:
    """A model and the folder of its weights."""
    model = MCJEPA(tiny_config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    save(model.state_dict(), tiny_config, tmp_path / "weights", {"step": 7, "dataset_ids": {"clip": "9be"}})
    return model, tmp_path / "weights"


def test_a_round_trip_is_exact(saved: tuple[MCJEPA, Path]) -> None:
    model, folder = saved
    loaded = load(folder)
    assert not loaded.training and loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    frames = torch.rand(2, 1, 3, 64, 64)
    assert torch.equal(loaded.estimate_flow(*frames), model.eval().estimate_flow(*frames))


def test_lineage_and_digest_are_those_of_the_files(saved: tuple[MCJEPA, Path]) -> None:
    model, folder = saved
    config, lineage = read_config(folder)
    assert config == model.config and lineage == {"step": 7, "dataset_ids": {"clip": "9be"}}
    assert weights_digest(folder) == hashlib.sha256((folder / WEIGHTS_NAME).read_bytes()).hexdigest()
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]


def test_weights_can_be_read_by_whoever_can_read_their_configuration(saved: tuple[MCJEPA, Path]) -> None:
    assert (saved[1] / WEIGHTS_NAME).stat().st_mode == (saved[1] / CONFIG_NAME).stat().st_mode


def test_saving_again_replaces_the_weights_and_gives_the_same_digest(saved: tuple[MCJEPA, Path]) -> None:
    model, folder = saved
    first = weights_digest(folder)
    assert save(model.state_dict(), model.config, folder) == first
    with torch.no_grad():
        model.encoder.stem_fine.weight.add_(1)
    assert save(model.state_dict(), model.config, folder) == weights_digest(folder) != first
    assert read_config(folder)[1] == {}


def test_the_paper_s_configuration_survives_json(tmp_path: Path) -> None:
    save({}, ModelConfig(), tmp_path)
    assert read_config(tmp_path)[0] == ModelConfig()


def test_weights_in_channels_last_memory_come_back(saved: tuple[MCJEPA, Path], tmp_path: Path) -> None:
    model = saved[0]
    expected = model.encoder.stem_coarse.weight.clone()
    save(model.to(memory_format=torch.channels_last).state_dict(), model.config, tmp_path / "last")
    assert torch.equal(load(tmp_path / "last").encoder.stem_coarse.weight, expected)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_missing_file_is_named(saved: tuple[MCJEPA, Path], name: str) -> None:
    (saved[1] / name).unlink()
    with pytest.raises(WeightsError, match=name):
        load(saved[1])


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere"):
        load(tmp_path / "nowhere")


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("damage", [truncate, lambda _: b"", lambda _: b"\xff" * 99], ids=["cut", "empty", "other"])
@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_damaged_file_is_refused(saved: tuple[MCJEPA, Path], name: str, damage: Callable[[bytes], bytes]) -> None:
    path = saved[1] / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match=name):
        load(saved[1])


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"format": 1}', '{"format": 1, "model": [], "lineage": {}}'])
def test_another_json_is_not_a_configuration(saved: tuple[MCJEPA, Path], content: str) -> None:
    (saved[1] / CONFIG_NAME).write_text(content)
    with pytest.raises(WeightsError, match=CONFIG_NAME):
        load(saved[1])


def edit_record(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((folder / CONFIG_NAME).read_text())
    edit(record)
    (folder / CONFIG_NAME).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda record: record.update(format=2), "format 2"),
        (lambda record: record["model"].update(depth=3), "depth"),
        (lambda record: record["model"]["encoder"].update(patch_size=16), "patch_size"),
        (lambda record: record["model"]["encoder"].update(drop_path=7.0), "drop_path"),
        (lambda record: record["model"].pop("loss"), "loss"),
        (lambda record: record["model"]["flow"].pop("match"), "match"),
        (lambda record: record.pop("lineage"), "lineage"),
    ],
    ids=["format", "part", "field", "value", "no_part", "no_field", "no_lineage"],
)
def test_a_configuration_with_other_names_or_values_is_refused(
    saved: tuple[MCJEPA, Path], edit: Callable[[dict[str, Any]], object], named: str
) -> None:
    edit_record(saved[1], edit)
    with pytest.raises(WeightsError, match=named):
        load(saved[1])


def test_weights_from_before_a_key_was_known_are_those_of_its_default(saved: tuple[MCJEPA, Path]) -> None:
    model, folder = saved
    for part, kind in (("flow", "FlowConfig"), ("loss", "LossConfig")):
        for name in LATER_KEYS[kind]:
            edit_record(folder, lambda record, part=part, name=name: record["model"][part].pop(name))  # type: ignore[misc]
    assert read_config(folder)[0] == model.config


def test_weights_of_another_width_are_refused(saved: tuple[MCJEPA, Path]) -> None:
    edit_record(saved[1], lambda record: record["model"]["encoder"].update(stem_channels=[5, 6]))
    with pytest.raises(WeightsError, match="size mismatch"):
        load(saved[1])


def test_weights_with_a_tensor_too_few_are_refused(saved: tuple[MCJEPA, Path]) -> None:
    model, folder = saved
    state = model.state_dict()
    state.pop("encoder.stem_fine.bias")
    save(state, model.config, folder)
    with pytest.raises(WeightsError, match=r"stem_fine\.bias"):
        load(folder)


def test_the_encoder_is_read_from_a_whole_folder_and_from_one_that_holds_it_alone(
    saved: tuple[MCJEPA, Path], tmp_path: Path
) -> None:
    model, folder = saved
    save(encoder_part(model.state_dict()), model.config, tmp_path / "encoder")
    image = torch.rand(1, 3, 64, 64)
    expected = model.eval().forward_pyramid(image)
    for place in (folder, tmp_path / "encoder"):
        encoder = load_encoder(place)
        assert not encoder.training
        assert all(torch.equal(a, b) for a, b in zip(encoder(image), expected, strict=True))
    with pytest.raises(WeightsError, match="use load_encoder"):
        load(tmp_path / "encoder")


def test_every_field_of_the_configuration_is_in_the_file(saved: tuple[MCJEPA, Path]) -> None:
    record = json.loads((saved[1] / CONFIG_NAME).read_text())
    for part in dataclasses.fields(ModelConfig):
        section = getattr(saved[0].config, part.name)
        assert set(record["model"][part.name]) == {field.name for field in dataclasses.fields(section)}


def modules_beside_what_torch_and_safetensors_need() -> set[str]:
    """Import names of all installed packages that `pip install torch numpy safetensors` would not bring."""
    needed, queue = set(), ["torch", "numpy", "safetensors"]
    while queue:
        name = queue.pop()
        if name in needed:
            continue
        needed.add(name)
        try:
            lines = requires(name) or []
        except ModuleNotFoundError:
            continue  # a requirement of another platform
        wanted = [line for line in lines if "extra ==" not in line]
        queue += [line.split(";")[0].strip().split("[")[0] for line in map(_without_version, wanted)]
    normal = {name.lower().replace("_", "-") for name in needed}
    return {
        module
        for module, owners in packages_distributions().items()
        if not any(owner.lower().replace("_", "-") in normal for owner in owners)
    }


def _without_version(line: str) -> str:
    for mark in "<>=!~( ":
        line = line.split(mark)[0]
    return line


def test_weights_load_where_only_torch_numpy_and_safetensors_are(saved: tuple[MCJEPA, Path], tmp_path: Path) -> None:
    alone = tmp_path / "alone" / "mcjepa"
    shutil.copytree(REPOSITORY / "model", alone / "model", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "mcjepa" / "__init__.py", alone)
    blocked = sorted(modules_beside_what_torch_and_safetensors_need())
    assert {"pydantic", "ray", "yaml", "cv2", "mlflow"} <= set(blocked)
    assert not {"torch", "numpy", "safetensors", "typing_extensions"} & set(blocked)
    code = f"""if True:
        import sys
        class Blocker:
            names = frozenset({[name for name in blocked if name != "mcjepa"]!r})
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in self.names:
                    raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)
        sys.meta_path.insert(0, Blocker())
        sys.path.insert(0, {str(tmp_path / "alone")!r})
        import torch
        from mcjepa.model.pretrained import load
        model = load({str(saved[1])!r})
        assert model.__class__.__module__ == "mcjepa.model.mcjepa"
        assert sys.modules["mcjepa.model"].__file__.startswith({str(tmp_path)!r})
        flow = model.estimate_flow(torch.zeros(1, 3, 32, 48), torch.zeros(1, 3, 32, 48))
        print(tuple(flow.shape))
    """
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-1000:]
    assert answer.stdout.strip() == "(1, 2, 32, 48)"
