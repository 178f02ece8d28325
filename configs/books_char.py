"""English books in 27 characters: 11 + 1 blocks, width 384, D = 256; the feasibility study's setting (METHOD.md 8).

    python -m launch.train --config=configs/books_char.py --workdir=runs/books_char \\
        --config.data.train='/path/to/books_train_*.txt.xz' --config.data.valid=/path/to/books_valid.txt.xz \\
        --config.data.test=/path/to/books_test.txt.xz

Hardware: two H200, 883 s for 22,900 steps (3.0 G tokens, 3.57 M tokens/s), jax 0.11.2; one H100 takes about half an
hour. Expect, on 4,096 validation sequences, a draft loss of 1.648 bits per character (a bound) and a target loss of
0.929 (no bound); by distance the target equals the draft at 0 (1.657) and falls to 1.141 at 64 and above (draft 2.814).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Characters of books, 21,855,744 parameters."""
    config = base.get_config()
    # Paths or globs of text, one document after another (see the command above).
    config.data.train = "books/books_train_*.txt.xz"
    config.data.valid = "books/books_valid.txt.xz"
    config.data.test = "books/books_test.txt.xz"
    config.length = 256
    # The fused kernels of NVIDIA GPUs; "xla" anywhere else.
    config.model.attention = "cudnn"
    # Twice as fast on a GPU as scanning, at half the memory: nothing is copied into stacked buffers.
    config.model.unroll = 11
    # The fused kernel of Hopper GPUs where there is one, in sampling alone.
    config.model.mlp = "hopper"
    # After 900 steps 0.03 bits ahead of AdamW at the same rate, 2e-3, and 0.08 at this one (LOG.md).
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 500
    config.training.num_steps = 22_900
    config.training.batch_size = 512
    config.training.ema_decay = 0.999
    config.training.log_every = 100
    config.training.eval_every = 4_000
    config.training.checkpoint_every = 4_000
    config.sampling.delta_tau = 0.04
    config.sampling.verify_rounds = 8
    return config
