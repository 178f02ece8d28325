"""The exact law of the samplers, by walking through every outcome in float64: the dumb twin of the loops.

It follows METHOD.md section 5 sentence by sentence, with lists and dictionaries, and shares no code with the package.
"""

import collections
import itertools
import math

import numpy as np


def shape(logits, temperature, top_p):
    """Nucleus of softmax(logits / temperature), by sorting a list."""
    logits = np.asarray(logits, np.float64)
    if temperature == 0:
        return np.eye(len(logits))[int(np.argmax(logits))]
    prob = np.exp(logits / temperature - np.max(logits / temperature))
    prob /= prob.sum()
    kept, total = [], 0.0
    for token in sorted(range(len(prob)), key=lambda v: (-prob[v], v)):
        if total >= top_p:
            break
        kept.append(token)
        total += prob[token]
    out = np.zeros_like(prob)
    out[kept] = prob[kept] / prob[kept].sum()
    return out


class Law:
    """Enumerates one sampler on a tabular model, for rows of `length` tokens."""

    def __init__(self, model, config, length, plain=False):
        self.model, self.config, self.length, self.plain = model, config, length, plain
        self.table = [int(w) for w in config.window.table(length)]
        self.trunk_cost = model.trunk_cost
        self.verify_cost = 0.0 if plain else model.verify_cost
        unit = self.trunk_cost + self.verify_cost
        self.size = max(self.table)
        if config.budget_nfe is not None:
            most = math.floor((config.budget_nfe + 1e-4) / unit)
            self.size = max(self._merged(i, most) for i in range(length))

    def _passes_left(self, i):
        return 0 if i >= self.length else 1 + self._passes_left(i + self.table[i])

    def _merged(self, i, payable):
        end = i
        for _ in range(math.ceil(self._passes_left(i) / payable)):
            end += self.table[end] if end < self.length else 0
        return end - i

    def _payable(self, passes, rounds):
        left = self.config.budget_nfe + 1e-4 - passes * self.trunk_cost - rounds * self.verify_cost
        return math.floor(left / (self.trunk_cost + self.verify_cost))

    def draft(self, tokens, positions, i, k):
        logits = self.model.numpy_draft_logits(tokens, positions, i, k)
        temperature = 1.0 if self.plain else self.config.draft_temperature
        return shape(logits / temperature, self.config.temperature, self.config.top_p)

    def target(self, tokens, positions, i, k):
        if k == i and self.config.tie_first:
            logits = self.model.numpy_draft_logits(tokens, positions, i, k)
        else:
            logits = self.model.numpy_target_logits(tokens, positions, i, k)
        return shape(logits, self.config.temperature, self.config.top_p)

    def orders(self, given):
        """(probability, order) of the starting orders."""
        rest = [k for k in range(self.length) if k not in given]
        if self.config.order == "dilated":
            level = lambda x: min(n for n in range(self.length) if x % max(self.length >> (n + 1), 1) == 0)
            level_of = {x: level(x) for x in range(self.length)}
            levels = lambda order: [level_of[x] for x in order]
            ranked = [order for order in itertools.permutations(rest) if levels(order) == sorted(levels(order))]
            return [(1 / len(ranked), tuple(sorted(given)) + order) for order in ranked]
        if self.config.order == "spread":
            points = [m * 2654435769 % 2**32 for m in range(len(rest))]
            turned = lambda by: tuple(rest[(sorted(points).index(x) + by) % len(rest)] for x in points)
            return [(1 / len(rest), tuple(sorted(given)) + turned(by)) for by in range(len(rest))]
        if self.config.order != "random":
            return [(1.0, tuple(sorted(given)) + tuple(rest))]
        all_orders = [a + b for a in itertools.permutations(sorted(given)) for b in itertools.permutations(rest)]
        return [(1 / len(all_orders), order) for order in all_orders]

    def _reordered(self, tokens, positions, i):
        """Positions re-sorted by the draft's own distributions, surest first."""
        if self.config.order in ("random", "left_to_right", "dilated", "spread"):
            return positions
        rows = {
            k: shape(self.model.numpy_draft_logits(tokens, positions, i, k), 1.0, 1.0) for k in range(i, self.length)
        }
        if self.config.order == "confidence":
            score = {k: -row.max() for k, row in rows.items()}
        elif self.config.order == "entropy":
            score = {k: -sum(p * math.log(p) for p in row if p > 0) for k, row in rows.items()}
        else:
            raise AssertionError(self.config.order)
        return positions[:i] + tuple(positions[k] for k in sorted(rows, key=lambda k: (score[k], k)))

    def _stopped(self, tokens, positions, i, window):
        """The window up to the first track but the first whose largest probability is below `confidence_stop`."""
        for k in range(i + 1, i + window):
            row = shape(self.model.numpy_draft_logits(tokens, positions, i, k), 1.0, 1.0)
            if row.max() < self.config.confidence_stop:
                return k - i
        return window

    def _diverged(self, tokens, positions, i, k):
        """Whether the target's divergence from the draft, summed over tracks `i .. k`, ends the window before `k`."""
        if k == i or not self.config.divergence_stop:
            return False
        total = 0.0
        for track in range(i, k + 1):
            if track == i and self.config.tie_first:
                continue
            temperature = self.config.temperature or 1.0
            q = shape(self.model.numpy_target_logits(tokens[:track], positions, i, track), temperature, 1.0)
            p = shape(self.model.numpy_draft_logits(tokens, positions, i, track), temperature, 1.0)
            total += sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
        return total > self.config.divergence_stop

    def joint(self, given=None):
        """`{(tokens in sequence order, passes, rounds): probability}` given `{position: token}`."""
        given = given or {}
        out = collections.defaultdict(float)
        for weight, order in self.orders(given):
            for key, prob in self.of_order(order, tuple(given[k] for k in order[: len(given)])).items():
                out[key] += weight * prob
        return dict(out)

    def of_order(self, order, prompt=()):
        """The law along one starting order."""
        out = collections.defaultdict(float)
        frontier = {(tuple(prompt), tuple(order), 0, 0): 1.0}
        while frontier:
            following = collections.defaultdict(float)
            for (tokens, positions, passes, rounds), prob in frontier.items():
                if len(tokens) == self.length:
                    sequence = tuple(int(tokens[positions.index(x)]) for x in range(self.length))
                    out[sequence, passes, rounds] += prob
                    continue
                for state, p in self._one_pass(tokens, positions, passes, rounds):
                    following[state] += prob * p
            frontier = following
        return dict(out)

    def _one_pass(self, tokens, positions, passes, rounds):
        i = len(tokens)
        window, budget = self.table[i], self.config.budget_nfe
        if budget is not None:
            window = min(self._merged(i, self._payable(passes, rounds)), self.size)
        positions = self._reordered(tokens, positions, i)
        passes += 1
        if not self.plain:
            window = self._stopped(tokens, positions, i, window)
        end = i + window
        p = {k: self.draft(tokens, positions, i, k) for k in range(i, self.length)}
        for j, settled, rounds_now, prob in self._window(i, end, tokens, positions, passes, rounds, p):
            if j < self.length and budget is not None and self._payable(passes, rounds_now) < 1:
                rest = range(end, self.length)
                for tail in itertools.product(range(self.model.num_tokens), repeat=len(rest)):
                    p_tail = math.prod(p[k][v] for k, v in zip(rest, tail, strict=True))
                    yield (settled + tail, positions, passes, rounds_now), prob * p_tail
            else:
                yield (settled[:j], positions, passes, rounds_now), prob

    def _window(self, i, end, tokens, positions, passes, rounds, p):
        """(end of the settled tracks, tokens and drafts, rounds, probability) of what a window's drafts come to."""
        for drafts in itertools.product(range(self.model.num_tokens), repeat=end - i):
            weight = math.prod(p[i + s][v] for s, v in enumerate(drafts))
            if weight == 0:
                continue
            drafted = tokens + drafts
            if self.plain:
                yield end, drafted, rounds, weight
                continue
            for j, settled, rounds_now, prob in self._rounds(i, i, end, 0, drafted, positions, passes, rounds, p):
                yield j, settled, rounds_now, weight * prob

    def _may_verify(self, n, passes, rounds):
        """Whether a row that has had `n` rounds in this pass may have another."""
        spent = passes * self.trunk_cost + (rounds + 1) * self.verify_cost
        broke = self.config.budget_nfe is not None and spent > self.config.budget_nfe + 1e-4
        return n < self.config.verify_rounds and not broke

    def _rounds(self, i, j, end, n, tokens, positions, passes, rounds, p):
        """(end of the settled tracks, tokens, rounds, probability) of the verify rounds from `j` on."""
        if j >= end or not self._may_verify(n, passes, rounds):
            yield j, tokens, rounds, 1.0
            return
        reach = 1.0
        for k in range(j, end):
            if self._diverged(tokens, positions, i, k):
                yield k, tokens, rounds + 1, reach
                return
            q = self.target(tokens[:k], positions, i, k)
            accept = min(1.0, q[tokens[k]] / p[k][tokens[k]])
            residual = np.maximum(0.0, q - p[k])
            if accept < 1:
                for v in np.flatnonzero(residual):
                    replaced = (*tokens[:k], int(v), *tokens[k + 1 :])
                    prob = reach * (1 - accept) * residual[v] / residual.sum()
                    for j2, tokens2, rounds2, p2 in self._rounds(
                        i, k + 1, end, n + 1, replaced, positions, passes, rounds + 1, p
                    ):
                        yield j2, tokens2, rounds2, prob * p2
            reach *= accept
            if reach == 0:
                return
        yield end, tokens, rounds + 1, reach


class SharedNoiseLaw(Law):
    """The law with `shared_noise`, for two tokens: `argmax(log p + g)` is 1 where a uniform number is below `p(1)`.

    So each track has one uniform number a pass, and all that can happen depends on where it lies among the draft's and
    the target's probabilities of 1 under all that may stand before the track.
    """

    def _window(self, i, end, tokens, positions, passes, rounds, p):
        assert self.model.num_tokens == 2
        q = {
            (*tokens, *before): self.target((*tokens, *before), positions, i, k)[1]
            for k in range(i, end)
            for before in itertools.product(range(2), repeat=k - i)
        }
        cells = []
        for k in range(i, end):
            cuts = sorted({0.0, 1.0, p[k][1], *(prob for before, prob in q.items() if len(before) == k)})
            cells.append([((a + b) / 2, b - a) for a, b in itertools.pairwise(cuts)])
        for cell in itertools.product(*cells):
            drafts = tuple(int(u < p[i + s][1]) for s, (u, _) in enumerate(cell))
            j, hand, n, last = i, tokens + drafts, 0, end
            while j < last and self._may_verify(n, passes, rounds + n):
                drawn = hand[:j] + tuple(int(cell[k - i][0] < q[hand[:k]]) for k in range(j, end))
                following = next((k + 1 for k in range(j, end) if drawn[k] != hand[k]), end)
                stops = [k for k in range(j, following) if self._diverged(drawn, positions, i, k)]
                j, last = (stops[0], stops[0]) if stops else (following, end)
                hand, n = drawn, n + 1
            # Drafts that nobody has verified are taken as they were drawn.
            yield j, hand[:j] + (tokens + drafts)[j:], rounds + n, math.prod(width for _, width in cell)
