"""The causal part, and the network that it makes with any trunk (METHOD.md section 3).

In order space track `k` stands at position `positions[b, k]`. A trunk sees the revealed prefix and masks and gives
`h_k`, and has a head of its own: the draft is `head(h_k)`. In the causal part track `k` carries the token of track
`k - 1` and predicts the token AT track `k`; its output, through a linear map that starts at zero, is added to `h_k`
before the same head. So at initialisation the target equals the draft exactly, whatever the trunk is.

A causal part has one of two forms: `CausalPart`, lower-triangular blocks over all tracks, and `evidence.EvidencePart`,
which looks at the tracks alone that the trunk has not seen.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssmd_jax.model.config import HybridConfig
from ssmd_jax.model.evidence import EvidencePart
from ssmd_jax.model.layers import (
    Mlp,
    RMSNorm,
    SelfAttention,
    full_attention,
    partitioned,
    rotary_table,
    rotate,
    scaled_init,
    window_attention,
)
from ssmd_jax.model.partitioning import constrain

ACTIVATION_AXES = ("batch", None, "embed_activation")


class Block(nn.Module):
    """Pre-norm transformer block; `attend` says which tracks attend to which."""

    config: HybridConfig

    @nn.compact
    def __call__(self, x_BxDxC: jax.Array, attend, deterministic: bool = True) -> jax.Array:
        config, dtype = self.config, self.config.compute_dtype
        out_scale = (2 * (config.n_noncausal + config.n_causal)) ** -0.5
        drop = nn.Dropout(config.dropout, deterministic=deterministic)
        attention = SelfAttention(config.num_heads, config.head_dim, dtype, out_scale, name="attention")
        x_BxDxC = x_BxDxC + drop(attention(RMSNorm(dtype, name="attention_norm")(x_BxDxC), attend))
        mlp = Mlp(config.hidden, dtype, out_scale, config.mlp, name="mlp")
        x_BxDxC = x_BxDxC + drop(mlp(RMSNorm(dtype, name="mlp_norm")(x_BxDxC)))
        return constrain(x_BxDxC, ACTIVATION_AXES)


class CausalPart(nn.Module):
    """The verifier: input projection, `n_causal` lower-triangular blocks, output map that starts at zero.

    The three-way input projection of (embedding of the previous token, `h` of the previous track, `h` of the track to
    predict) is split: the part that no token enters is computed once a trunk pass (`token_free_input`), a verify round
    adds the token's part. `h` enters through a norm of its own, so that its scale does not drown the embedding.
    """

    config: HybridConfig

    def setup(self):
        config, width = self.config, self.config.width
        dtype = config.compute_dtype
        self.input_norm = RMSNorm(dtype)
        init = partitioned(scaled_init(in_axis=(0, 1), out_axis=2), None, "embed", "embed_out")
        self.project = self.param("project", init, (3, width, width))
        self.start = self.param("start", partitioned(nn.initializers.normal(1.0), None, "embed"), (2, width))
        block_config = dataclasses.replace(config, mlp_width=config.causal_hidden)
        self.blocks = [Block(block_config) for _ in range(config.n_causal)]
        self.output_norm = RMSNorm(dtype)
        output_init = nn.initializers.zeros if config.output_residual else scaled_init()
        self.output = self.param("output", partitioned(output_init, "embed", "embed_out"), (width, width))

    def token_free_input(self, h_BxDxC: jax.Array) -> jax.Array:
        """`u_k = W2 h_{k-1} + W3 h_k`, the start vector in place of `h_{-1}`, `[B, D, C]`."""
        dtype = self.config.compute_dtype
        h_BxDxC = self.input_norm(h_BxDxC)
        start_Bx1xC = jnp.broadcast_to(self.start[1].astype(dtype), (h_BxDxC.shape[0], 1, h_BxDxC.shape[2]))
        previous_BxDxC = jnp.concatenate([start_Bx1xC, h_BxDxC[:, :-1]], axis=1)
        project = self.project.astype(dtype)
        return jnp.einsum("BDC,CK->BDK", previous_BxDxC, project[1]) + jnp.einsum("BDC,CK->BDK", h_BxDxC, project[2])

    def token_input(self, embedded_BxSxC: jax.Array, is_first_BxS: jax.Array) -> jax.Array:
        """`W1 emb(previous token)`, the start vector where the track is the very first, `[B, S, C]`."""
        dtype = self.config.compute_dtype
        embedded = jnp.where(is_first_BxS[..., None], self.start[0].astype(dtype)[None, None], embedded_BxSxC)
        return jnp.einsum("BSC,CK->BSK", embedded, self.project[0].astype(dtype))

    def _rotations(self, previous_BxS: jax.Array, next_BxS: jax.Array):
        """Functions that rotate queries and keys, from the position carried and the position to predict."""
        head_dim = self.config.head_dim
        if self.config.rotary_form == "query_next":
            query_table, key_table = rotary_table(next_BxS, head_dim), rotary_table(previous_BxS, head_dim)
            return (lambda q: rotate(q, query_table)), (lambda k: rotate(k, key_table))
        carried, to_predict = (rotary_table(p, head_dim // 2) for p in (previous_BxS, next_BxS))

        def halves(x):
            first, second = jnp.split(x, 2, axis=-1)
            return jnp.concatenate([rotate(first, carried), rotate(second, to_predict)], axis=-1)

        return halves, halves

    def full(self, x_BxDxC, previous_BxD, positions_BxD, lengths_B, deterministic) -> tuple[jax.Array, list]:
        """All tracks at once. Returns the output, and each block's rotated keys and values, `[B, H, D, E]`."""
        rotate_query, rotate_key = self._rotations(previous_BxD, positions_BxD)
        cache = []

        def attend(q, k, v):
            k = rotate_key(k)
            # By head, as the products of the window's attention read them: laid out once, read in every round.
            cache.append((jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)))
            return full_attention(
                rotate_query(q), k, v, lengths_B, is_causal=True, implementation=self.config.attention
            )

        for block in self.blocks:
            x_BxDxC = block(x_BxDxC, attend, deterministic)
        return self._to_output(x_BxDxC), cache

    def window(self, x_BxSxC, previous_BxS, positions_BxS, cache, start_B) -> jax.Array:
        """The window's tracks alone, given the cached keys and values of the tracks before `start`."""
        rotate_query, rotate_key = self._rotations(previous_BxS, positions_BxS)
        for block, (prefix_k, prefix_v) in zip(self.blocks, cache, strict=True):

            def attend(q, k, v, prefix_k=prefix_k, prefix_v=prefix_v):
                return window_attention(rotate_query(q), rotate_key(k), v, prefix_k, prefix_v, start_B)

            x_BxSxC = block(x_BxSxC, attend)
        return self._to_output(x_BxSxC)

    def _to_output(self, x_BxSxC: jax.Array) -> jax.Array:
        return jnp.einsum("BSC,CK->BSK", self.output_norm(x_BxSxC), self.output.astype(self.config.compute_dtype))


def causal_part(config: HybridConfig) -> nn.Module:
    """The causal part of the form that the configuration names."""
    return EvidencePart(config) if config.causal_form == "evidence" else CausalPart(config)


class SpeculativeNetwork(nn.Module):
    """A trunk, its head and the causal part under one set of parameters. Tokens in order space, mask id `V`.

    A trunk is a subclass: its `setup` makes the trunk's parts and, where `config.n_causal` is not 0,
    `self.causal = causal_part(config)`, and it says what the five methods before `token_free_input` do. All that a
    causal part needs of a trunk is there, so that a pretrained one fits it too.
    """

    config: HybridConfig

    def trunk(self, tokens_BxD, positions_BxD, lengths_B=None, deterministic: bool = True) -> jax.Array:
        """Hidden vectors `h_BxDxC` from tokens whose masked tracks hold the mask id."""
        raise NotImplementedError

    def embed(self, tokens_BxS: jax.Array) -> jax.Array:
        """Embedding of true tokens for the causal part, `[B, S, C]`, of about unit mean square."""
        raise NotImplementedError

    def readout(self, h_BxSxC: jax.Array) -> jax.Array:
        """What the head's product reads, `[B, S, K]`: all of the head that comes before it."""
        raise NotImplementedError

    def logits(self, readout_BxSxK: jax.Array) -> jax.Array:
        """The head's product: float32 logits `[B, S, V]`; the mask token has none."""
        raise NotImplementedError

    def head_of(self, params) -> jax.Array:
        """The kernel `[K, padded V]` of that product, from the network's parameters; needs no bound module."""
        raise NotImplementedError

    def head(self, h_BxSxC: jax.Array) -> jax.Array:
        """`logits(readout(h))`: float32 logits `[B, S, V]`."""
        return self.logits(self.readout(h_BxSxC))

    def token_free_input(self, h_BxDxC: jax.Array) -> jax.Array:
        """What of the causal part no token enters, of all tracks; `token_free_input` of its form says what."""
        return self.causal.token_free_input(h_BxDxC)

    def target_hidden(self, h_BxSxC: jax.Array, causal_output_BxSxC: jax.Array) -> jax.Array:
        """What the head sees of the causal part: its output, plus `h` of the track to predict."""
        return h_BxSxC + causal_output_BxSxC if self.config.output_residual else causal_output_BxSxC

    def _full_input(self, u_BxDxC, tokens_BxD, positions_BxD):
        previous_BxD = jnp.pad(positions_BxD[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        embedded_BxDxC = self.embed(jnp.pad(tokens_BxD[:, :-1], ((0, 0), (1, 0))))
        is_first_BxD = jnp.broadcast_to(jnp.arange(tokens_BxD.shape[1])[None] == 0, tokens_BxD.shape)
        return u_BxDxC + self.causal.token_input(embedded_BxDxC, is_first_BxD), previous_BxD

    def causal_full(
        self,
        h_BxDxC,
        u_BxDxK,
        tokens_BxD,
        positions_BxD,
        lengths_B=None,
        deterministic: bool = True,
        seen_BxD=None,
    ) -> tuple[jax.Array, list]:
        """Target hidden vectors of all tracks given the tokens before each, and the causal blocks' keys and values.

        Args:
            h_BxDxC: the trunk's.
            u_BxDxK: `token_free_input` of it.
            tokens_BxD: the tokens.
            positions_BxD: position of each track.
            lengths_B: None where all rows are full.
            deterministic: no dropout.
            seen_BxD: which tracks the trunk saw in making `h`; evidence needs it, blocks do not.

        Raises:
            ValueError: where evidence is not told what the trunk saw.
        """
        if not self.config.n_causal:
            return h_BxDxC, []
        if self.config.causal_form == "evidence":
            if seen_BxD is None:
                raise ValueError("evidence is what the trunk has not seen: causal_full needs seen_BxD")
            output_BxDxC = self.causal.full(u_BxDxK, self.embed(tokens_BxD), positions_BxD, seen_BxD)
            return self.target_hidden(h_BxDxC, output_BxDxC), []
        x_BxDxC, previous_BxD = self._full_input(u_BxDxK, tokens_BxD, positions_BxD)
        output_BxDxC, cache = self.causal.full(x_BxDxC, previous_BxD, positions_BxD, lengths_B, deterministic)
        return self.target_hidden(h_BxDxC, output_BxDxC), cache

    def prefix_cache(self, h_BxDxC, u_BxDxK, masked_tokens_BxD, positions_BxD, lengths_B=None) -> list:
        """The causal blocks' keys and values that the rounds of a pass share; evidence has none."""
        if self.config.causal_form == "evidence":
            return []
        # The compiler drops what is not used of this: the last block's attention and all behind it.
        return self.causal_full(h_BxDxC, u_BxDxK, masked_tokens_BxD, positions_BxD, lengths_B)[1]

    def causal_window(self, h_BxSxC, u_BxSxK, previous_tokens_BxS, previous_BxS, positions_BxS, cache, start_B):
        """Target hidden vectors of window tracks `start .. start+S-1`; `previous_*` belong to the track before each."""
        if self.config.causal_form == "evidence":
            # Tokens AT the tracks; the last one's is asked for by nobody.
            embedded_BxSxC = self.embed(jnp.roll(previous_tokens_BxS, -1, axis=1))
            return self.target_hidden(h_BxSxC, self.causal.window(u_BxSxK, embedded_BxSxC, positions_BxS))
        is_first_BxS = start_B[:, None] + jnp.arange(h_BxSxC.shape[1])[None] == 0
        x_BxSxC = u_BxSxK + self.causal.token_input(self.embed(previous_tokens_BxS), is_first_BxS)
        output_BxSxC = self.causal.window(x_BxSxC, previous_BxS, positions_BxS, cache, start_B)
        return self.target_hidden(h_BxSxC, output_BxSxC)

    def evidence_hidden(self, h_BxDxC, tokens_BxD, positions_BxD, start_B, end_B, tracks_BxQ, span: int) -> jax.Array:
        """Target hidden vectors of some tracks, told of the tokens of tracks `start .. end-1`, `[B, Q, C]`.

        Args:
            h_BxDxC: of a pass that has seen the tracks before `start`.
            tokens_BxD: the tokens.
            positions_BxD: position of each track.
            start_B, end_B: tracks that give evidence; no more than `span`.
            tracks_BxQ: tracks to predict, at `end` or behind.
            span: static bound.
        """
        index_BxT = start_B[:, None] + jnp.arange(span)[None]
        sees_BxT = index_BxT < end_B[:, None]
        index_BxT = jnp.minimum(index_BxT, tokens_BxD.shape[1] - 1)
        take = lambda x, index: jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1)
        h_BxQxC, positions_BxQ = take(h_BxDxC, tracks_BxQ), take(positions_BxD, tracks_BxQ)
        output_BxQxC = self.causal.output_of(
            self.causal.token_free_input(h_BxQxC),
            positions_BxQ,
            self.causal.token_free_input(take(h_BxDxC, index_BxT)),
            self.embed(take(tokens_BxD, index_BxT)),
            take(positions_BxD, index_BxT),
            sees_BxT[:, None],
        )
        return self.target_hidden(h_BxQxC, output_BxQxC)

    def hidden_pair(
        self,
        masked_tokens_BxD,
        tokens_BxD,
        positions_BxD,
        lengths_B=None,
        deterministic: bool = True,
        deterministic_trunk: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """What the head's product reads in training: vectors of draft and target, `[B, D, K]` each.

        Args: as `__call__`; with `deterministic_trunk` the trunk has no dropout whatever `deterministic` says.
        """
        h_BxDxC = self.trunk(masked_tokens_BxD, positions_BxD, lengths_B, deterministic or deterministic_trunk)
        draft_BxDxK = self.readout(h_BxDxC)
        if not self.config.n_causal:
            return draft_BxDxK, draft_BxDxK
        u_BxDxK = self.token_free_input(h_BxDxC)
        seen_BxD = masked_tokens_BxD != self.config.num_tokens
        target_h_BxDxC, _ = self.causal_full(
            h_BxDxC, u_BxDxK, tokens_BxD, positions_BxD, lengths_B, deterministic, seen_BxD
        )
        return draft_BxDxK, self.readout(target_h_BxDxC)

    def __call__(
        self, masked_tokens_BxD, tokens_BxD, positions_BxD, lengths_B=None, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """Training's one forward pass: draft from the masked tokens, target from the true ones.

        Args:
            masked_tokens_BxD: tokens in order space, the mask id on every masked track.
            tokens_BxD: the true tokens.
            positions_BxD: position of each track.
            lengths_B: None where all rows are full.
            deterministic: False in training with dropout (needs the rng "dropout").

        Returns:
            Draft and target logits, float32 `[B, D, V]` each.
        """
        pair = self.hidden_pair(masked_tokens_BxD, tokens_BxD, positions_BxD, lengths_B, deterministic)
        draft_BxDxV, target_BxDxV = (self.logits(x_BxDxK) for x_BxDxK in pair)
        return draft_BxDxV, target_BxDxV
