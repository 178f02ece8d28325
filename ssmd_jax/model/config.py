"""Configuration of the hybrid transformer."""

import dataclasses

import jax.numpy as jnp

from ssmd_jax.model.glu_hopper import check_widths
from ssmd_jax.model.layers import ONE_HOT_LIMIT

CAUSAL_FORMS = ("blocks", "evidence")
ROTARY_FORMS = ("query_next", "halves")
EMBEDDINGS = ("auto", "one_hot", "gather")
ATTENTIONS = ("xla", "cudnn")
MLPS = ("xla", "hopper")
TRUNKS = ("own", "esm2", "llada")
DTYPES = ("float32", "bfloat16")
# Vocabularies from this size on are padded.
PADDED_FROM = 4096


@dataclasses.dataclass(frozen=True)
class HybridConfig:
    """Shape and switches of a hybrid non-causal / causal transformer (METHOD.md section 3).

    Attributes:
        num_tokens: number of real tokens `V`; the mask token is id `V`.
        width: residual width `C`.
        num_heads: attention heads; must divide `width`.
        trunk: "own", "esm2", a trunk in the layout of ESM-2 (`model/esm2.py`), or "llada", one in LLaDA's
            (`model/llada_trunk.py`).
        token_dropout: the trunk "esm2" drops the embedding of masks and scales the others, as the published one does.
        n_noncausal: bidirectional blocks, the trunk.
        n_causal: lower-triangular blocks; 0 makes a plain masked-diffusion network, whose target is its draft.
        tied_head: the trunk "esm2" reads logits with its embedding; False for a kernel of its own (some DPLM).
        mlp_width: hidden width of the gated MLPs; 0 means 8/3 of `width`, rounded up to a multiple of 64. The trunk
            "esm2" has plain ones of 4 times `width`.
        causal_mlp_width: that of the causal blocks' MLPs; 0 means as the trunk's.
        vocab_size: of the trunk "llada": rows of its embedding and columns of its head, the mask's among them; 0 for
            the tokens and a mask behind them.
        mask_id: of the trunk "llada" with a `vocab_size`: its mask token.
        eos_id: of the trunk "llada": end of text, drawn though it is special; -1 for none.
        special_from: of the trunk "llada": ids from here on are never drawn; 0 where the mask alone is special.
        num_kv_heads: key and value heads of the trunk "llada"; 0 for `num_heads`.
        rope_theta: base of the rotary positions of the trunk "llada".
        rms_eps: added to the mean square in the norms of the trunk "llada".
        causal_form: "blocks", the causal part is `n_causal` transformer blocks (`model/causal.py`), or "evidence", one
            layer that looks at the window's tracks alone (`model/evidence.py`).
        rotary_form: causal blocks: "query_next" rotates queries by the position to predict and keys by the position
            carried; "halves" rotates both, half of each head's channels by the one and half by the other.
        output_residual: add `h` of the track to predict before the head; without it the map is not zero at the start.
        dropout: rate inside the blocks, in training only; the trunk "llada" has none, nor has evidence.
        dtype: computation, "float32" or "bfloat16"; parameters, softmax and logits are float32.
        attention: "xla" or "cudnn" (NVIDIA GPUs, bfloat16).
        mlp: "xla" or "hopper" (NVIDIA Hopper GPUs, bfloat16): a fused kernel for many rows, in sampling.
        embedding: "one_hot", "gather", or "auto" (one-hot up to 512 tokens).
        remat: recompute each trunk block in the backward pass instead of storing its activations.
        unroll: trunk blocks unrolled per step of the scan; more compiles longer and may run faster. The trunk "llada"
            has no scan.
    """

    num_tokens: int
    width: int = 384
    num_heads: int = 6
    trunk: str = "own"
    token_dropout: bool = True
    tied_head: bool = True
    vocab_size: int = 0
    mask_id: int = 0
    eos_id: int = -1
    special_from: int = 0
    num_kv_heads: int = 0
    rope_theta: float = 500_000.0
    rms_eps: float = 1e-5
    n_noncausal: int = 11
    n_causal: int = 1
    mlp_width: int = 0
    causal_mlp_width: int = 0
    causal_form: str = "blocks"
    rotary_form: str = "query_next"
    output_residual: bool = True
    dropout: float = 0.0
    dtype: str = "bfloat16"
    attention: str = "xla"
    mlp: str = "xla"
    embedding: str = "auto"
    remat: bool = False
    unroll: int = 1

    def __post_init__(self):
        for name, least in (("num_tokens", 1), ("width", 1), ("num_heads", 1), ("n_noncausal", 1), ("unroll", 1)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise ValueError(
                    f"model.{name} must be a whole number of at least {least}, got {getattr(self, name)!r}"
                )
        counts = ("n_causal", "mlp_width", "causal_mlp_width", "vocab_size", "mask_id", "special_from", "num_kv_heads")
        for name in counts:
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 0:
                raise ValueError(f"model.{name} must be a whole number of at least 0, got {getattr(self, name)!r}")
        if self.width % self.num_heads:
            raise ValueError(f"model.width {self.width} is not divisible by model.num_heads {self.num_heads}")
        divisor = 4 if self.rotary_form == "halves" else 2
        if self.head_dim % divisor:
            raise ValueError(
                f"model.width / model.num_heads is {self.head_dim}: rotary positions need a multiple of {divisor}"
            )
        choices = {
            "trunk": TRUNKS,
            "causal_form": CAUSAL_FORMS,
            "rotary_form": ROTARY_FORMS,
            "embedding": EMBEDDINGS,
            "attention": ATTENTIONS,
            "mlp": MLPS,
            "dtype": DTYPES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.causal_form == "evidence" and (
            self.n_causal > 1 or self.causal_mlp_width or self.rotary_form != "query_next" or not self.output_residual
        ):
            raise ValueError(
                "model.causal_form 'evidence' is one layer without an MLP that adds to the trunk's vectors: set "
                "model.n_causal to 1, and leave model.causal_mlp_width, model.rotary_form and model.output_residual as "
                "they are by default"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must lie in [0, 1), got {self.dropout!r}")
        if self.vocab_size and self.num_tokens > self.vocab_size:
            raise ValueError(f"model.vocab_size {self.vocab_size} is below the tokenizer's {self.num_tokens} tokens")
        if self.mask_id >= max(self.vocab_size, 1):
            raise ValueError(f"model.mask_id {self.mask_id} lies outside the {self.vocab_size} ids of model.vocab_size")
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise ValueError("model.attention 'cudnn' needs model.dtype 'bfloat16'")
        if self.mlp == "hopper":
            if self.dtype != "bfloat16":
                raise ValueError("model.mlp 'hopper' needs model.dtype 'bfloat16'")
            check_widths(self.width, self.hidden)
            check_widths(self.width, self.causal_hidden)

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.width // self.num_heads

    @property
    def hidden(self) -> int:
        """Hidden width of the MLPs."""
        return self.mlp_width or -(-8 * self.width // (3 * 64)) * 64

    @property
    def causal_hidden(self) -> int:
        """Hidden width of the causal blocks' MLPs."""
        return self.causal_mlp_width or self.hidden

    @property
    def causal_cost(self) -> float:
        """What the causal part costs, a block of the trunk being 1: by their kernels."""
        if self.causal_form == "evidence":
            return self.n_causal * self.evidence_kernels / self.block_kernels(self.hidden)
        return self.n_causal * (self.block_kernels(self.causal_hidden) / self.block_kernels(self.hidden))

    def block_kernels(self, hidden: int) -> int:
        """Parameters of a block's kernels: the projections of attention, and an MLP of this hidden width."""
        return 4 * self.width**2 + 3 * self.width * hidden

    @property
    def evidence_kernels(self) -> int:
        """Parameters of the kernels of `model/evidence.py`: four squares without a token, eight with one."""
        return 12 * self.width**2

    @property
    def padded_tokens(self) -> int:
        """Columns of the head: `num_tokens`, for large vocabularies rounded up to a multiple of 128.

        Products whose sides are no multiples of 8 miss the GPU's fast kernels, and a padded vocabulary can be sharded.
        The head of the trunk "llada" has a column for the mask too.
        """
        if self.trunk == "llada":
            return self.padded_embeddings
        return self.num_tokens if self.num_tokens < PADDED_FROM else -(-self.num_tokens // 128) * 128

    @property
    def padded_embeddings(self) -> int:
        """Rows of the embedding, of which the mask has one: `num_tokens + 1`, rounded up as the head's columns are.

        Those of the trunk "llada" are `vocab_size`, where that is given.
        """
        rows = self.num_tokens + 1
        if self.trunk == "llada" and self.vocab_size:
            return self.vocab_size
        return rows if self.num_tokens < PADDED_FROM else -(-rows // 128) * 128

    @property
    def one_hot(self) -> bool:
        """Whether the embedding is a one-hot product."""
        return self.embedding == "one_hot" or (self.embedding == "auto" and self.num_tokens <= ONE_HOT_LIMIT)

    @property
    def compute_dtype(self) -> jnp.dtype:
        """Dtype of activations."""
        return jnp.dtype(self.dtype)
