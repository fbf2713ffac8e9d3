"""A recipe without faults, as text: tests put faults into it."""

from __future__ import annotations

GOOD = """\
name: good
about: a recipe without faults
model: upge_parts:data/lab/base
data: lab
reward: {use: exact, after: "="}
rollout: {engine: transformers, n: 4, temperature: 1.0, max_tokens: 16}
optimizer: {lr: 1e-4, clip_norm: 1.0}
train:
  steps: 10
  prompts: 8
eval: {splits: [test], n: 4, pass_at: [4]}
log: {folder: runs/good}
estimator:
  switch: {use: success_rate, threshold: 0.0, above: rl, otherwise: sft}
  terms:
    rl:
      source: rollouts
      mask: {use: clip, low: 0.2, high: 0.2}
      denominator: old
      advantage: {use: group_norm, epsilon: 1e-6}
      reduction: constant
    sft: {source: demonstrations, denominator: current, advantage: one, reduction: sequence_mean}
"""
