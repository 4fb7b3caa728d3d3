"""The joint model: one forward of (pairs, views) to one scalar and its terms (method section 2).

    L = weights . (regression, reconstruction, smoothness, cycle, vc, self-supervision)  on pairs
        + weight . content  on views

Either batch may be absent. The weights come with every call, so schedules are data of the recipe and not code here.
One forward of one module gives one scalar: sharded engines (ZeRO-3) allow no second forward before the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcjepa.model.config import ModelConfig
from mcjepa.model.encoder import Encoder, encode_streams
from mcjepa.model.expander import Expander
from mcjepa.model.flow_estimator import FlowEstimator
from mcjepa.model.inputs import require_alike, require_images, require_sides
from mcjepa.model.losses.cycle import cycle_errors
from mcjepa.model.losses.reconstruction import reconstruction_loss
from mcjepa.model.losses.regression import channel_variances, regression_errors
from mcjepa.model.losses.self_supervision import cut, draw_windows, flow_distance, jitter
from mcjepa.model.losses.smoothness import smoothness_loss
from mcjepa.model.losses.variance_covariance import variance_covariance_loss
from mcjepa.model.losses.vicreg import vicreg_terms
from mcjepa.model.reduction import Summing, alongside, masked_mean, run_summing, world_size
from mcjepa.model.warp import inside, pool, reached, reconcile, trust_if_mostly_visible, upsample_flow, visible, warp

PAIR_TERMS = ("regression", "reconstruction", "smoothness", "cycle", "vc", "self_supervision")
TERMS = (*PAIR_TERMS, "content")

Look = Callable[[str, list[Tensor]], list[Tensor]]
"""Sees the pyramid of a stream (`pairs`, `views`, `student`) and gives that which is used."""


@dataclass(frozen=True)
class JointLoss:
    """What one forward gives: the scalar to minimise, every term unweighted, and meters of the batch (detached)."""

    loss: Tensor
    terms: dict[str, Tensor]
    meters: dict[str, Tensor]


def swap_halves(x: Tensor) -> Tensor:
    """Exchanges the first and second half of the batch: turns [a; b] into [b; a]."""
    first, second = x.chunk(2)
    return torch.cat((second, first))


def _inner(x: Tensor, margin: int) -> Tensor:
    """The map without `margin` cells on every side."""
    return x[..., margin : x.shape[-2] - margin, margin : x.shape[-1] - margin] if margin else x


def _pair_terms_of(found: dict[str, Any]) -> dict[str, Tensor]:
    """All terms on pairs by name, and the two parts of vc."""
    variance, covariance = found.pop("vc")
    terms: dict[str, Tensor] = {**found.pop("flow"), **found}
    return {**terms, "vc": variance + covariance, "vc_variance": variance, "vc_covariance": covariance}


class MCJEPA(nn.Module):
    """Shared encoder, flow estimator and expander with the joint objective.

    Example:
        >>> from mcjepa.model.config import EncoderConfig, ExpanderConfig, FlowConfig, ModelConfig
        >>> config = ModelConfig(
        ...     encoder=EncoderConfig(stem_channels=(4, 4), stage_channels=(8, 8, 8, 8), depths=(1, 1, 1, 1)),
        ...     flow=FlowConfig(width_factor=0.1), expander=ExpanderConfig(widths=(16, 16)))
        >>> model = MCJEPA(config)
        >>> frames = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
        >>> out = model(frames, None, {"reconstruction": 1.0})
        >>> bool(out.loss.isfinite())
        True
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        self.flow_estimator = FlowEstimator(config.flow, self.encoder.channels, self.encoder.strides)
        self.expander = Expander(config.expander, self.encoder.channels[-1])
        self.look: Look | None = None
        """Shown every pyramid of `forward`."""

    def forward_pyramid(self, image_B3HW: Tensor) -> list[Tensor]:
        """Six maps of strides 2 to 64, finest first, of RGB images in [0, 1]; see `Encoder.forward`.

        Raises:
            InputError: these are no such images (`model.inputs`).
        """
        require_images(image_B3HW, "images", training=self.training)
        levels: list[Tensor] = self.encoder(image_B3HW)
        return levels

    def forward_embedding(self, image_B3HW: Tensor) -> Tensor:
        """The content embedding: mean of the coarsest map, (B, D)."""
        return self.forward_pyramid(image_B3HW)[-1].mean((2, 3))

    def estimate_flow(self, frame0_B3HW: Tensor, frame1_B3HW: Tensor) -> Tensor:
        """Flow from frame 0 to frame 1 (the convention of `model.warp`).

        Args:
            frame0_B3HW: RGB in [0, 1], any size.
            frame1_B3HW: same shape.

        Returns:
            (B, 2, H, W), fp32: u to the right and v down, in pixels. In evaluation mode with `model.flow.reconcile`
            it has no gradient.

        Raises:
            InputError: the frames are no images or do not match up.
        """
        require_alike(frame0_B3HW, frame1_B3HW, ("frame 0", "frame 1"), training=self.training)
        frames, settings = torch.cat((frame0_B3HW, frame1_B3HW)), self.config.flow
        pyramid: list[Tensor] = self.encoder(frames)
        size = (frames.shape[-2], frames.shape[-1])
        if settings.reconcile and not self.training:
            return self._reconciled_flow(frames, pyramid)
        first, second = ([x.chunk(2)[i] for x in pyramid] for i in (0, 1))
        flow: Tensor = self.flow_estimator(first, second)[0]
        return upsample_flow(flow, size, settings.finest_stride)

    def _reconciled_flow(self, frames: Tensor, pyramid: list[Tensor]) -> Tensor:
        """Flow from the first half of the frames to the second, by the flow in both directions."""
        settings, used = self.config.flow, range(self.flow_estimator.first, self.flow_estimator.last + 1)
        others = [swap_halves(x) if level in used else x for level, x in enumerate(pyramid)]  # the rest is not read
        size, stride = (frames.shape[-2], frames.shape[-1]), settings.finest_stride
        cells = self.flow_estimator(pyramid, others)[0]
        for _ in range(1, settings.reconcile):
            flow = upsample_flow(cells, size, stride)
            known = pool(reconcile(flow, swap_halves(flow), frames), stride) / stride
            cells = self.flow_estimator.decode_finest(pyramid, others, known)
        there, back = upsample_flow(cells, size, stride).chunk(2)
        return reconcile(there, back, frames.chunk(2)[0])

    def forward(
        self,
        pairs: tuple[Tensor, Tensor] | None,
        views: tuple[Tensor, Tensor] | None,
        weights: Mapping[str, float],
    ) -> JointLoss:
        """The joint loss.

        Args:
            pairs: frames t and t + 1, each (B, 3, H, W), RGB in [0, 1]; or None. All ranks or none have None; where
                there are more ranks than pairs, B is 0 on some.
            views: two views of the same images, each (N, 3, H', W'), RGB in [0, 1]; or None.
            weights: weight of each term named in `TERMS`; one that is missing or 0 is not computed where that
                saves work. `masks` (1 where it is missing): how much the masks of occluded pixels count; at 0 only
                pixels that leave the picture are left out.

        Returns:
            The weighted sum, all unweighted terms that were computed, and meters.

        Raises:
            InputError: a batch is no stack of images, its halves do not match up, pairs are smaller than a cell of
                the coarsest decoded level, or (on CPUs) a pixel is not finite. `model.inputs.all_finite` asks before.
        """
        terms: dict[str, Tensor] = {}
        meters: dict[str, Tensor] = {}
        loss = next(self.parameters()).new_zeros((), dtype=torch.float32)
        branches: dict[str, Summing[dict[str, Tensor]]] = {}
        if pairs is not None and not any(weights.get(name, 0.0) for name in PAIR_TERMS):
            pairs = None
        if views is not None and not weights.get("content", 0.0):
            views = None
        images = self._images(pairs, views)
        pyramids = self._encode(images)
        if pairs is not None:
            branches["pairs"] = self._pair_terms(pairs, images["pairs"], pyramids["pairs"], weights, meters)
        if views is not None:
            branches["views"] = self._content_terms(pyramids["views"], meters)
        with torch.autocast(loss.device.type, enabled=False):
            for found in run_summing(alongside(branches)).values():
                terms.update(found)
        for name in TERMS:  # not 0 * term: that is NaN where the term is
            if name in terms and weights.get(name, 0.0):
                loss = loss + weights[name] * terms[name]
        return JointLoss(loss, {name: value.detach() for name, value in terms.items()}, meters)

    def _images(self, pairs: tuple[Tensor, Tensor] | None, views: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
        """What is encoded, by stream: first frames and second ones, without their margin, and first views and second.

        Raises:
            InputError: as `forward`.
        """
        images: dict[str, Tensor] = {}
        if pairs is not None:
            names, spread_out = ("frames t", "frames t + 1"), world_size() > 1
            require_alike(*pairs, names, training=self.training, may_be_none=spread_out)
            images["pairs"] = _inner(torch.cat(pairs), self.config.loss.photometric_margin)
            least = self.config.flow.coarsest_stride
            require_sides(images["pairs"], "frame pairs", least, "model.flow.coarsest_stride")
        if views is not None:
            require_alike(*views, ("the first views", "the second views"), training=self.training)
            images["views"] = torch.cat(views)
        return images

    def _encode(self, images: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        pyramids = encode_streams(self.encoder, images)
        return {stream: self.look(stream, levels) for stream, levels in pyramids.items()} if self.look else pyramids

    def _content_terms(self, pyramid: list[Tensor], meters: dict[str, Tensor]) -> Summing[dict[str, Tensor]]:
        embedding = pyramid[-1].mean((2, 3))
        expanded = self.expander(embedding)
        meters["embedding_std"] = embedding.detach().float().std(0).mean()
        form = self.config.loss

        def weighted(parts: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
            invariance, variance, covariance = parts
            content = (
                form.vicreg_invariance * invariance
                + form.vicreg_variance * variance
                + form.vicreg_covariance * covariance
            )
            return {"content": content, "invariance": invariance, "variance": variance, "covariance": covariance}

        return vicreg_terms.begin(*expanded.chunk(2)).then(weighted)

    def _pair_terms(
        self,
        pairs: tuple[Tensor, Tensor],
        images: Tensor,
        pyramid: list[Tensor],
        weights: Mapping[str, float],
        meters: dict[str, Tensor],
    ) -> Summing[dict[str, Tensor]]:
        """Both directions at once: the batch is [a -> b; b -> a], `swap_halves` gives the other end.

        `images` are the pairs' frames without their margin.
        """
        form = self.config.loss
        whole = torch.cat(pairs) if form.photometric_margin else images
        others = [swap_halves(x) for x in pyramid]
        flows = self.flow_estimator(pyramid, others)
        with torch.autocast(images.device.type, enabled=False):
            # Once, not in every warp and difference of the losses.
            pyramid, others = ([x.float() for x in maps] for maps in (pyramid, others))
            full = upsample_flow(flows[0], (images.shape[-2], images.shape[-1]), self.config.flow.finest_stride)
            seen = self._visible(full, flows[0])
            meters["visible_share"] = seen.mean()
            meters["flow_px"] = full.detach().square().sum(1).sqrt().mean()
            losses = {
                "flow": self._flow_terms(whole, pyramid, others, flows, full, seen, weights),
                "smoothness": smoothness_loss.begin(full, images, form.smoothness_edge, form.smoothness_order),
                "vc": variance_covariance_loss.begin(
                    pyramid, form.vc_variance[::-1], form.vc_covariance[::-1], form.vc_samples
                ),
            }
        if weights.get("self_supervision", 0.0):
            losses["self_supervision"] = self._self_supervision(images, full.detach(), seen)
        return alongside(losses).then(_pair_terms_of)

    def _flow_terms(
        self,
        whole: Tensor,
        pyramid: list[Tensor],
        others: list[Tensor],
        flows: list[Tensor],
        full: Tensor,
        seen: Tensor,
        weights: Mapping[str, float],
    ) -> Summing[dict[str, Tensor]]:
        """Reconstruction, regression and cycle: the terms that leave out what is not visible."""
        form, share = self.config.loss, weights.get("masks", 1.0)
        mask = seen if share == 1.0 else torch.lerp(inside(full).float(), seen, share)
        mask = trust_if_mostly_visible(mask, form.min_visible_share)
        masks = [pool(mask, stride) for stride in self.encoder.strides]
        level_flows = self._flow_of_every_level(pyramid, flows)
        if form.photometric_margin:  # what leaves the crop alone is seen there
            mask = torch.maximum(mask, (inside(full, form.photometric_margin) & ~inside(full)).float())
        losses = {"reconstruction": self._reconstruction(whole, flows, mask)}
        if not (weights.get("regression", 0.0) or weights.get("cycle", 0.0)):
            return alongside(losses)
        features = self._feature_terms(pyramid, others, level_flows, masks, weights)
        both = alongside({**losses, "features": features})
        return both.then(lambda found: {"reconstruction": found["reconstruction"], **found["features"]})

    def _self_supervision(self, images: Tensor, teacher: Tensor, seen: Tensor) -> Summing[Tensor]:
        """The student's flow against the teacher's, in both directions.

        Args:
            images: [a; b], (2 B, 3, H, W).
            teacher: the flows a -> b and b -> a of the whole pictures, (2 B, 2, H, W), without gradient.
            seen: what is visible of them, (2 B, 1, H, W).
        """
        form, finest = self.config.loss, self.config.flow.finest_stride
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            pairs, size = images.shape[0] // 2, (images.shape[-2], images.shape[-1])
            grid, zoom = (torch.cat((x, x)) for x in draw_windows(pairs, size, form, images.device))
            student, teacher, seen = cut(images.float(), grid), zoom * cut(teacher, grid), cut(seen, grid)
            if form.student_jitter:
                factors = 1 + form.student_jitter * (2 * torch.rand(3, pairs, device=images.device) - 1)
                student = jitter(student, factors.repeat(1, 2))
        require_sides(student, "the student's pictures", self.config.flow.coarsest_stride, "model.flow.coarsest_stride")
        pyramid = self._encode({"student": student.to(images.dtype)})["student"]
        flows = self.flow_estimator(pyramid, [swap_halves(x) for x in pyramid])
        guess = upsample_flow(flows[0], (student.shape[-2], student.shape[-1]), finest)
        distance = flow_distance(guess, teacher, form.student_exponent)
        if form.student_where == "visible":
            return masked_mean.begin(distance, seen)
        lost = seen * (1 - self._visible(guess, flows[0]))
        return masked_mean.begin(distance * lost, torch.ones_like(lost))

    def _visible(self, full: Tensor, flow: Tensor) -> Tensor:
        """The mask (B, 1, H, W) of pixels with a correspondence, by the configured test.

        Cells of the finest decoded level are what a range map can tell apart, so it is made there.
        """
        form, finest = self.config.loss, self.config.flow.finest_stride
        if form.occlusion == "range-map":
            mask = reached(flow, swap_halves(flow), form.occlusion_range)
            return F.interpolate(mask, scale_factor=finest)[..., : full.shape[-2], : full.shape[-1]]
        return visible(full, swap_halves(full), form.occlusion_scale, form.occlusion_offset)

    def _feature_terms(
        self,
        pyramid: list[Tensor],
        others: list[Tensor],
        level_flows: list[Tensor],
        masks: list[Tensor],
        weights: Mapping[str, float],
    ) -> Summing[dict[str, Tensor]]:
        """Regression and cycle of the levels that count; both need the other frame's features, warped once."""
        form = self.config.loss
        coefficients = form.feature_levels[::-1]
        used = [level for level, coefficient in enumerate(coefficients) if coefficient]
        maps, flows, seen = ([x[level] for level in used] for x in (pyramid, level_flows, masks))
        moved = [warp(others[level], level_flows[level]) for level in used]
        targets = [x.detach() for x in maps] if form.feature_target == "fixed" else maps
        errors: dict[str, Summing[Tensor]] = {}
        if weights.get("regression", 0.0):
            errors["regression"] = regression_errors.begin(targets, moved, seen)
        if weights.get("cycle", 0.0):
            # `moved` of the other direction is this frame's features as the other frame sees them.
            there, back = ([swap_halves(x) for x in halves] for halves in (moved, flows))
            errors["cycle"] = cycle_errors.begin(targets, flows, back, seen, there)
        if form.feature_scale == "relative":
            errors["variances"] = channel_variances.begin(maps)
        # Filled on the device: a list would be copied to it, and the host would wait for what is queued there.
        scale = torch.stack([maps[0].new_full((), coefficients[level]) for level in used])

        def add_up(found: dict[str, Tensor]) -> dict[str, Tensor]:
            variances = found.pop("variances", None)
            weight = scale if variances is None else scale / variances.clamp_min(1e-8)
            return {name: (weight * error).sum() for name, error in found.items()}

        return alongside(errors).then(add_up)

    def _flow_of_every_level(self, pyramid: list[Tensor], flows: list[Tensor]) -> list[Tensor]:
        """Decoded levels have their own flow; finer ones the finest, upsampled; coarser ones the coarsest, pooled."""
        settings = self.config.flow
        everywhere = []
        for x, stride in zip(pyramid, self.encoder.strides, strict=True):
            if stride < settings.finest_stride:
                size = (x.shape[-2], x.shape[-1])
                everywhere.append(upsample_flow(flows[0], size, settings.finest_stride // stride))
            elif stride > settings.coarsest_stride:
                factor = stride // settings.coarsest_stride
                everywhere.append(pool(flows[-1], factor) / factor)
            else:
                everywhere.append(flows[self.encoder.strides.index(stride) - self.flow_estimator.first])
        return everywhere

    def _reconstruction(self, whole: Tensor, flows: list[Tensor], mask: Tensor) -> Summing[Tensor]:
        """Scale k: the k-th finest flow, upsampled to 1 / 2^k of the image's size, against the pooled images.

        With `photometric_reduction` r both are 1 / r of that size. `whole` are the images with their margin, of which
        the flows have none.
        """
        form, finest = self.config.loss, self.config.flow.finest_stride
        losses: dict[str, Summing[Tensor]] = {}
        used: list[float] = []
        for k, (flow, weight) in enumerate(zip(flows, form.photometric_scales, strict=False)):
            factor = 2**k * form.photometric_reduction
            source, margin = pool(whole, factor), form.photometric_margin // factor
            image = _inner(source, margin)
            if weight == 0.0 or min(image.shape[-2:]) < 4:
                continue
            size = (image.shape[-2], image.shape[-1])
            flow = upsample_flow(flow, size, finest // form.photometric_reduction)
            guess = warp(swap_halves(source), flow, margin)
            losses[f"scale {k}"] = reconstruction_loss.begin(image, guess, pool(mask, factor), form)
            used.append(weight)

        def average(distances: dict[str, Tensor]) -> Tensor:
            total = whole.new_zeros((), dtype=torch.float32)
            for weight, distance in zip(used, distances.values(), strict=True):
                total = total + weight * distance
            return total / sum(used) if used else total

        return alongside(losses).then(average)
