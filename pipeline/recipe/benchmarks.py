"""Settings of one benchmark from the words of a command line, where no recipe is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mcjepa.data_prep.errors import DataError, nearest_name
from mcjepa.evals.classification.settings import ClassifyConfig
from mcjepa.evals.finetune.settings import FinetuneConfig
from mcjepa.evals.flow.settings import BASELINES, FlowEvalConfig
from mcjepa.evals.infer.settings import PRODUCTS, InferConfig
from mcjepa.evals.measures import SET_NAMES
from mcjepa.evals.probe.settings import PROTOCOL_OF_SET, PROTOCOLS, ProbeConfig, protocol_settings
from mcjepa.evals.settings import EvalConfig
from mcjepa.evals.vos.settings import PRESETS, VosConfig
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.files import apply_overrides
from mcjepa.pipeline.recipe.validation import validate

SHORT_NAMES = {"voc": "voc2012", **SET_NAMES}
"""Of data sets."""
GENERAL = ("device", "threads")
"""Settings of all evaluations: every benchmark takes them as options, and as key=value like the others."""


def flow_set_names(text: str, for_submission: bool) -> list[str]:
    """The flow sets that a list with commas names.

    Raises:
        UsageError: one is unknown or cannot be scored, or there is not the right number of them.
    """
    from mcjepa.data_prep.corpora import FLOW_SCANS, FLOW_TEST_SETS

    known = sorted(FLOW_TEST_SETS if for_submission else FLOW_SCANS)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            if not for_submission and name in FLOW_TEST_SETS:
                raise UsageError(
                    f"--set {name} has no ground truth to score; pass --submission FILE.zip for its archive"
                )
            raise UsageError(f"--set has no flow set {name!r}: {nearest_name(name, known)}")
    if not names or len(set(names)) < len(names):
        raise UsageError(f"--set is {text!r}; expected names, each once, with commas between them; correct it")
    if for_submission and len(names) > 1:
        raise UsageError(f"--submission makes the archive of one set, --set names {len(names)}; name one")
    return names


def _known_set(name: str, known: Iterable[str]) -> str:
    """The whole name of a data set.

    Raises:
        UsageError: it is none of those that a benchmark knows.
    """
    name, names = SHORT_NAMES.get(name, name), sorted(known)
    if name not in names:
        raise UsageError(f"--set has no data set {name!r}: {nearest_name(name, names)}")
    return name


def _with_general(kind: str, part: Any, content: dict[str, Any], general: dict[str, Any]) -> EvalConfig:
    """The settings of one benchmark, with those of all evaluations: options, which key=value words override.

    Args:
        kind: field of EvalConfig.
        part: its class.
        content: its settings, and what key=value words say of the general ones.
        general: options: device, threads, seed.
    """
    general = general | {name: content.pop(name) for name in GENERAL if name in content}
    return validate(EvalConfig, {kind: validate(part, content, f"eval {kind}"), **general}, f"eval {kind}")


def flow_settings(
    names: Sequence[str], root: str, baselines: str | None, overrides: Sequence[str], general: dict[str, Any]
) -> EvalConfig:
    """Settings of `eval flow`.

    Args:
        names: flow sets.
        root: where their files are.
        baselines: names with commas between them, or `all`; None: the usual ones.
        overrides: key=value.
        general: settings of all evaluations.
    """
    content = apply_overrides({}, overrides)
    content["sets"] = dict.fromkeys(names, root)
    if baselines is not None:
        chosen = [name for name in baselines.split(",") if name]
        content["baselines"] = list(BASELINES) if chosen == ["all"] else chosen
    return _with_general("flow", FlowEvalConfig, content, general)


def probe_settings(
    data_set: str,
    root: str,
    protocol: str | None,
    head: str | None,
    overrides: Sequence[str],
    general: dict[str, Any],
) -> EvalConfig:
    """Settings of `eval probe`: those of a protocol, by default the set's own, overrides of it, and `general` ones.

    Raises:
        UsageError: an unknown set or protocol, or one with another head.
    """
    from mcjepa.data_prep.corpora import SEGMENTATION_SETS

    data_set = _known_set(data_set, SEGMENTATION_SETS)
    usual = "knn" if head == "knn" else PROTOCOL_OF_SET.get(data_set, "cached")
    name = protocol or usual
    try:
        content = protocol_settings(name)
    except DataError as error:
        raise UsageError(f"--protocol {name}: {error}") from error
    if head and head != content["head"]:
        fitting = ", ".join(name for name, settings in PROTOCOLS.items() if settings["head"] == head)
        raise UsageError(f"--head {head} with --protocol {name}, expected one of its own: {fitting}")
    content = apply_overrides(content, overrides) | {"set": data_set, "root": root}
    return _with_general("probe", ProbeConfig, content, general)


def vos_settings(
    data_set: str,
    root: str,
    preset: str,
    outputs: Sequence[str],
    overrides: Sequence[str],
    general: dict[str, Any],
) -> EvalConfig:
    """Settings of `eval vos`; `outputs` are some of `masks` and `overlays`.

    Raises:
        UsageError: an unknown set or preset.
    """
    from mcjepa.data_prep.corpora import VOS_SETS

    data_set = _known_set(data_set, VOS_SETS)
    if preset not in PRESETS:
        raise UsageError(f"--preset is {preset!r}: {nearest_name(preset, PRESETS)}")
    content = apply_overrides(dict(PRESETS[preset]), overrides)
    content |= {"set": data_set, "root": root, **dict.fromkeys(outputs, True)}
    return _with_general("vos", VosConfig, content, general)


def finetune_settings(data_set: str, root: str, overrides: Sequence[str], general: dict[str, Any]) -> EvalConfig:
    """Settings of `eval finetune`.

    Raises:
        UsageError: an unknown set.
    """
    from mcjepa.data_prep.corpora import SEGMENTATION_SETS

    content = apply_overrides({}, overrides) | {"set": _known_set(data_set, SEGMENTATION_SETS), "root": root}
    return _with_general("finetune", FinetuneConfig, content, general)


def classify_settings(data_set: str, root: str, overrides: Sequence[str], general: dict[str, Any]) -> EvalConfig:
    """Settings of `eval classify`."""
    content = apply_overrides({}, overrides) | {"set": data_set, "root": root}
    return _with_general("classify", ClassifyConfig, content, general)


def infer_settings(products: str, content: dict[str, Any]) -> InferConfig:
    """Settings of `infer`.

    Args:
        products: what is written, with commas between the names.
        content: all other settings.

    Raises:
        UsageError: an unknown product.
    """
    names = [name.strip() for name in products.split(",") if name.strip()]
    for name in names:
        if name not in PRODUCTS:
            raise UsageError(f"--write has {name!r}: {nearest_name(name, PRODUCTS)}")
    return validate(InferConfig, {"write": names, **content}, "infer")
