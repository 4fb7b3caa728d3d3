"""What a DeepSpeed engine holds of each parameter: its fp32 weights and AdamW's two moments, wherever they lie.

ZeRO cuts parameters into flat partitions, another cut in every stage and world size. Seen as pieces (name of the
parameter, offset within it, values) they are the same thing in all of them; checkpoints are made of such pieces.

    ZeRO 0      parameters and moments whole, on every rank
    ZeRO 1, 2   a rank has a stretch of each group's flat fp32 copy, and the moments of that stretch
    ZeRO 3      a rank has an equal part of every parameter, and the moments of that part
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mcjepa.pipeline.errors import UsageError

WEIGHT, MOMENT_1, MOMENT_2, BUFFER = "weight", "exp_avg", "exp_avg_sq", "buffer"
MOMENTS = (MOMENT_1, MOMENT_2)


@dataclass(frozen=True)
class Piece:
    """A stretch of one parameter's weights or moments; a view of the engine's own memory."""

    name: str
    """Of the parameter in the model."""
    kind: str
    """`weight`, `exp_avg`, `exp_avg_sq`, or `buffer`."""
    offset: int
    """Elements of the flattened parameter before it."""
    values: Tensor
    """(n,), fp32 (buffers: as they are)."""


def held_pieces(engine: Any) -> list[Piece]:
    """Every piece that this rank holds and trains with, in a fixed order."""
    _ensure_moments(engine)
    stage = engine.zero_optimization_stage()
    read = _read_replicated if stage == 0 else _read_flat_groups if stage < 3 else _read_partitions
    return list(read(engine))


def own_pieces(engine: Any, rank: int, world_size: int) -> list[Piece]:
    """The pieces that this rank saves: what it holds, and of what every rank holds its share; buffers by rank 0."""
    pieces = held_pieces(engine)
    if engine.zero_optimization_stage() == 0:
        pieces = share_pieces(pieces, rank, world_size)
    return pieces + (list(buffer_pieces(engine)) if rank == 0 else [])


def share_pieces(pieces: Sequence[Piece], rank: int, world_size: int) -> list[Piece]:
    """A rank's part of pieces that all ranks hold: as many elements as the others' parts, to within one."""
    total, start = sum(piece.values.numel() for piece in pieces), 0
    low, high = total * rank // world_size, total * (rank + 1) // world_size
    shared = []
    for piece in pieces:
        begin, end = max(low - start, 0), min(high - start, piece.values.numel())
        if begin < end:
            shared.append(replace(piece, offset=piece.offset + begin, values=piece.values[begin:end]))
        start += piece.values.numel()
    return shared


def buffer_pieces(engine: Any) -> Iterator[Piece]:
    """The model's buffers (running statistics), the same on every rank."""
    for name, values in engine.module.named_buffers():
        yield Piece(name, BUFFER, 0, values.data.view(-1))


def parameter_shapes(engine: Any) -> dict[str, list[int]]:
    """Whole shape of every parameter and buffer of the model."""
    tensors = [*engine.module.named_parameters(), *engine.module.named_buffers()]
    return {name: list(getattr(tensor, "ds_shape", tensor.shape)) for name, tensor in tensors}


def refresh_parameters(engine: Any) -> None:
    """Makes the parameters that the forward reads those of the fp32 pieces; all ranks call it after a load."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        optimizer.checkpoint_event_prologue()
        for number, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
            optimizer.fp16_partitioned_groups_flat[number].data.copy_(flat.data)
            optimizer._unflatten_partitioned_parameters(number)
        optimizer.checkpoint_event_epilogue()  # small parameters that every rank keeps whole are gathered again


def updates_done(engine: Any) -> dict[str, float]:
    """AdamW's count of updates, by parameter group; 0 for groups that have stood still until now."""
    return {
        group["name"]: 0.0 if group.get("idle") else float(next((state["step"] for state in states if state), 0.0))
        for group, states in _group_states(engine)
    }


def set_updates_done(engine: Any, updates: Mapping[str, float]) -> None:
    """Sets AdamW's count of updates; groups that are not named are left."""
    _ensure_moments(engine)
    for group, states in _group_states(engine):
        for state in states if group["name"] in updates else ():
            state["step"].fill_(updates[group["name"]])


def reset_updates(engine: Any, branches: Collection[str]) -> None:
    """Sets AdamW's count of updates of these branches' groups to 0, where there is one already."""
    for group, states in _group_states(engine):
        if str(group["name"]).split("-")[0] in branches:
            for state in states:
                if state:
                    state["step"].zero_()


def loss_scale_state(engine: Any) -> dict[str, float]:
    """The state of fp16's loss scaling, empty in other precisions."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if not engine.fp16_enabled() or scaler is None:
        return {}
    return {k: v for k, v in vars(scaler).items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def set_loss_scale_state(engine: Any, state: Mapping[str, float]) -> None:
    """Puts it back; nothing happens in other precisions."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if engine.fp16_enabled() and scaler is not None:
        for name, value in state.items():
            setattr(scaler, name, value)


def _flat_tensors(engine: Any) -> list[list[Tensor]]:
    """The tensors that AdamW steps, by parameter group."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        return [list(group["params"]) for group in optimizer.param_groups]
    if stage < 3:
        return [[flat] for flat in optimizer.single_partition_of_fp32_groups]
    groups: list[list[Tensor]] = [[] for _ in optimizer.param_groups]
    for number, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
        groups[optimizer.sub_group_to_group_id[number]].append(flat)
    return groups


def _group_states(engine: Any) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Every parameter group with the AdamW states of its tensors; a state is empty before its first update."""
    state = _adamw(engine).state
    for group, tensors in zip(engine.optimizer.param_groups, _flat_tensors(engine), strict=True):
        yield group, [state.get(tensor, {}) for tensor in tensors]


def _adamw(engine: Any) -> Any:
    return engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer


def _ensure_moments(engine: Any) -> None:
    """Makes the state that AdamW would make at its first update, so that it can be read and filled before."""
    if getattr(engine.optimizer, "swap_optimizer", False):
        raise UsageError(
            "the optimizer's state is offloaded to NVMe, expected memory: checkpoints cannot be made of it; use "
            "train.engine.offload"
        )
    state = _adamw(engine).state
    for tensors in _flat_tensors(engine):
        for tensor in tensors:
            if tensor.numel() and not state.get(tensor):
                state[tensor] = {"step": torch.zeros((), device=tensor.device)} | {
                    kind: torch.zeros_like(tensor.data) for kind in MOMENTS
                }


def _read_replicated(engine: Any) -> Iterator[Piece]:
    state = engine.optimizer.state
    for name, parameter in engine.module.named_parameters():
        yield Piece(name, WEIGHT, 0, parameter.data.view(-1))
        for kind in MOMENTS if parameter in state else ():
            yield Piece(name, kind, 0, state[parameter][kind].view(-1))


def _read_flat_groups(engine: Any) -> Iterator[Piece]:
    optimizer = engine.optimizer
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    for parameters, flat in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
        held = {WEIGHT: flat.data} | {kind: optimizer.optimizer.state[flat][kind] for kind in MOMENTS}
        for parameter in parameters:
            stretch = parameter._hp_mapping
            if stretch is None:  # it lies in other ranks' partitions
                continue
            source = stretch.get_hp_fragment_address()
            for kind, values in held.items():
                start = stretch.lp_fragment_address.start
                yield Piece(names[id(parameter)], kind, start, values.narrow(0, source.start, source.numel))


def _read_partitions(engine: Any) -> Iterator[Piece]:
    optimizer = engine.optimizer
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    for parameters, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        if not flat.numel():
            continue
        held = {WEIGHT: flat.data} | {kind: optimizer.optimizer.state[flat][kind] for kind in MOMENTS}
        for parameter in parameters:
            _, place, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = length * torch.distributed.get_rank()
            length = min(length, parameter.ds_numel - start)  # the last ranks' parts may be padding
            if length > 0:
                for kind, values in held.items():
                    yield Piece(names[id(parameter)], kind, start, values.narrow(0, place, length))
