"""The flags of the programs that decode with published masked diffusion language models."""

from typing import Any

from absl import flags

from ssmd_jax.evaluation.reasoning import decoders
from ssmd_jax.model.bidirectional import DTYPES

_FLAGS = (
    flags.DEFINE_string(
        "model", None, "Folder of weights with config.json; drafts where a verifier is.", required=True
    ),
    flags.DEFINE_string("verifier", None, "Folder of another network that verifies; --model itself if unset."),
    flags.DEFINE_string("sampler", "llada", f"Which decoder: {', '.join(decoders.SAMPLERS)}."),
    flags.DEFINE_string("sampler_args", "", "Its arguments, NAME=VALUE separated by commas."),
    flags.DEFINE_enum("dtype", "bfloat16", DTYPES, "Of weights and arithmetic."),
    flags.DEFINE_integer("batch_size", 8, "Rows computed at a time.", lower_bound=1),
    flags.DEFINE_integer("pad_to", 64, "Prompts are padded to multiples of it; each is compiled.", lower_bound=1),
    flags.DEFINE_bool("trust_remote_code", False, "Run code that the tokenizer's folder brings."),
)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder of the tokenizer; that of --model if unset.")


def given(tokenizer: str) -> dict[str, Any]:
    """Their values by name; that of --tokenizer under the name `tokenizer`."""
    return {flag.name: flag.value for flag in _FLAGS} | {tokenizer: _TOKENIZER.value}
