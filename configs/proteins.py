"""Proteins of 50 to 512 amino acids: a trunk in ESM-2's layout, then a causal block on it while it stands still.

    D="--config.data.train=/path/to/proteins_train.fasta.xz --config.data.valid=/path/to/proteins_valid.fasta.xz"
    python -m launch.train --config=configs/proteins.py:trunk --workdir=runs/proteins_trunk $D
    python -m launch.train --config=configs/proteins.py:head  --workdir=runs/proteins $D \\
        --config.training.init_from=runs/proteins_trunk
    python -m launch.draw_proteins --workdir=runs/proteins_trunk --output=seen --num_samples=12000 --batch_size=1000 \\
        --samplers=plain:temperature=0.6 --sweep=delta_tau=0.0145
    python -m launch.train --config=configs/proteins.py:evidence --workdir=runs/evidence $D \\
        --config.data.train=seen --config.training.init_from=runs/proteins_trunk

`trunk` trains the bidirectional blocks alone as masked diffusion, `head` a causal block on the frozen trunk, `finetune`
the same with the trunk trained at a tenth of the rate, `joint` both from the start, as the networks for text are.
`evidence` teaches a frozen trunk's own law at a temperature of 0.6 to a causal part of that form, best on what the
trunk has drawn (`data.train`); with `loss.freeze_trunk=False` and `optimizer.trunk_rate=0.3` the trunk learns with it.
`:head-35M` and `:head-150M` have the sizes of the published ESM-2; for them, and for DPLM of 150 M, `init_from` can
name the folder that Hugging Face publishes, with no run of `trunk` before. Run for 5,500 steps of `trunk`, 4,000 more
with `init_from` the first, and 3,000 of `head`: 8, 12 and 5 minutes of one H200 (README). Without a GPU:
--config.model.attention=xla.
"""

from ml_collections import ConfigDict

from configs import base

# Blocks, width and heads; "21M" is ours, small enough for its weights to travel.
SIZES = {"21M": (12, 384, 6), "35M": (12, 480, 20), "150M": (30, 640, 20)}
STAGES = ("trunk", "head", "finetune", "evidence", "joint")


def get_config(which: str = "trunk") -> ConfigDict:
    """A stage, and after a hyphen a size.

    Args:
        which: STAGE or STAGE-SIZE.

    Raises:
        ValueError: for another one.
    """
    stage, _, size = which.partition("-")
    size = size or "21M"
    if stage not in STAGES or size not in SIZES:
        raise ValueError(f"configs/proteins.py:{which} is unknown: give {', '.join(STAGES)}, and -{', -'.join(SIZES)}")
    config = base.get_config()
    # FASTA, split by cluster so that no protein of one split is like one of another.
    config.data.train = "proteins/proteins_train.fasta.xz"
    config.data.valid = "proteins/proteins_valid.fasta.xz"
    config.data.tokenizer = "esm2"
    config.data.rows = "sequences"
    config.data.min_length = 50
    # Each is compiled apart; 12 % of the tokens of the batches are then padding.
    config.data.num_buckets = 6
    config.length = 512
    config.model.trunk = "esm2"
    config.model.n_noncausal, config.model.width, config.model.num_heads = SIZES[size]
    config.model.unroll = config.model.n_noncausal
    config.model.attention = "cudnn"
    # Of 512 letters; batches of shorter proteins have more rows and as many letters.
    config.training.batch_size = 128
    config.training.eval_batches = 24
    config.training.eval_every = 2_000
    config.training.checkpoint_every = 2_000
    if stage == "trunk":
        config.model.n_causal = 0
        config.loss.target_weight = 0.0
    if stage in ("trunk", "joint"):
        config.optimizer.learning_rate = 1e-3 if size == "21M" else 4e-4
        config.optimizer.warmup_steps = 1_000
        config.training.num_steps = 30_000
    else:
        config.loss.freeze_trunk = stage != "finetune"
        config.optimizer.trunk_rate = 0.1 if stage == "finetune" else 1.0
        config.training.num_steps = 12_000
    if stage == "evidence":
        config.model.causal_form = "evidence"
        config.loss.teacher_passes = 4
        config.loss.temperature = config.sampling.temperature = 0.6
        # More Pfam hits at any number of passes than a random order has (README).
        config.sampling.order = "spread"
        config.sampling.shared_noise, config.sampling.verify_rounds = True, 40
        config.optimizer.learning_rate = 5e-4
        config.optimizer.b2 = 0.99
        config.training.batch_size = 64
        config.training.num_steps = 3_000
    return config
