"""How exactly and how repeatably GPUs compute, for a whole process: training and evaluation say it alike."""

from __future__ import annotations

import os

import torch


def set_numerics(*, tf32: bool = False, cudnn_benchmark: bool = False, deterministic: bool = False) -> None:
    """Sets it; CPUs compute as ever. torch's own default lets convolutions of fp32 be computed in TF32.

    Args:
        tf32: products and convolutions of fp32 in TF32, whose mantissa has 10 bits.
        cudnn_benchmark: cuDNN tries its kernels on the first call of every shape and keeps the quickest.
        deterministic: the same numbers every time, as far as torch can; switches `cudnn_benchmark` off.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = cudnn_benchmark and not deterministic
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    if deterministic != torch.are_deterministic_algorithms_enabled():  # torch imports its compiler for it
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
