#!/usr/bin/env python3
"""Computes what input rules feed, straight from their formulas and in plain Python: rules.json, for the tests of crates/moi.

A case is a sequence of steps: logits and the sampled token in, weights over the vocabulary and the recorded token out.
    python3 tests/reference/rules.py            writes the file
    python3 tests/reference/rules.py --check    says whether it is what this script computes
"""

import json
import math
import pathlib
import sys

VOCAB = 7
OPEN, CLOSE = 5, 6
FILE = pathlib.Path(__file__).with_name("rules.json")


def softmax(logits):
    largest = max(logits)
    exps = [math.exp(l - largest) for l in logits]
    return [e / sum(exps) for e in exps]


def nats(q):
    return -sum(p * math.log(p) for p in q if p > 0)


def one_hot(token):
    return [1.0 if i == token else 0.0 for i in range(VOCAB)]


def order(q):
    return sorted(range(len(q)), key=lambda i: (-q[i], i))


def keep(q, ids):
    total = sum(q[i] for i in ids)
    return [q[i] / total if i in ids else 0.0 for i in range(len(q))]


def filtered(logits, temperature, top_k, top_p, min_p):
    q = softmax([l / temperature for l in logits])
    if top_k:
        q = keep(q, set(order(q)[:top_k]))
    kept, reached = set(), 0.0
    for i in order(q):
        kept.add(i)
        reached += q[i]
        if reached >= top_p:
            break
    q = keep(q, kept)
    return keep(q, {i for i in range(len(q)) if q[i] > 0 and q[i] >= min_p * max(q)})


def moved(y, q, gate):
    return [gate * p + (1 - gate) * o for p, o in zip(q, one_hot(y))]


def token(logits, y):
    return one_hot(y), y


def moi(logits, y, beta=1.0, support=None):
    q = softmax(logits)
    if support:
        q = keep(q, set(order(q)[:support]))
    h = nats(q) / math.log(support or len(q))
    return [(h * p + (beta + 1 - h) * o) / (beta + 1) for p, o in zip(q, one_hot(y))], y


def direct(logits, y):
    return softmax(logits), y


def gate(logits, y, gate):
    return moved(y, softmax(logits), gate), y


def soft_thinking(logits, y, temperature=0.6, top_k=30, top_p=0.95, min_p=0.001, max_topk=10):
    q = filtered(logits, temperature, top_k, top_p, min_p)
    q = keep(q, set(order(q)[:max_topk]))
    return q, order(q)[0]


def selar(logits, y, drawn, k=3, tau=0.5, lam=1.0):
    q = keep(drawn, set(order(drawn)[:k]))
    h = nats(q) / math.log(k)
    if h < tau:
        return one_hot(y), y
    # m + lambda H (m - E[first])
    first = one_hot(order(drawn)[0])
    return [m + lam * h * (m - f) for m, f in zip(q, first)], y


def swir(steps, dwell, a0=0.5, b0=0.7, cap=0, limit=None, markers=True):
    """The weights of every step of a reply."""
    out, mode, reference, length, blocks, over = [], None, None, 0, 0, False
    for t, (logits, y) in enumerate(steps):
        q = softmax(logits)
        h = nats(q)
        if over:
            out.append((one_hot(y), y))
            continue
        entered = False
        if mode is None:
            mode, reference, length, entered = "soft", h, 0, True
        else:
            length += 1
            if mode == "soft" and h < reference:
                mode, reference, length, entered = "discrete", h, 0, True
                blocks += 1
            elif mode == "discrete" and h > reference and length >= dwell:
                mode, reference, length, entered = "soft", h, 0, True
        grown = lambda first: first + (1 - first) * (min(t / limit, 1) if limit else 0)
        if mode == "soft":
            a = grown(a0) if entered and markers else 1.0
            out.append(([a * p + (1 - a) * o for p, o in zip(q, one_hot(OPEN))], y))
        elif entered and cap and blocks >= cap:
            over = True
            out.append((one_hot(CLOSE), CLOSE))
        elif entered and markers:
            b = grown(b0)
            out.append(([b * own + (1 - b) * end for own, end in zip(one_hot(y), one_hot(CLOSE))], y))
        else:
            out.append((one_hot(y), y))
    return out


def logits_of(step, sharpness):
    """Some numbers; no two of a step alike."""
    return [round(sharpness * math.sin(1.7 * (step + 1) * (i + 1) + 0.3 * i), 4) for i in range(VOCAB)]


def cases():
    steps = [(logits_of(s, 1.0 + s % 3), (3 * s + 1) % 5) for s in range(8)]
    drawn = [filtered(logits, 0.8, 0, 0.9, 0.0) for logits, _ in steps]

    def each(rule, compute, told=None):
        outs = [compute(*step) if told is None else compute(*step, told[i]) for i, step in enumerate(steps)]
        return rule, steps, told, outs, None, True

    yield each("token", token)
    yield each("moi:beta=0.5", lambda l, y: moi(l, y, 0.5))
    yield each("moi:support=3", lambda l, y: moi(l, y, 1.0, 3))
    yield each("direct", direct)
    yield each("gate:gate=0.3", lambda l, y: gate(l, y, 0.3))
    yield each("soft-thinking", soft_thinking)
    yield each(
        "soft-thinking:temperature=1:top_k=5:top_p=0.8:min_p=0.1:max_topk=2",
        lambda l, y: soft_thinking(l, y, 1.0, 5, 0.8, 0.1, 2),
    )
    yield each("k-sample:k=1", lambda l, y, d: token(l, y), drawn)
    yield each("selar", selar, drawn)
    yield each("selar:k=2:tau=0.9:lambda=0.5", lambda l, y, d: selar(l, y, d, 2, 0.9, 0.5), drawn)
    # Entropies that fall and rise: all alike, then peaked, then in between.
    script = [0.5, 0.5, 2.5, 2.0, 1.0, 0.7, 3.0, 0.2, 0.1, 4.0]
    steps = [(logits_of(s, sharp), (2 * s + 1) % 5) for s, sharp in enumerate(script)]
    yield "swir:dwell=2", steps, None, swir(steps, 2), None, True
    yield "swir:dwell=2:a0=0.2:b0=0.4", steps, None, swir(steps, 2, 0.2, 0.4, limit=20), 20, True
    yield "swir:dwell=2", steps, None, swir(steps, 2, markers=False), None, False
    yield "swir:dwell=0:cap=2", steps, None, swir(steps, 0, cap=2), None, True


def gumbel_cases():
    """Weights softmax((ln q + g) / tau) of given uniform numbers."""
    q, uniforms = [0.5, 0.3, 0.15, 0.05], [0.2, 0.9, 0.01, 0.7]
    for tau in [0.1, 0.5, 2.0]:
        noisy = [(math.log(p) - math.log(-math.log(u))) / tau for p, u in zip(q, uniforms)]
        yield {"rule": "gumbel", "q": q, "uniforms": uniforms, "tau": tau, "weights": rounded(softmax(noisy))}


def rounded(value):
    if isinstance(value, float):
        return round(value, 9)
    return [rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


def computed():
    out = []
    for rule, steps, drawn, outs, limit, markers in cases():
        rows = []
        for i, ((logits, y), (weights, recorded)) in enumerate(zip(steps, outs)):
            row = {"logits": logits, "sampled": y, "weights": rounded(weights), "recorded": recorded}
            if drawn is not None:
                row["drawn_from"] = rounded(drawn[i])
            rows.append(row)
        out.append({"rule": rule, "limit": limit, "markers": [OPEN, CLOSE] if markers else None, "steps": rows})
    return out + list(gumbel_cases())


def main():
    text = "[\n" + ",\n".join(json.dumps(case) for case in computed()) + "\n]\n"
    if "--check" in sys.argv[1:]:
        if FILE.read_text() != text:
            sys.exit(f"{FILE.name} is not what this script computes")
    else:
        FILE.write_text(text)


if __name__ == "__main__":
    main()
