"""The decoders for one row in plain Python, each as its paper tells it, on the network's NumPy twin."""

import numpy as np

from tests.model.published import Twin


def softmax(logits: np.ndarray) -> np.ndarray:
    weight = np.exp(logits - logits.max())
    return weight / weight.sum()


def proposal(logits: np.ndarray, mask: int, score: str = "confidence") -> tuple[int, float]:
    """Likeliest token but the mask, and its score."""
    prob = softmax(logits)
    allowed = np.where(np.arange(len(prob)) == mask, -np.inf, logits)
    token = int(np.argmax(allowed))
    if score == "confidence":
        return token, float(prob[token])
    if score == "entropy":
        return token, float(np.sum(prob * np.log(prob + 1e-10)))
    first, second = np.sort(prob)[::-1][:2]
    return token, float(first - second)


def fixed(scores: dict[int, float], step: int, size: int, steps: int) -> list[int]:
    count = size // steps + (1 if step < size % steps else 0)
    return sorted(scores, key=lambda p: (-scores[p], p))[:count]


def threshold(tau: float):
    def choose(scores, step, size, steps):
        top = min(scores, key=lambda p: (-scores[p], p))
        return [p for p in scores if p == top or scores[p] >= tau]

    return choose


def factor(f: float, paper: bool = False):
    def choose(scores, step, size, steps):
        order = sorted(scores, key=lambda p: (-scores[p], p))
        n = len(order)
        good = n
        for r in range(1, n + 1):
            if r > 1 and scores[order[r - 1]] < 1 - f / (r + 1):
                good = n if paper and r == n else r - 1
                break
        return order[:good]

    return choose


def timesteps(scores, step, size, steps, eps=1e-3):
    times = np.linspace(1, eps, steps + 1, dtype=np.float32)
    count = len(scores) if step >= steps - 1 else int(len(scores) * (1 - times[step + 1] / times[step]))
    return sorted(scores, key=lambda p: (-scores[p], p))[:count]


def greedy_window(committing, committed, masked, window, length):
    """The nearest masked positions of each position to commit, scanning left, right, outward."""
    fed = set(committing) | set(committed)
    for centre in sorted(committing):
        left = window
        for distance in range(1, length):
            for slot in (centre - distance, centre + distance):
                if left and slot in masked and slot not in fed:
                    fed.add(slot)
                    left -= 1
    return fed


def fed_by(feeding, step: int, prompt: int, start: int, stop: int, length: int, history: list[set[int]]):
    """Positions of a pass, None for all. `history[i]` is what is known before pass `i` of the block."""
    kind = type(feeding).__name__
    if kind == "Feeding":
        return None
    if kind in ("Prefix", "Dual"):
        return None if step == 0 else list(range(start, length if kind == "Prefix" else stop))
    if kind == "Settled":
        if step < 2 or step % feeding.refresh == 0:
            return None
        return [p for p in range(length) if p not in history[step - 1]]
    if kind == "FrozenPrompt":
        return None if step == 0 else list(range(prompt - 1, length))
    assert kind == "ShiftedSettled"
    if step % feeding.refresh == 0 and (step == 0 or not feeding.freeze_prompt):
        return None
    known = history[step - 1]
    after = {p for p in range(length) if (p + 1) % length in known}
    settled = {"un": after, "un_right": known & after, "right": known}[feeding.shift_type]
    if step % feeding.refresh == 0:
        settled = set()
    fed = [p for p in range(length) if p not in settled]
    return [p for p in fed if p >= prompt - 1] if feeding.freeze_prompt else fed


def decode(model, prompt, config, choose, score="confidence", budget=10**9, order=None):
    """Tokens generated, forwards, positions fed. `order[n]` is the random order of block `n`, scores by position."""
    twin, mask = Twin(model), model.mask_id
    tokens = [*prompt, *[mask] * config.gen_length]
    length, forwards, positions = len(tokens), 0, 0
    blocks = config.gen_length // config.block
    for index in range(blocks):
        start = len(prompt) + index * config.block
        stop, history, step = start + config.block, [], 0
        while mask in tokens[start:stop] or (config.paper and config.feeding.caches and step == 1):
            history.append({p for p in range(length) if tokens[p] != mask})
            if order is not None:
                left = [p for p in range(start, stop) if tokens[p] == mask]
                planned = choose({p: order[index][p - start] for p in left}, step, config.block, config.steps_per_block)
                masked = {p for p in range(length) if tokens[p] == mask}
                committed = history[step] - history[step - 1] if step else set()
                fed = sorted(greedy_window(planned, committed, masked, config.feeding.window, length))
                fed = None if step % config.feeding.refresh == 0 else fed
            else:
                fed = fed_by(config.feeding, step, len(prompt), start, stop, length, history)
            found = twin.forward(tokens, fed)
            forwards, positions = forwards + 1, positions + (length if fed is None else len(fed))
            shift = 1 if model.shifts else 0
            found = {p: found[max(p - shift, 0)] for p in range(start, stop) if max(p - shift, 0) in found}
            proposals = {p: proposal(x, mask, score) for p, x in found.items() if tokens[p] == mask}
            chosen = []
            if proposals:
                scores = {p: s for p, (_, s) in proposals.items()}
                chosen = planned if order is not None else choose(scores, step, config.block, config.steps_per_block)
                if shift and config.feeding.first_alone and step == 0:
                    chosen = [start]
                if forwards + 1 + (blocks - 1 - index) > budget:
                    chosen = list(scores)
            for p in chosen:
                tokens[p] = proposals[p][0]
            step += 1
    return tokens[len(prompt) :], forwards, positions


def reject(name: str, fields: dict, p: np.ndarray, q: np.ndarray, draft: int, best: int) -> tuple[int, bool]:
    """Token and verdict of a rule at one position, from the probabilities of verifier and drafter."""
    tau = fields.get("tau")
    kl = sum(b * (np.log(b) - np.log(a)) for a, b in zip(p, q, strict=True) if b > 0)
    return {
        "trust_verifier": lambda: (best, False),
        "exact_match": lambda: (best, draft != best),
        "confidence_threshold": lambda: (best, p[best] < (tau or 0.9)),
        "disagreement_with_confidence": lambda: (best, draft != best or p[best] < (tau or 0.9)),
        "kl_divergence": lambda: (draft, p[draft] < (tau or 0.5)),
        "unmask_confidence": lambda: (best, p.max() < (tau or 0.9)),
        "top_k": lambda: (draft, draft not in np.argsort(-p, kind="stable")[: fields.get("k", 5)]),
        "ratio": lambda: (draft, p[draft] < fields.get("alpha", 0.5) * q[draft]),
        "true_kl": lambda: (draft, kl >= fields.get("kappa", 1.0)),
    }[name]()


def dual(verifier, drafter, prompt, config, name, fields, choose):
    """DualDiffusion with an uncached or dual-cached drafter: tokens, forwards of drafter and verifier, rejections."""
    shared = drafter is verifier
    view, first = config.view, config.remask == "first_rejection"
    drafts_by = Twin(drafter)
    mask, gen = verifier.mask_id, config.drafting.gen_length
    tokens = [*prompt, *[mask] * gen]
    drafted_forwards = verified_forwards = rejections = 0
    size, length = config.drafting.block, len(tokens)
    for start in range(len(prompt), length, size):
        block = range(start, start + size)
        step, moves, times, known = 0, 0, dict.fromkeys(block, 0), set()
        while any(tokens[p] == mask for p in block):
            drafted, q_of = [], {}
            for _ in range(config.draft_steps):
                if all(tokens[p] != mask for p in block):
                    break
                fed = fed_by(config.drafting.feeding, step, len(prompt), start, start + size, length, {step - 1: known})
                known = {p for p in range(length) if tokens[p] != mask}
                found = drafts_by.forward(tokens, fed)
                drafted_forwards += 1
                proposals = {p: proposal(found[p], mask) for p in block if tokens[p] == mask}
                scores = {p: s for p, (_, s) in proposals.items()}
                for p in choose(scores, moves, size, config.drafting.steps_per_block):
                    tokens[p], q_of[p] = proposals[p][0], softmax(found[p])
                    drafted.append(p)
                step, moves = step + 1, moves + 1
            drafted.sort()
            looks = {"visible": [[]], "masked": [drafted]}.get(view) or [[p] for p in drafted] or [[]]
            z = {}
            for number, hidden in enumerate(looks):
                judge = Twin(verifier)
                found = judge.forward([mask if p in hidden else t for p, t in enumerate(tokens)])
                verified_forwards += 1
                z |= {
                    p: found[p] for p in block if p in hidden or view == "visible" or (number == 0 and p not in drafted)
                }
            step, shown = 0, list(tokens)
            if shared and config.drafting.feeding.caches and view != "leave_one_out":
                drafts_by.cache, step = judge.cache, config.drafting.feeding.step_after_refresh
                shown = [mask if p in looks[0] else t for p, t in enumerate(tokens)]
            best = {p: proposal(z[p], mask) for p in z}
            accepted, rejected = {}, []
            is_open = False
            for p in block:
                is_open |= first and tokens[p] == mask
                if p not in drafted:
                    continue
                token, bad = reject(name, fields, softmax(z[p]), q_of[p], tokens[p], best[p][0])
                is_open |= first and bad
                if bad or is_open:
                    rejected.append(p)
                    times[p] += 1
                else:
                    accepted[p] = token
            rejections += len(rejected)
            for p in drafted:
                tokens[p] = accepted.get(p, mask)
            # Keys are kept of what the verifier saw as it is now.
            known = {p for p in range(length) if tokens[p] != mask and tokens[p] == shown[p]}
            still = [p for p in block if tokens[p] == mask]
            count = config.fix_up if accepted else max(config.fix_up, 1)
            fixes = sorted(still, key=lambda p: (0 if first else -best[p][1], p))[:count]
            if config.max_rejections is not None:
                fixes += [p for p in rejected if times[p] >= config.max_rejections]
            for p in fixes:
                tokens[p] = best[p][0]
    return tokens[len(prompt) :], drafted_forwards, verified_forwards, rejections
