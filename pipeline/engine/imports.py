"""DeepSpeed without what its import and torch's optimizers drag in: mlflow, muon's compiled kernels, torch's compiler.

Nothing is compiled unless a recipe asks for it, yet every optimizer of torch imports `torch._dynamo` when it is made
and when it steps, to say that its functions are not to be compiled, and DeepSpeed compiles those of an optimizer that
we do not use: 2.7 s of a processor, on every rank at every start. A light module stands in for `torch._dynamo`: it
knows the two calls that mean nothing where nothing is compiled; whatever else is asked of it loads the real one, which
takes its place.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

DYNAMO = "torch._dynamo"
_MUON = "deepspeed.runtime.zero.muon.muon_optimizer"


def import_deepspeed() -> Any:
    """The module `deepspeed`, at any time; the first import is the careful one."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # its autotuner would import it: seconds per rank
    try:
        import deepspeed
    finally:
        if hidden:
            del sys.modules["mlflow"]
    if os.environ["DS_ACCELERATOR"] == "cpu":  # compiled at every first start; a dictionary that is there is not probed
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    _import_muon()
    return deepspeed


def _import_muon() -> None:
    """Imports the optimizer that ZeRO compares ours with, its functions left as they are written."""
    from deepspeed.runtime import compiler

    if _MUON in sys.modules or not hasattr(compiler, "compile"):
        return
    compiling = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        importlib.import_module(_MUON)
    except ImportError:  # another release
        pass
    finally:
        compiler.compile = compiling


def defer_compiler() -> None:
    """Puts the stand-in where `torch._dynamo` is not loaded yet."""
    if DYNAMO not in sys.modules:
        sys.meta_path.insert(0, _FINDER)
        stand_in = _StandIn(DYNAMO)
        stand_in.__path__ = []  # its modules are found by the finder alone
        sys.modules[DYNAMO] = stand_in
        torch._dynamo = stand_in


def load_compiler() -> ModuleType:
    """The real `torch._dynamo`, in the stand-in's place."""
    if isinstance(sys.modules.get(DYNAMO), _StandIn):
        sys.meta_path.remove(_FINDER)
        del sys.modules[DYNAMO]
        del torch._dynamo
    return importlib.import_module(DYNAMO)


class _StandIn(ModuleType):
    """`torch._dynamo` where nothing is compiled."""

    @staticmethod
    def disable(function: Any = None, *_: Any, **__: Any) -> Any:
        """The function itself, or such a decorator."""
        return _StandIn.disable if function is None else function

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        """There is no graph."""

    def __getattr__(self, name: str) -> Any:
        return getattr(load_compiler(), name)


class _Finder(importlib.abc.MetaPathFinder):
    """Loads the real package before one of its modules is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(f"{DYNAMO}."):
            return None
        load_compiler()
        if (module := sys.modules.pop(name, None)) is None:
            return importlib.util.find_spec(name)
        return importlib.util.spec_from_loader(name, _Loaded(module))


class _Loaded(importlib.abc.Loader):
    """Gives a module that was loaded meanwhile instead of a second one."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


_FINDER = _Finder()
