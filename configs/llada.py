"""A causal block on LLaDA-8B while it stands still: a verifier inside one model, for the speculative sampler.

    python -m launch.train --config=configs/llada.py --workdir=runs/llada_head \\
        --config.training.init_from=/path/to/LLaDA-8B-Base \\
        --config.data.tokenizer_path=/path/to/LLaDA-8B-Base/tokenizer.json \\
        --config.data.train=/path/to/train.jsonl --config.data.valid=/path/to/valid.jsonl

The folder is as Hugging Face publishes it (config.json, tokenizer.json, safetensors). 285 M parameters are trained; the
8 B of the trunk are float32 and stand in memory twice while a run starts, 64 GB: one H200, or several devices with
--config.mesh.fsdp. Not yet run. For another network of LLaDA's layout set the fields of `model` to what its config.json
says; what differs is named.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """The causal block of LLaDA-8B-Base, LLaDA-8B-Instruct or LLaDA-1.5."""
    config = base.get_config()
    config.data.train = "train.jsonl"
    config.data.valid = "valid.jsonl"
    config.data.tokenizer = "huggingface"
    config.data.tokenizer_path = "tokenizer.json"
    config.length = 1024
    config.model.trunk = "llada"
    config.model.n_noncausal = 32
    config.model.width = 4096
    config.model.num_heads = 32
    config.model.mlp_width = 12_288
    config.model.vocab_size = 126_464
    config.model.mask_id = 126_336
    # <|endoftext|> stands between documents; <|startoftext|>, before it, is the first of the special tokens.
    config.model.eos_id = 126_081
    config.model.special_from = 126_080
    config.model.attention = "cudnn"
    config.loss.freeze_trunk = True
    # Windows of the sampler are short beside a row: the target is trained near them.
    config.loss.target_tracks = 128
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 200
    config.training.num_steps = 5_000
    config.training.batch_size = 32
    config.training.accumulation = 4
    # A moving average would hold the trunk once more.
    config.training.ema_decay = 0.0
    config.training.eval_every = 500
    config.training.eval_batches = 8
    config.training.checkpoint_every = 1_000
    config.training.keep_last = 1
    return config
