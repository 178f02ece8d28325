"""OpenWebText with the paper's settings: 11 + 1 blocks, width 768, D = 1024, GPT-2's tokens.

    python -m launch.train --config=configs/openwebtext.py --workdir=runs/openwebtext \\
        --config.data.source='/path/to/openwebtext/*.parquet' --config.data.tokenizer_path=/path/to/gpt2/tokenizer.json

164,583,168 parameters: 87 M in the blocks (the paper says about 150 M in all), 77 M in embedding and head. Hardware:
one host with 8 H100, or TPUs (with --config.model.remat=True; launch/compile_check.py says what fits); 262 G tokens.
Not yet run. The paper reports a GPT-2 negative log likelihood of 5.28, 5.12 and 5.05 nats at 32, 64 and 128 NFE. Data
and tokenizer are downloaded by the user.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """The paper's OpenWebText experiment."""
    config = base.get_config()
    # Parquet files with a column "text".
    config.data.source = "openwebtext/*.parquet"
    config.data.tokenizer = "huggingface"
    config.data.tokenizer_path = "gpt2/tokenizer.json"
    config.data.valid_fraction = 0.005
    config.data.test_fraction = 0.005
    config.length = 1024
    config.model.width = 768
    config.model.num_heads = 12
    config.model.dropout = 0.1
    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.warmup_steps = 10_000
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.training.num_steps = 1_000_000
    config.training.batch_size = 256
    config.training.ema_decay = 0.9999
    config.training.log_every = 100
    config.training.eval_every = 10_000
    config.training.eval_batches = 32
    config.training.checkpoint_every = 5_000
    config.training.keep_every = 100_000
    # Draws at a few dozen NFE.
    config.sampling.delta_tau = 0.02
    config.sampling.verify_rounds = 4
    return config
