"""Every system that drafts by diffusion, on one model and its shipped drafters.

Why: the relatives side by side: same weights, same prompts, and the rule match,
which keeps the verifier's tokens, in all but deer, whose rule is rejection. `budget`
is what a tree verifies at once: compare best_first, lattice and tree at 5, 9, 17 and
33, and specdiff at gamma = budget - 1 as far as the drafter reaches. lattice has the
shipped Markov head, d2sd the shipped second drafter. Systems that want a drafter of
their own (dflash, mixture, eagle) join by `--config.systems` and `--config.drafters`.

Cost: not measured.

Expected: every output exact in float32; in bfloat16 those of trees, diffuspec and
adaptive up to near-ties, which `bench` counts; deer's above temperature 0 in
distribution.

COMMAND:
  python -m specdiff_jax bench --config=configs/relatives.py
  python -m specdiff_jax bench --config=configs/relatives.py \
      --config.temperature=1.0 --config.budget=33
  python -m specdiff_jax bench --config=configs/relatives.py \
      --config.dtype=float32 --config.prompts=humaneval.jsonl --config.limit=32
"""

import ml_collections

import specdiff_jax as sd


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'smoke' takes a prompt and a few tokens."""
  config = sd.load_config('quickstart' + (variant and f':{variant}'))
  config.systems = (
    'ar', 'lookup', 'sps', 'specdiff', 'deer', 'specdiff2', 'tree',
    'best_first', 'lattice', 'd2sd', 'diffuspec', 'adaptive', 'early_exit',
  )  # fmt: skip
  config.head = 'smollm2_135m_instruct_markov.safetensors'
  second = 'smollm2_135m_instruct_second.safetensors'
  config.drafters.d2sd = {'first': config.drafter, 'second': second}
  config.gamma = 7
  config.drafts = 4
  config.budget = 9
  config.candidates = 8
  config.frontier = 8
  config.rounds = 1
  return config
