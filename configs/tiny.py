"""Tiny: a random verifier and all the machinery, in seconds, with no files.

Why: to see every part run, and for the tests. A random model has nothing to
say, so only exactness and tau mean something here, not the speed: on a model
this small every cycle costs more than it saves.

Cost: `bench` half a minute, `distill` under a minute, on 2 CPU cores.

Expected: every system exact. Untrained drafts are almost never accepted; after
`distill`, which first collects the verifier's completions, tau rises.

COMMAND:
  python -m specdiff_jax bench --config=configs/tiny.py
  python -m specdiff_jax distill --config=configs/tiny.py --workdir=runs/tiny
  python -m specdiff_jax bench --config=configs/tiny.py \
      --config.drafter=runs/tiny/drafter.safetensors
"""

import ml_collections


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'smoke' shrinks it further."""
  if variant not in ('', 'smoke'):
    raise ValueError(f'the variants are "" and "smoke", not {variant!r}')
  smoke = variant == 'smoke'
  config = ml_collections.ConfigDict()
  # The model and how it decodes.
  config.verifier = 'random:tiny'
  config.drafter = 'random'
  config.system = 'specdiff'
  config.dtype = 'float32'
  config.exact = True
  config.batch = 4
  config.temperature = 0.0
  config.top_k = 0
  config.top_p = 1.0
  config.seed = 0
  config.max_new_tokens = 8 if smoke else 32
  config.prompt_buckets = (64, 256)
  config.gamma = 4
  config.chat = False
  # What `bench` compares.
  config.prompts = 'prompts/tiny.jsonl'
  config.limit = 2 if smoke else 8
  config.systems = ('ar', 'lookup', 'specdiff')
  config.rounds = 1 if smoke else 3
  config.ar_dtypes = ('float32',)
  # What `distill` does; it reads `verifier`, `batch`, `gamma`, `seed` too.
  config.data = 'prompts/tiny.jsonl'
  config.loss = 'streak'
  config.steps = 3 if smoke else 40
  config.learning_rate = 3e-3
  config.mesh = (-1, 1)
  config.tokens = 96
  config.windows = 8
  config.network = ml_collections.ConfigDict(
    {'layers': 1, 'trunk': 64, 'vocab': 257, 'ngram': 3}
  )
  config.eval_fraction = 0.2
  config.eval_every = 0
  config.save_every = 0
  return config
