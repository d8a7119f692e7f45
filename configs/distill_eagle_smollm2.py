"""EAGLE-3, trained here: one layer that drafts on from its own outputs.

Why: EAGLE-3 (2503.01840) with EAGLE-2's tree (2406.16858) is the autoregressive
baseline of the papers of this field. This one learns from the trajectories of
configs/distill_smollm2.py, with that drafter's draft vocabulary, steps and
batches, as configs/distill_dflash_smollm2.py does: it has one layer for two, of
which each is run for every token of a window in turn, and a head of its own,
which starts as the verifier's. The loss is the paper's: cross-entropy against the
verifier's distribution, with weights 0.8^(j-1).

Cost: not measured at full length; `smoke` a minute on two busy CPU cores.

Expected: not measured at full length.

COMMAND (runs/greedy and runs/sampled: see configs/distill_smollm2.py):
  python -m specdiff_jax distill --config=configs/distill_eagle_smollm2.py:gpu \
      --config.data=runs/greedy,runs/sampled --workdir=runs/eagle
  python -m specdiff_jax bench --config=configs/quickstart.py \
      --config.drafters.eagle=runs/eagle/drafter.safetensors \
      --systems=ar,eagle,specdiff --config.budget=17
"""

import math

import ml_collections

import specdiff_jax as sd


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'gpu' is for one large GPU, 'smoke' is tiny."""
  if variant not in ('', 'gpu', 'smoke'):
    raise ValueError(f'the variants are "", "gpu" and "smoke", not {variant!r}')
  smoke = variant == 'smoke'
  config = sd.load_config(
    f'distill_smollm2:{variant}' if variant else 'distill_smollm2'
  )
  config.loss = 'decayed_kl'
  config.decay = -1 / math.log(0.8)
  config.learning_rate = 3e-3 if smoke else 6e-4
  config.network = ml_collections.ConfigDict(
    {
      'kind': 'eagle',
      'features': () if smoke else (1, 14, 26),
      'vocab': 6144,
    }
  )
  return config
