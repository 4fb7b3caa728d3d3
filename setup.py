"""What pyproject.toml cannot say: README.md as a package index shows it, where no file lies beside the page.

MCJEPA_REPOSITORY in the environment is the repository's address (CI knows it): relative links and pictures become
absolute ones below it, at the tag of this version, and it is among the project's addresses. Without it they become
plain text.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
RELATIVE_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")


def readme_of_index(text: str, repository: str, version: str) -> str:
    """README.md without a relative link."""

    def absolute(match: re.Match[str]) -> str:
        picture, label, path = match.groups()
        if repository:
            return f"{picture}[{label}]({repository}/{'raw' if picture else 'blob'}/v{version}/{path})"
        return "" if picture else f"{label} ({path})"

    return RELATIVE_LINK.sub(absolute, text)


if __name__ == "__main__":
    repository = os.environ.get("MCJEPA_REPOSITORY", "").rstrip("/")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    addresses = {"Paper": "https://arxiv.org/abs/2307.12698"}
    if repository:
        addresses |= {
            "Repository": repository,
            "Issues": f"{repository}/issues",
            "Changelog": f"{repository}/blob/v{version}/CHANGELOG.md",
            "Documentation": f"{repository}/tree/v{version}/docs",
        }
    setup(
        long_description=readme_of_index((ROOT / "README.md").read_text(encoding="utf-8"), repository, version),
        long_description_content_type="text/markdown",
        project_urls=addresses,
    )
