"""The policies' rules as plain Python over lists and dictionaries, one row, with the same keys: the dumb twins.

They share with the package the draws (keys, categorical, uniform, Gumbel), and nothing of the rules.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.diffusion.speculation import categorical, shape_log_prob
from ssmd_jax.sampling import keys

TOKENS, POSITIONS, REMASK = range(3)
fold = jax.jit(jax.random.fold_in)
uniform = jax.jit(jax.random.uniform)
gumbel = jax.jit(lambda key: jax.random.gumbel(key, (), jnp.float32, mode="high"))


@functools.partial(jax.jit, static_argnames=("temperature", "top_p"))
def _draw(key, logits, temperature, top_p):
    law = shape_log_prob(logits, None if temperature == 0 else temperature, None if top_p == 1 else top_p)
    return categorical(key[None], law[None])[0]


class Row:
    """One row on its way: what a rule may look at, and the noise of one key."""

    def __init__(self, policy, network, row_key, prompt, given, num_tokens):
        self.policy, self.network, self.num_tokens = policy, network, num_tokens
        self.key = fold(row_key, keys.POLICY)
        self.length = len(prompt)
        self.fixed = {x for x in range(self.length) if given[x]}
        self.tokens = {x: int(prompt[x]) for x in self.fixed}
        self.total = self.length - len(self.fixed)
        self.moves = self.passes = self.judged = 0
        self.memory, self.calls = {}, 0
        self._logits = None

    masked = property(lambda self: [x for x in range(self.length) if x not in self.tokens])
    revealed = property(lambda self: [x for x in range(self.length) if x in self.tokens and x not in self.fixed])

    def log_prob(self, x):
        """Of the network at position `x`, float64; the first question of a move is a call of the network."""
        if self._logits is None:
            self._logits = np.asarray(self.network(self.tokens, self.masked), np.float64)
            self.calls += 1
        logits = self._logits[x] - self._logits[x].max()
        return logits - math.log(np.exp(logits).sum())

    def draw(self, key, x):
        self.log_prob(x)
        logits = jnp.asarray(self._logits[x], jnp.float32)
        return int(_draw(fold(fold(key, TOKENS), x), logits, self.policy.temperature, self.policy.top_p))

    def step_key(self):
        return fold(self.key, self.moves)

    def draws(self, key):
        return {x: self.draw(key, x) for x in self.masked}

    def uniform(self, key, stream, x):
        return float(uniform(fold(fold(key, stream), x)))

    def gumbel(self, key, stream, x):
        return float(gumbel(fold(fold(key, stream), x)))

    def confidence(self, x, token):
        return float(self.log_prob(x)[token])

    def entropy(self, x):
        return -sum(math.exp(v) * v for v in self.log_prob(x))

    def score(self, name, x, token, key):
        if name == "confidence":
            return self.confidence(x, token)
        if name == "entropy":
            return -self.entropy(x)
        if name == "random":
            return self.uniform(key, POSITIONS, x)
        first, second = sorted(np.exp(self.log_prob(x)))[::-1][:2]
        return first - second

    def block(self, size):
        """Number and masked positions of the first block with masks."""
        if size is None:
            return 0, self.masked
        number = min(x // size for x in self.masked)
        return number, [x for x in self.masked if x // size == number]


def best(score, positions):
    return sorted(positions, key=lambda x: (-score[x], x))


def run(policy, network, row_key, prompt, given, num_tokens, costs, critic=None):
    """One row; returns fields of `SampleResult`.

    Args:
        network: `(tokens {position: token}, masked positions) -> logits [length, V]`.
        costs: NFE of a pass, NFE of the critic.
        critic: `(tokens of the complete row) -> scores`.
    """
    row = Row(policy, network, row_key, prompt, given, num_tokens)
    rule = RULES[type(policy).__name__]
    history, dropped = dict.fromkeys(range(row.length), 0), dict.fromkeys(range(row.length), num_tokens)
    done = row.total == 0
    while not done:
        had_masks = bool(row.masked)
        tokens, reveal, remask, done = rule(policy, row, critic)
        row.passes, row.moves = row.passes + had_masks, row.moves + 1
        spent = row.passes * costs[0] + row.judged * costs[1]
        if policy.budget_nfe is not None and spent + sum(costs) > policy.budget_nfe + 1e-4:
            # The tokens of all masks, not only of those that the rule wants.
            reveal, remask, done = row.masked, [], True
        for x in remask:
            dropped[x], history[x] = row.tokens.pop(x), 0
        for x in reveal:
            row.tokens[x], history[x] = tokens[x], row.passes
        row._logits = None
        done = done and not row.masked
    order = sorted(row.fixed) + sorted(row.revealed, key=lambda x: (history[x], x))
    assert row.calls == row.passes, "the passes counted are not the calls of the network"
    return {
        "tokens": [row.tokens[x] for x in range(row.length)],
        "order": order,
        "trunk_passes": row.passes,
        "verify_rounds": row.judged,
        "nfe": row.passes * costs[0] + row.judged * costs[1],
        "revealed_in": [history[x] for x in order],
        "rejected_token": [dropped[x] for x in order],
        "unverified": row.total,
    }


def grid(policy, row, alphas, sigma_of, is_done):
    """The time-grid rules: whether, then what; steps that change nothing are skipped or not."""
    n = first = row.memory.setdefault("n", 0)
    reveal, remask = [], []
    while n < policy.steps and not (reveal or remask) and (policy.skip or n == first):
        alpha_t, alpha_s = (a[n] for a in alphas)
        key, sigma = fold(row.key, n), sigma_of(n)
        prob = lambda x, s: (alpha_s - (1 - s) * alpha_t) / (1 - alpha_t)  # noqa: B023
        reveal = [x for x in row.masked if row.uniform(key, POSITIONS, x) < prob(x, sigma(x))]
        remask = [x for x in row.revealed if row.uniform(key, REMASK, x) < sigma(x)]
        n += 1
    row.memory["n"] = n
    through = not reveal and not remask and n >= policy.steps and (policy.skip or first >= policy.steps)
    if not row.masked:
        return {}, [], remask, is_done(n, len(remask))
    tokens = row.draws(fold(row.key, n - 1))
    if through:
        tokens, reveal = {x: int(np.argmax(row.log_prob(x))) for x in row.masked}, row.masked
    for x in reveal:
        row.memory[x] = math.exp(row.confidence(x, tokens[x]))
    return tokens, reveal, remask, is_done(n, len(remask))


def mdlm(policy, row, critic):
    t = np.linspace(1, 1e-5, policy.steps + 1)
    return grid(policy, row, (1 - t[:-1], 1 - t[1:]), lambda n: lambda x: 0.0, lambda n, k: True)


def md4(policy, row, critic):
    t = np.array([(policy.steps - i) / policy.steps for i in range(policy.steps + 1)])
    if policy.grid_name == "cosine":
        t = np.cos(np.pi / 2 * (1 - t))
    alpha = (1 - 2e-4) * (1 - t) + 1e-4
    return grid(policy, row, (alpha[:-1], alpha[1:]), lambda n: lambda x: 0.0, lambda n, k: True)


def remdm(policy, row, critic):
    t = np.linspace(1, 1e-5, policy.steps + 1)
    in_loop = lambda time: policy.t_off <= time <= policy.t_on

    def kept(time):
        if policy.rule != "loop":
            return 1 - time
        if in_loop(time):
            return policy.alpha_on
        if time > policy.t_on:
            return policy.alpha_on * (1 - time) / (1 - policy.t_on)
        return 1 - (1 - policy.alpha_on) * time / policy.t_off

    alpha = np.array([kept(time) for time in t])
    alpha_t, alpha_s = alpha[:-1], alpha[1:]

    def sigma_of(n):
        most = 1.0 if alpha_t[n] == 0 else min(1.0, (1 - alpha_s[n]) / alpha_t[n])
        if policy.rule == "conf":
            weight = {x: math.exp(-row.memory[x]) for x in row.revealed}
            return lambda x: most * weight.get(x, 0.0) / max(sum(weight.values()), 1e-30)
        if policy.rule == "loop":
            return lambda x: policy.eta if in_loop(t[n]) and in_loop(t[n + 1]) else 0.0
        return lambda x: min(policy.eta, most) if policy.rule == "cap" else policy.eta * most

    return grid(policy, row, (alpha_t, alpha_s), sigma_of, lambda n, k: n >= policy.steps and not k)


def first_hitting(policy, row, critic):
    key = row.step_key()
    order = best({x: row.uniform(key, POSITIONS, x) for x in row.masked}, row.masked)
    count = 1
    if policy.passes is not None:
        count = max(1, len(row.masked) - math.floor(row.total * (1 - (row.moves + 1) / policy.passes) + 1e-9))
    return row.draws(key), order[:count], [], True


def _place(policy, row):
    """Step within the block, masks at its start, its masked positions, steps of a block."""
    number, candidates = row.block(policy.block)
    if row.memory.get("block") != number:
        row.memory |= {"block": number, "i": -1, "total": len(candidates)}
    row.memory["i"] += 1
    blocks = 1 if policy.block is None else math.ceil(row.length / policy.block)
    return row.memory["i"], row.memory["total"], candidates, max(1, policy.steps // blocks)


def _linear(i, total, steps):
    return max(1, total // steps + (1 if i < total % steps else 0))


def top_k(policy, row, critic):
    key, (i, total, candidates, steps) = row.step_key(), _place(policy, row)
    tokens = row.draws(key)
    count = _linear(i, total, steps)
    if policy.schedule == "cosine":
        left = math.ceil(total * math.cos(math.pi / 2 * min(1, (i + 1) / steps)) - 1e-4)
        count = max(1, len(candidates) - left)
    score = {x: row.score(policy.score, x, tokens[x], key) for x in candidates}
    if policy.choice_temperature:
        scale = policy.choice_temperature * max(0, 1 - i / steps)
        score = {x: v + scale * row.gumbel(key, REMASK, x) for x, v in score.items()}
    return tokens, best(score, candidates)[:count], [], True


def threshold(policy, row, critic):
    tokens, (_, candidates) = row.draws(row.step_key()), row.block(policy.block)
    score = {x: row.confidence(x, tokens[x]) for x in candidates}
    sure = [x for x in candidates if math.exp(score[x]) >= policy.threshold]
    return tokens, sure or best(score, candidates)[:1], [], True


def factor(policy, row, critic):
    tokens, (_, candidates) = row.draws(row.step_key()), row.block(policy.block)
    score = {x: row.confidence(x, tokens[x]) for x in candidates}
    order = best(score, candidates)
    fitting = [n for n in range(1, len(order) + 1) if (n + 1) * (1 - math.exp(score[order[n - 1]])) < policy.factor]
    return tokens, order[: max(fitting, default=1)], [], True


def entropy_bounded(policy, row, critic):
    key = row.step_key()
    tokens, (_, candidates) = row.draws(key), row.block(policy.block)
    order = best({x: row.score(policy.score, x, tokens[x], key) for x in candidates}, candidates)
    entropies = [row.entropy(x) for x in order]
    fitting = [j for j in range(1, len(order) + 1) if sum(entropies[:j]) - max(entropies[:j]) <= policy.gamma + 1e-7]
    return tokens, order[: max(fitting)], [], True


def klass(policy, row, critic):
    key, (i, total, candidates, steps) = row.step_key(), _place(policy, row)
    tokens = row.draws(key)
    now = {x: row.log_prob(x) for x in row.masked}
    before, history = row.memory.get("now"), row.memory.setdefault("history", {x: [] for x in range(row.length)})
    if before is not None:
        for x in now:
            history[x].append(float((np.exp(now[x]) * (now[x] - before[x])).sum()))
    row.memory["now"] = now
    score = {x: row.confidence(x, tokens[x]) for x in candidates}
    still = lambda x: len(history[x]) >= policy.history and max(history[x][-policy.history :]) < policy.divergence
    ready = [x for x in candidates if still(x) and math.exp(score[x]) > policy.threshold]
    return tokens, ready or best(score, candidates)[: _linear(i, total, steps)], [], True


def dilated(policy, row, critic):
    strides, stride = [], policy.block // policy.base
    while stride >= 1:
        strides.append(stride)
        stride //= policy.base
    strides = strides or [1]
    number, candidates = row.block(policy.block)
    if row.memory.get("block") != number:
        row.memory |= {"block": number, "level": 0}
    level = row.memory["level"]
    scheduled = lambda level: [x for x in candidates if (x % policy.block) % strides[level] == 0]
    while not scheduled(level):
        level += 1
    row.memory["level"] = min(level + 1, len(strides) - 1)
    tokens = row.draws(row.step_key())
    is_last = level == len(strides) - 1
    sure = lambda x: is_last or math.exp(row.confidence(x, tokens[x])) >= policy.threshold
    return tokens, [x for x in scheduled(level) if sure(x)], [], True


def spaced(policy, row, critic):
    """Only on top of rules whose priority is the confidence of the drawn token, or minus the entropy."""
    _, candidates = row.block(policy.block) if row.masked else (0, [])
    size = row.length if policy.block is None else policy.block
    tokens, reveal, remask, done = RULES[type(policy.inner).__name__](policy.inner, row, critic)
    gap, kept = max(2, math.floor(len(candidates) * policy.gap / size)), []
    name = getattr(policy.inner, "score", "confidence")
    score = {x: row.score(name, x, tokens[x], row.step_key()) for x in reveal}
    for x in best(score, reveal):
        if all(abs(x - y) >= gap for y in kept):
            kept.append(x)
    return tokens, kept, remask, done


def path_planning(policy, row, critic):
    key, i = row.step_key(), row.moves + 1
    tokens, revealed = row.draws(key), row.revealed
    stands = {x: tokens.get(x, row.tokens.get(x)) for x in range(row.length)}
    score = {x: row.confidence(x, stands[x]) for x in row.masked + revealed}
    if policy.score == "random":
        score = {x: math.log(row.uniform(key, POSITIONS, x)) for x in score}
    if policy.planner and revealed:
        row.judged += 1
        verdict = critic([stands[x] for x in range(row.length)])
        score |= {x: verdict[x] for x in revealed}
    score |= {x: policy.eta * score[x] if policy.eta else 0.0 for x in revealed}
    worst = sorted(score, key=lambda x: (score[x], x))[: math.floor(row.total * (1 - i / policy.steps) + 1e-9)]
    reveal = [x for x in row.masked if x not in worst]
    return tokens, reveal, [x for x in revealed if x in worst], True


def star(policy, row, critic):
    key, n = row.step_key(), row.moves
    t, s = 1 - n / policy.steps, 1 - (n + 1) / policy.steps
    last = n + 1 >= policy.steps
    tokens, revealed = row.draws(key) if row.masked else {}, row.revealed
    if t > policy.t_on + 1e-9:
        reveal = [x for x in row.masked if row.uniform(key, POSITIONS, x) < (t - s) / t]
        return tokens, reveal, [], last
    error = dict.fromkeys(row.masked + revealed, 0.0)
    if policy.guided and not last:
        row.judged += 1
        verdict = critic([tokens.get(x, row.tokens.get(x)) for x in range(row.length)])
        error = {x: verdict[x] / policy.remask_temperature for x in error}
    noisy = {x: e + row.gumbel(key, REMASK, x) for x, e in error.items()}
    worst = best(noisy, list(noisy))[: math.ceil(s * row.total - 1e-9)]
    return tokens, [x for x in row.masked if x not in worst], [x for x in revealed if x in worst], last


RULES = {
    "Mdlm": mdlm,
    "Md4": md4,
    "Remdm": remdm,
    "FirstHitting": first_hitting,
    "TopK": top_k,
    "Threshold": threshold,
    "Factor": factor,
    "EntropyBounded": entropy_bounded,
    "Klass": klass,
    "Dilated": dilated,
    "Spaced": spaced,
    "PathPlanning": path_planning,
    "Star": star,
}
