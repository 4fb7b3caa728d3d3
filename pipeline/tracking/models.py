"""Weights as versions of MLflow's registered models: safetensors and config as artifacts of the run that trained them.

A model is called as the recipe, a version is the end of one training. There is no MLmodel and no flavour: what would
load one executes code, and a folder of weights is loaded without MLflow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

DIGEST_TAG = "mcjepa.weights_digest"


def model_name(recipe: str) -> str:
    """A recipe's name as MLflow takes it for a model.

    >>> model_name("study/main")
    'study-main'
    """
    return re.sub(r"[/:]", "-", recipe.strip()) or "mcjepa"


def register_version(client: Any, run_id: str, name: str, artifact: str, tags: Mapping[str, str]) -> str:
    """Makes an artifact of a run a version of a model, once for these weights of this run; the version's number.

    Args:
        client: of the tracking location.
        run_id: the run that has the artifact.
        name: of the model, which is made if absent.
        artifact: folder of weights among the run's artifacts.
        tags: of the version; the sha256 of its weights among them.
    """
    try:
        client.create_registered_model(name)
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
            raise
    for known in client.search_model_versions(f"run_id = '{run_id}'"):
        if known.name == name and known.tags.get(DIGEST_TAG) == tags[DIGEST_TAG]:
            return str(known.version)
    source = f"{client.get_run(run_id).info.artifact_uri}/{artifact}"
    return str(client.create_model_version(name, source, run_id, dict(tags), await_creation_for=0).version)


def tag_versions(client: Any, digest: str, tags: Mapping[str, str]) -> None:
    """Sets tags of every version that has these weights."""
    for found in client.search_model_versions(f"tags.`{DIGEST_TAG}` = '{digest}'"):
        for name, value in tags.items():
            client.set_model_version_tag(found.name, found.version, name, value)
