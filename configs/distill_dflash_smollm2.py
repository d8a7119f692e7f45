"""DFlash, trained here: blocks of masks over the verifier's features.

Why: DFlash (2602.06036) is the drafter that most of 2026 builds on, and that
vLLM, SGLang and llama.cpp serve. This one learns from the trajectories of
configs/distill_smollm2.py, with that drafter's layers and draft vocabulary, so
that the two compare; `convert --format=dflash` gives it to other
programs. The variant `second` is D2SD's second drafter (2606.04446): blocks
that show it a prefix. Its layers start as the verifier's last ones, its mask is
a token that no text has (SmolLM2's <empty_output>, 16).

Cost: not measured at full length; `smoke` a minute on two busy CPU cores.

Expected: not measured at full length; a held-out tau of 1.24 after 260 steps on two CPU
cores (docs/log.md).

COMMAND (runs/greedy and runs/sampled: see configs/distill_smollm2.py):
  python -m specdiff_jax distill --config=configs/distill_dflash_smollm2.py:gpu \
      --config.data=runs/greedy,runs/sampled --workdir=runs/dflash
  python -m specdiff_jax distill \
      --config=configs/distill_dflash_smollm2.py:second \
      --config.data=runs/greedy,runs/sampled --workdir=runs/second
  python -m specdiff_jax bench --config=configs/quickstart.py \
      --config.drafter=runs/dflash/drafter.safetensors
"""

import ml_collections

import specdiff_jax as sd

VARIANTS = ('', 'gpu', 'second', 'smoke')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'gpu' is for one large GPU, 'smoke' is tiny.

  'second' trains the second drafter of the system d2sd, from the first or, as
  here, from the verifier.
  """
  if variant not in VARIANTS:
    raise ValueError(f'the variants are {VARIANTS}, not {variant!r}')
  smoke = variant == 'smoke'
  base = variant if variant in ('gpu', 'smoke') else ''
  config = sd.load_config(
    f'distill_smollm2:{base}' if base else 'distill_smollm2'
  )
  config.loss = 'decayed_ce'
  config.decay = 4.0  # 7 for blocks of 16, 5 for 10, 4 for 8
  config.learning_rate = 3e-3 if smoke else 6e-4
  config.masked_lm = ml_collections.ConfigDict({'mask_id': 16})
  config.network = ml_collections.ConfigDict(
    {
      'kind': 'dflash',
      'layers': 2,
      'features': () if smoke else (1, 10, 18, 27, 29),
      'vocab': 6144,
    }
  )
  if variant == 'second':
    config.loss = 'variable_prefix'
    config.prefix_base = 0.9
  return config
