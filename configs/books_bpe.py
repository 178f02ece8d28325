"""English books in 8,192 sentencepiece tokens, trained from the corpus: 11 + 1 blocks, width 512, D = 512.

    python -m launch.train --config=configs/books_bpe.py --workdir=runs/books_bpe \\
        --config.data.train='/path/to/books_train_*.txt.xz' --config.data.valid=/path/to/books_valid.txt.xz \\
        --config.data.test=/path/to/books_test.txt.xz

Hardware: one H100, about two hours. Not yet run. Both losses are in bits per token here, not per character; expect the
target to end clearly below the draft from distance 8 on.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Subwords of books."""
    config = base.get_config()
    # Paths or globs of text, one document after another (see the command above).
    config.data.train = "books/books_train_*.txt.xz"
    config.data.valid = "books/books_valid.txt.xz"
    config.data.test = "books/books_test.txt.xz"
    config.data.tokenizer = "sentencepiece"
    config.data.vocab_size = 8192
    config.length = 512
    config.model.width = 512
    config.model.num_heads = 8
    # The fused kernels of NVIDIA GPUs; "xla" anywhere else.
    config.model.attention = "cudnn"
    # Twice as fast on a GPU as scanning, at half the memory: nothing is copied into stacked buffers.
    config.model.unroll = 11
    config.model.dropout = 0.1
    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup_steps = 1_000
    config.training.num_steps = 20_000
    config.training.batch_size = 256
    config.training.ema_decay = 0.9995
    config.training.eval_every = 2_000
    config.training.checkpoint_every = 2_000
    config.sampling.delta_tau = 0.02
    config.sampling.verify_rounds = 4
    return config
