"""SpecDiff: a drafter that was trained to fill its window in several passes.

Why: SpecDiff (2408.05636) lets the drafter look again: each pass decides a part
of the window, and the next one sees it. That wants a drafter trained on windows
that are partly revealed (loss elbo), which this makes; the shipped one saw only
whole masks. `config.denoising_order` (confidence, entropy, random) is what a pass
decides first. At equal cost, two passes of a window compete with one of a drafter
that is twice as large, or simply with a faster cycle.

Cost: training that of configs/distill_smollm2.py, whose network it is. A cycle runs the drafter once a pass.

Expected: every output is exact. 300 steps from the shipped drafter: two passes
gain at most 3 % in tau over one, and stay below the shipped one's (docs/results.md).

COMMAND (runs/greedy and runs/sampled: see configs/distill_smollm2.py):
  python -m specdiff_jax distill --config=configs/specdiff_smollm2.py:gpu \
      --config.data=runs/greedy,runs/sampled --workdir=runs/specdiff
  python -m specdiff_jax bench --config=configs/specdiff_smollm2.py
  python -m specdiff_jax bench --config=configs/specdiff_smollm2.py \
      --config.denoising_steps=1
"""

import ml_collections

import specdiff_jax as sd


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'gpu' is for one large GPU, 'smoke' is tiny."""
  config = sd.load_config('distill_smollm2' + (variant and f':{variant}'))
  smoke = variant == 'smoke'
  # What `distill` does.
  config.loss = 'elbo'
  config.noise_schedule = 'linear'
  # What `bench` compares.
  config.system = 'specdiff'
  config.systems = ('ar', 'specdiff', 'best_first')
  config.drafter = 'random' if smoke else 'runs/specdiff/drafter.safetensors'
  config.denoising_steps = 2
  config.denoising_order = 'confidence'
  config.budget = 8  # of best_first: as many tokens verified
  config.prompts = 'prompts/tiny.jsonl' if smoke else 'prompts/quickstart.jsonl'
  return config
