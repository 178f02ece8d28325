"""Arithmetic word problems, solved step by step by small models in the layout of LLaDA: a drafter and a verifier.

    python -m launch.train_masked_lm --config=configs/arithmetic.py:drafter --output=runs/arithmetic/drafter
    python -m launch.train_masked_lm --config=configs/arithmetic.py:verifier --output=runs/arithmetic/verifier
    python -m launch.arithmetic --drafter=runs/arithmetic/drafter --verifier=runs/arithmetic/verifier --output=results

6 and 7 minutes of one H200, with GSM8K's text beside the problems (`--config.gsm8k=train.jsonl`); then up to 20 and
27 % of the answers are right (README). Characters are tokens. The drafter has 4.9 million parameters, the verifier
25.0 million. `tiny` is for tests.
"""

from ml_collections import ConfigDict, config_dict

SIZES = {
    "drafter": {"width": 256, "num_layers": 6, "num_heads": 4, "mlp_width": 704},
    "verifier": {"width": 512, "num_layers": 8, "num_heads": 8, "mlp_width": 1344},
    "tiny": {"width": 32, "num_layers": 2, "num_heads": 2, "mlp_width": 64},
}


def get_config(size: str = "verifier") -> ConfigDict:
    """The experiment.

    Args:
        size: "drafter", "verifier" or "tiny".

    Raises:
        ValueError: for another one.
    """
    if size not in SIZES:
        raise ValueError(f"configs/arithmetic.py:{size} is unknown: give {', '.join(SIZES)}")
    shape = SIZES[size]
    config = ConfigDict()
    config.model = config_dict.create(
        **shape,
        num_kv_heads=shape["num_heads"],
        head_dim=shape["width"] // shape["num_heads"],
        rope_theta=10_000.0,
        rms_eps=1e-5,
        # A prompt and its answer.
        max_length=256,
        # Of computation; parameters are float32.
        dtype="float32" if size == "tiny" else "bfloat16",
    )
    config.optimizer = config_dict.create(
        name="muon",
        learning_rate=2e-3 if size == "verifier" else 4e-3,
        warmup_steps=200,
        # The cosine ends at this fraction of the peak.
        final_fraction=0.05,
        b1=0.9,
        b2=0.98,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    # Digits of the numbers in the questions at most; half of the problems have 2.
    config.digits = 3
    # Longest question and answer, in characters.
    config.prompt_length = 112
    config.gen_length = 64
    # Training problems, which are drawn before the first step and seen several times under other masks.
    config.num_problems = 600_000
    # GSM8K's training split (JSON lines), whose text is learnt beside the problems; "" for none.
    config.gsm8k = ""
    # Held-out problems for the loss at the end.
    config.num_held_out = 1024
    config.num_steps = {"drafter": 14_000, "verifier": 10_500, "tiny": 200}[size]
    config.batch_size = 256
    # Steps of one call on the device; divides num_steps.
    config.log_every = 100
    # Of the average of the weights that is saved.
    config.ema_decay = 0.999
    # Share of the tokens shown, in every second row, that are replaced by another row's (two thirds of them then
    # differ): who verifies must have learnt to.
    config.corrupted = 0.0 if size == "drafter" else 0.1
    # Of weights, problems and masks.
    config.seed = 0
    return config
