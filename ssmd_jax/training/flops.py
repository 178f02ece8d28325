"""Floating-point operations of a training step, and what devices can do at most."""

import dataclasses

import jax

from ssmd_jax.diffusion.loss import LossConfig
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.training.cross_entropy import CHUNKED_FROM

# Dense bfloat16 peaks as published, FLOP/s a device; the key is looked for in `device_kind`. First match counts.
PEAK_FLOPS = (
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("V100", 125e12),
    ("TPU v6", 918e12),
    ("TPU v5p", 459e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
    ("TPU v3", 123e12),
)


def peak_flops(device: jax.Device) -> float | None:
    """Published dense bfloat16 peak of a device, FLOP/s; None where it is not known."""
    return next((peak for name, peak in PEAK_FLOPS if name.lower() in device.device_kind.lower()), None)


def train_flops_per_token(
    config: HybridConfig, length: int, freeze_trunk: bool = False, head_tracks: float | None = None
) -> float:
    """Floating-point operations of forward and backward pass for each token of a sequence.

    A matrix product counts 2 a parameter in the forward pass, and twice that in the backward pass (once for its input,
    once for its weights). Forward, for each token, with width `C`, MLP width `F`, length `D` and `V` tokens:

    - trunk block: `2 (4 C^2 + 3 C F)` for its kernels, `4 D C` for scores and mix;
    - causal block: the same, with an MLP width of its own and half of the attention, `2 D C`;
    - causal projections: `2 (3 C^2 + C^2)`, the three-way input and the output map;
    - evidence in place of causal blocks: `24 C^2` for its kernels, `2 D C` for half of its scores and sums;
    - head: `2 C V`, twice, for the draft and for the target, times `head_tracks`, the share of the tracks that it is
      applied to. None for the trainer's: all, or the masked ones where the vocabulary is taken in chunks
      (`training/cross_entropy.py`), of which a row has `(D + 1) / 2` in the mean.

    Embedding, norms and softmax are left out, and so is what `remat` computes again. With a frozen trunk, trunk and
    draft head have no backward pass, and the target's head has none for its weights.
    """
    width, tokens = config.width, config.num_tokens
    if head_tracks is None:
        head_tracks = (length + 1) / (2 * length) if tokens >= CHUNKED_FROM else 1.0
    trunk = config.n_noncausal * (2 * config.block_kernels(config.hidden) + 4 * length * width)
    head = 2 * width * tokens * head_tracks
    if not config.n_causal:
        return 3.0 * (trunk + head)
    if config.causal_form == "evidence":
        causal = 2 * config.evidence_kernels + 2 * length * width
    else:
        block = 2 * config.block_kernels(config.causal_hidden) + 2 * length * width
        causal = config.n_causal * block + 2 * 4 * width**2
    if freeze_trunk:
        return float(trunk + head + 3 * causal + 2 * head)
    return 3.0 * (trunk + causal + 2 * head)


def step_flops_per_token(config: HybridConfig, length: int, loss: LossConfig) -> float:
    """`train_flops_per_token` of all passes that a step makes over a token of a row.

    Taught by a trunk, each pass applies the head to one track for every pass of its row. A teacher other than the
    network's own trunk passes every row too. Evidence is taught in pairs of passes, see `_evidence_taught`.
    """
    if loss.teacher_passes and config.causal_form == "evidence":
        return _evidence_taught(config, length, loss)
    head_tracks = min(loss.passes / length, 1.0) if loss.teacher_passes else None
    own = train_flops_per_token(config, length, loss.freeze_trunk, head_tracks)
    if not loss.keeps_teacher:
        return loss.passes * own
    trunk = dataclasses.replace(config, n_causal=0)
    return loss.passes * (own + train_flops_per_token(trunk, length, head_tracks=head_tracks) / 3)


def _evidence_taught(config: HybridConfig, length: int, loss: LossConfig) -> float:
    """`P` passes of the trunk, and of the teacher where it is another; and `P (P - 1) / 2` pairs a row.

    A pair weighs `teacher_span` pieces of evidence (`6 C^2` kernels each) for `teacher_tracks` tracks (as many
    again), `4 C` for each of both, and applies the head to these tracks twice: draft and target. The teacher's head is
    applied once a pass.
    """
    width, passes, tracks = config.width, loss.teacher_passes, loss.teacher_tracks
    trunk = passes * config.n_noncausal * (2 * config.block_kernels(config.hidden) + 4 * length * width)
    head = 2 * width * config.num_tokens * tracks
    of_half = config.evidence_kernels  # 2 operations for each parameter of half of the kernels
    learnt = of_half * (loss.teacher_span + tracks) + 4 * loss.teacher_span * tracks * width
    pairs = passes * (passes - 1) / 2
    if loss.freeze_trunk:
        # The target's head has no gradient by its weights, and the draft's none at all.
        return float(trunk + (pairs * (3 * learnt + 2 * head + head) + passes * head) / length)
    # Drafts learn at the teacher's tracks of their own pass, and of a pair nothing.
    return float(4 * trunk + (pairs * (3 * learnt + 3 * head + head) + passes * (3 * head + head)) / length)
