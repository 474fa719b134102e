"""Inference-time results for tests of figures and of the page; tables are computed by the package from random data."""

import numpy as np
import pandas as pd
from made_results import HOSTILE, MANIFEST

from rim_lens.causal.ablation_test import AblationTest
from rim_lens.causal.effect_table import effect_table, ranked_by
from rim_lens.causal.set_effects import set_effect
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import SEGMENTS
from rim_lens.inference_time.interchange import InterchangeSweep
from rim_lens.inference_time.patching import PatchingSweep, returned_table
from rim_lens.inference_time.probe import Direction, RefusalProbe
from rim_lens.inference_time.refusal_heads import find_refusal_heads
from rim_lens.inference_time.span_attention import SpanAttention
from rim_lens.inference_time.sweep import AblationSweep
from rim_lens.inference_time.token_attention import TokenAttention
from rim_lens.inference_time.trace import RefusalTrace
from rim_lens.stats import benjamini_hochberg

COT, OPEN, CLOSE, USER = (SEGMENTS.index(name) for name in ("cot", "think_open", "think_close", "user"))
PLANTED = (1, 2)
LAYERS, HEADS = 6, 4
ALL_HEADS = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


def made_chats(n=30, thinking="on"):
    segments = np.array([USER] * 12 + [OPEN] * 2 + [COT] * (0 if thinking == "off" else 10) + [CLOSE] * 2)
    n_tokens = len(segments)
    return [Chat("", np.arange(n_tokens), segments, thinking, f"request {i}", n_tokens - 1) for i in range(n)]


def made_spans(chats, refused, rng):
    """Every head looks at the CoT a little; the planted one more where the answer complied."""
    mass = np.zeros((len(chats), LAYERS, HEADS, len(SEGMENTS)))
    mass[..., COT] = rng.uniform(0.1, 0.2, mass.shape[:3])
    mass[:, *PLANTED, COT] += np.where(refused, 0.0, 0.4)
    mass[..., USER] = 1 - mass.sum(-1)
    counts = np.array([[(c.segment_ids == s).sum() for s in range(len(SEGMENTS))] for c in chats], dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        lift = mass / (counts / counts.sum(1, keepdims=True))[:, None, None]
    modes = [c.thinking for c in chats]
    return SpanAttention(mass, lift, counts, [c.request for c in chats], modes, "decision", manifest=MANIFEST)


def made_heads(seed=0):
    """(SpanAttention, RefusalHeads) with one planted head; only the CoT contrast can be tested."""
    rng = np.random.default_rng(seed)
    chats, refused = made_chats(), np.arange(30) % 2 == 0
    spans = made_spans(chats, refused, rng)
    labels = ["refused" if one else "complied" for one in refused]
    return spans, find_refusal_heads(None, chats, labels, attention=spans, n_permutations=2000)


def made_head_test(seed=0, n=32, doses=(1, 2, 4)):
    """Ablation lowers score and refusal with the dose; controls do nothing."""
    rng = np.random.default_rng(seed)
    rows, controls, prompts = [], [], []
    for measure, is_share in (
        ("refusal score, harmful", False),
        ("refused, harmful", True),
        ("refused, harmless", True),
    ):
        for k in doses:
            if is_share:
                before = (rng.random(n) < 0.8).astype(float)
                after = before * (rng.random(n) > 0.15 * k)
                null = np.repeat(before[None], 20, axis=0)
                null[np.arange(20), rng.integers(0, n, 20)] = 0
            else:
                before = rng.normal(2, 1, n)
                after = before - k * rng.normal(0.8, 0.2, n)
                null = before + rng.normal(0, 0.3, (40, n)) + rng.normal(0, 0.2, (40, 1))
            where = {"change": "zero ablation", "k": k, "measure": measure}
            rows.append(where | set_effect(before, after, null, is_share=is_share, seed=seed))
            controls += [where | {"units": "L0H0", "effect": e} for e in (null - before).mean(axis=1)]
            values = {"prompt": np.arange(n), "before": before, "after": after, "control": null.mean(axis=0)}
            prompts.append(pd.DataFrame(where | values))
    table = pd.DataFrame(rows)
    table["q"] = table.groupby("measure", sort=False)["p"].transform(lambda p: benjamini_hochberg(p.to_numpy()))
    return AblationTest(
        table,
        pd.DataFrame(controls),
        pd.concat(prompts, ignore_index=True),
        [PLANTED, (2, 0), (3, 1), (4, 2)],
        "heads",
        "all",
        "two-sided",
        manifest=MANIFEST,
    )


def made_probe(seed=0):
    rng = np.random.default_rng(seed)
    labels = ["last request token", "<|im_end|>", "\n", "</script>"]
    rows = []
    for layer in range(LAYERS + 1):
        for position, token in enumerate(labels):
            area = 0.5 + 0.07 * layer * (position + 1) / 4 + rng.uniform(-0.02, 0.02)
            rows.append(
                {"kind": "supervised", "layer": layer, "position": position, "token": token, "auroc": area}
                | {
                    "auroc_low": area - 0.05,
                    "auroc_high": area + 0.05,
                    "d_prime": 1.0,
                    "d_prime_low": 0.5,
                    "d_prime_high": 1.5,
                }
                | {"p": 0.01, "q": 0.02, "n_refused": 20, "n_complied": 12}
            )
    direction = Direction(np.ones(3), 0.0, 1.0)
    return RefusalProbe(
        table=pd.DataFrame(rows),
        directions=np.zeros((LAYERS + 1, len(labels), 3)),
        unsupervised=None,
        positions=labels,
        layer=LAYERS,
        chosen=direction,
        controls=[direction],
        selected={"auroc": 0.9, "low": 0.8, "high": 0.97, "n": 32.0},
        n_folds=5,
        left_out=2,
        manifest=MANIFEST,
    )


def made_trace(seed=0):
    rng = np.random.default_rng(seed)
    x = (np.arange(10) + 0.5) / 10
    mean = 1 - x
    curve = pd.DataFrame(
        {"position": x, "mean": mean, "low": mean - 0.2, "high": mean + 0.2, "control_low": -0.3, "control_high": 0.3}
        | {"n": 12, "refused": mean + 0.3, "complied": np.nan, "n_refused": 12, "n_complied": 0}
    )
    layer, head = np.indices((LAYERS, HEADS)).reshape(2, -1)
    fall = rng.normal(0, 0.05, len(layer))
    fall[(layer == 1) & (head == 2)] = 0.6
    table = pd.DataFrame({"layer": layer, "head": head, "fall": fall, "low": fall - 0.1, "high": fall + 0.1})
    table["name"] = [f"L{i}H{j}" for i, j in zip(layer, head, strict=True)]
    table = table.assign(share=table["fall"] / 0.7, effect=1.0, p=0.5, q=np.where(fall > 0.5, 0.001, 0.8), n=12)
    table = table.sort_values("fall", ascending=False).reset_index(drop=True)
    chats = pd.DataFrame({"chat": range(12), "cliff": rng.random(12), "request": HOSTILE})
    return RefusalTrace(
        table, curve, chats, pd.DataFrame(), 0.7, rng.normal(0.2, 0.1, 50), 0.02, 4, 4, 1, manifest=MANIFEST
    )


def made_token_attention(seed=0):
    """One request in both modes under all heads; the planted head comes first."""
    texts = ["<|im_start|>", "user\n", "how", " to", HOSTILE, "<think>\n", "okay", "\n</think>", "\n\n"]
    segments = ["user"] * 5 + ["think_open", "cot", "think_close", "think_close"]
    spoken = pd.DataFrame({"chat": 1, "text": texts, "segment": segments})
    silent = spoken[spoken["segment"] != "cot"].assign(chat=0)
    heads = [PLANTED, *(head for head in ALL_HEADS if head != PLANTED)]
    rng = np.random.default_rng(seed)
    weights = [rng.dirichlet(np.full(len(rows), 0.5), len(heads)) for rows in (silent, spoken)]
    weights[1][0] = [0.3, 0.05, 0.05, 0.02, 0.2, 0.08, 0.2, 0.05, 0.05]
    chats = pd.DataFrame({"chat": [0, 1], "request": HOSTILE, "thinking": ["off", "on"], "note": ["", "refused"]})
    tokens = pd.concat([silent, spoken], ignore_index=True)
    return TokenAttention(np.concatenate(weights, axis=1).astype(np.float32), tokens, chats, heads, manifest=MANIFEST)


def head_effects(rng, planted, n=24):
    """[prompt, head]: noise, and `planted` at the planted head."""
    effect = rng.normal(0, 0.1, (n, len(ALL_HEADS)))
    effect[:, ALL_HEADS.index(PLANTED)] += planted
    return effect


def made_sweep(seed=0):
    """An ablation sweep that measured the planted head and every other second one."""
    effect = head_effects(np.random.default_rng(seed), -1.5)
    measured = sorted({ALL_HEADS.index(PLANTED), *range(0, len(ALL_HEADS), 2)})
    heads = [ALL_HEADS[i] for i in measured]
    table = effect_table(heads, effect[:, measured], n_tests=len(ALL_HEADS), n_permutations=500, seed=seed)
    table = ranked_by(table, table["effect"].abs().to_numpy())
    whole = np.full((len(effect), len(ALL_HEADS)), np.nan)
    whole[:, measured] = effect[:, measured]
    about = {"metric": "refusal score, ' I'", "method": "screened", "positions": "suffix", "why_plain": ""}
    grid = whole.reshape(-1, LAYERS, HEADS)
    return AblationSweep(table, grid, np.full(24, 2.0), grid, **about, manifest=MANIFEST)


def made_patching(seed=0):
    effect = head_effects(np.random.default_rng(seed), 0.8)
    gap = np.full(24, 2.0)
    table = effect_table(ALL_HEADS, effect, n_tests=len(ALL_HEADS), n_permutations=500, seed=seed)
    table = ranked_by(pd.concat([table, returned_table(effect, gap, seed)], axis=1), table["effect"].to_numpy())
    joint = np.stack([effect[:, :1].sum(1), effect[:, :2].sum(1), effect.sum(1)], axis=1)
    together = pd.DataFrame({"k": [1, 2, len(ALL_HEADS)], "n": 24, "effect": joint.mean(axis=0)})
    together = pd.concat([together, returned_table(joint, gap, seed)], axis=1)
    about = {
        "metric": "refusal score, ' I'",
        "positions": "decision",
        "n_positions": 1,
        "method": "exact",
        "why_plain": "",
    }
    grid = effect.reshape(-1, LAYERS, HEADS)
    return PatchingSweep(table, together, grid, np.full(24, 1.0), np.full(24, -1.0), **about, manifest=MANIFEST)


def made_interchange(seed=0):
    rng = np.random.default_rng(seed)
    sides = {"into_harmful": head_effects(rng, -1.0), "into_harmless": head_effects(rng, 0.9)}
    tables = []
    for name, effect in sides.items():
        table = effect_table(ALL_HEADS, effect, n_tests=len(ALL_HEADS), n_permutations=500, seed=seed)
        tables.append(ranked_by(table.assign(direction=name), table["effect"].abs().to_numpy()))
    pairs = pd.DataFrame(
        {"rank": [1], "intervention": "zero", "a": "L1H2", "b": "L2H0", "n": 24, "effect_a": -0.5, "effect_b": -0.1}
        | {"effect_both": -1.2, "interaction": -0.6, "low": -0.8, "high": -0.4, "p": 0.001, "q": 0.001}
    )
    about = {"metric": "refusal score, ' I'", "method": "exact", "why_plain": ""}
    grids = [effect.reshape(-1, LAYERS, HEADS) for effect in sides.values()]
    return InterchangeSweep(
        pd.concat(tables, ignore_index=True),
        pairs,
        *grids,
        np.full(24, 1.0),
        np.full(24, -1.0),
        **about,
        manifest=MANIFEST,
    )


def made_outcome_heads(seed=0):
    """Heads against the refusal score in place of labels."""
    rng = np.random.default_rng(seed)
    chats, refused = made_chats(), np.arange(30) % 2 == 0
    spans = made_spans(chats, refused, rng)
    return find_refusal_heads(None, chats, outcome=refused + rng.normal(0, 0.2, 30), attention=spans)


def made_inference():
    """Every inference-time result by the name it has in an audit."""
    spans, heads = made_heads()
    return {
        "refusal_heads": heads,
        "attention_by_score": made_outcome_heads(),
        "ablation": made_sweep(),
        "patching": made_patching(),
        "interchange": made_interchange(),
        "tokens": made_token_attention(),
        "span_attention": spans,
        "head_test": made_head_test(),
        "probe": made_probe(),
        "trace": made_trace(),
    }
