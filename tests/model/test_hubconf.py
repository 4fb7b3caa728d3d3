"""`torch.hub` on a checkout: the entry points, their weights and their needs."""

from __future__ import annotations

import ast
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hubconf
from mcjepa.model.config import ENCODER_SIZES, ModelConfig
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.model.pretrained import load, save

REPOSITORY = Path(__file__).resolve().parents[2]


def hub(call: str, folder: Path) -> str:
    """Evaluates `call` in a process of its own that finds our rooms in the checkout only, as a user's would."""
    code = f"""if True:
        import sys
        sys.path = [p for p in sys.path if p != {str(REPOSITORY)!r}]
        sys.meta_path = [f for f in sys.meta_path if "mcjepa" not in getattr(f, "__module__", "")]
        import torch
        def hub(entry, **options):
            return torch.hub.load({str(folder)!r}, entry, source="local", **options)
        print({call})
    """
    answer = subprocess.run([sys.executable, "-c", code], cwd=folder.parent, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-1500:]
    return answer.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What torch.hub makes of a repository's zip: links come out as files that hold the name of their target."""
    archive = tmp_path / "repository.zip"
    with zipfile.ZipFile(archive, "w") as written:
        for path in [*(REPOSITORY / "model").rglob("*.py"), REPOSITORY / "hubconf.py", REPOSITORY / "pyproject.toml"]:
            written.write(path, path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "mcjepa").iterdir():
            if path.is_symlink():
                link = zipfile.ZipInfo(f"mcjepa/{path.name}")
                link.external_attr = (stat.S_IFLNK | 0o777) << 16
                written.writestr(link, str(path.readlink()))
            elif path.is_file():
                written.write(path, f"mcjepa/{path.name}")
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "checkout")
    assert (tmp_path / "checkout" / "mcjepa" / "model").read_text(encoding="utf-8") == "../model"
    return tmp_path / "checkout"


def test_the_entry_points_are_the_sizes_and_the_two_loaders_each_with_a_help_text() -> None:
    offered = {n: f for n, f in vars(hubconf).items() if callable(f) and not n.startswith("_")}  # torch.hub.list's rule
    assert sorted(offered) == sorted(["mcjepa", "mcjepa_encoder", *(f"mcjepa_{size}" for size in ENCODER_SIZES)])
    assert all(f.__doc__ for f in offered.values())


@pytest.mark.slow
def test_tiny_is_the_papers_encoder_in_evaluation_mode(checkout: Path) -> None:
    words = hub(
        "(lambda m: (sum(p.numel() for p in m.encoder.parameters()), m.training, m.encoder.channels))"
        "(hub('mcjepa_tiny'))",
        checkout,
    )
    assert words.endswith("False, (48, 48, 96, 192, 384, 768))")
    assert 27.85e6 < int(words.split("(")[1].split(",")[0]) < 27.95e6


def test_weights_of_a_folder_are_those_that_were_saved(
    checkout: Path, tmp_path: Path, tiny_config: ModelConfig
) -> None:
    save(MCJEPA(tiny_config).state_dict(), tiny_config, tmp_path / "weights")
    image = torch.rand(1, 3, 64, 64)
    save_file({"image": image}, str(tmp_path / "image.safetensors"))
    expected = load(tmp_path / "weights").forward_embedding(image)
    read = f"__import__('safetensors.torch').torch.load_file({str(tmp_path / 'image.safetensors')!r})['image']"
    path = str(tmp_path / "weights")
    for entry, embedding in [("mcjepa", "forward_embedding({})"), ("mcjepa_encoder", "forward({})[-1].mean((2, 3))")]:
        found = hub(f"hub({entry!r}, path={path!r}).{embedding.format(read)}.tolist()", checkout)
        assert torch.allclose(torch.tensor(ast.literal_eval(found)), expected, atol=1e-6)
