"""Floating-point operations of sampling's parts, for a whole batch; training's are in `training/flops.py`.

As there, a product counts 2 a multiplication; embedding, norms and softmax are left out, and attention of a
lower-triangular block counts half of its square. `B` rows, `D` tracks, `S` tracks of a window, width `C`, `V` tokens.
"""

from ssmd_jax.model.config import HybridConfig


def blocks(config: HybridConfig, batch: int, length: int) -> float:
    """The bidirectional blocks: `h`."""
    return float(
        batch * length * config.n_noncausal * (2 * config.block_kernels(config.hidden) + 4 * length * config.width)
    )


def trunk(config: HybridConfig, batch: int, length: int) -> float:
    """A trunk pass: the blocks, and what later rounds share.

    That is the token-free half of the causal input, and the causal blocks' keys and values: the input projection of
    the token, whole blocks up to the last, and of the last one keys and values alone. Evidence shares four squares.
    """
    if not config.n_causal:
        return blocks(config, batch, length)
    width = config.width
    if config.causal_form == "evidence":
        return blocks(config, batch, length) + float(batch * length * 2 * 4 * width**2)
    shared = 4 * width**2 + 2 * width**2 + 4 * width**2
    whole = (config.n_causal - 1) * (2 * config.block_kernels(config.causal_hidden) + 2 * length * width)
    return blocks(config, batch, length) + float(batch * length * (shared + whole))


def head(config: HybridConfig, tracks: int) -> float:
    """Logits of so many tracks."""
    return float(2 * config.width * config.num_tokens * tracks)


def verify_round(config: HybridConfig, batch: int, length: int, size: int) -> float:
    """Target logits of a window: `S` queries against `D + S` keys, whose masked part is not known in advance."""
    if not config.n_causal:
        return head(config, batch * size)
    width = config.width
    if config.causal_form == "evidence":
        return float(batch * size * (2 * 8 * width**2 + 4 * size * width)) + head(config, batch * size)
    causal = config.n_causal * (2 * config.block_kernels(config.causal_hidden) + 4 * (length + size) * width)
    return float(batch * size * (causal + 4 * width**2)) + head(config, batch * size)


def naive_round(config: HybridConfig, batch: int, length: int) -> float:
    """Target logits of all tracks, the causal input and its keys and values computed anew."""
    if not config.n_causal:
        return head(config, batch * length)
    width = config.width
    if config.causal_form == "evidence":
        evidence = 2 * config.evidence_kernels + 4 * length * config.width
        return float(batch * length * evidence) + head(config, batch * length)
    causal = config.n_causal * (2 * config.block_kernels(config.causal_hidden) + 2 * length * width)
    return float(batch * length * (causal + 8 * width**2)) + head(config, batch * length)
