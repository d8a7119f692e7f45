"""Quickstart: SmolLM2-135M-Instruct decodes faster, and says the same.

Why: the first look. A real verifier, a drafter that this repository trained
for it by streak-distillation (specdiff_jax/zoo), and the two baselines: plain
decoding and prompt lookup.

Cost: 2.4 minutes on 2 CPU cores once installed, 1.7 when run again: half of it
is compilation, which launch/quickstart.sh keeps. Installation and a download of
93 MB come before.

Expected: all exact. On GSM8K's test prompts specdiff is twice as fast as plain
decoding in bfloat16, tau 2.8, lookup 1.3 times (see the README and
docs/results.md); the three prompts here are a first look.

COMMAND:
  python -m specdiff_jax bench --config=configs/quickstart.py
"""

import ml_collections


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'smoke' takes a prompt and a few tokens."""
  if variant not in ('', 'smoke'):
    raise ValueError(f'the variants are "" and "smoke", not {variant!r}')
  smoke = variant == 'smoke'
  config = ml_collections.ConfigDict()
  # The model and how it decodes.
  config.verifier = 'quickstart'
  config.drafter = 'smollm2_135m_instruct.safetensors'  # in specdiff_jax/zoo
  config.drafters = ml_collections.ConfigDict(
    {'sps': 'smollm2_135m_instruct_sps.safetensors'}
  )
  config.system = 'specdiff'
  config.dtype = 'bfloat16'
  config.exact = True
  config.batch = 1
  config.temperature = 0.0
  config.top_k = 0
  config.top_p = 1.0
  config.seed = 0
  config.max_new_tokens = 16 if smoke else 96
  config.prompt_buckets = (128, 256, 512)
  config.gamma = 4  # of the 7 it was trained for: fastest on two CPU cores
  config.budget = 5  # of trees: as many tokens as a chain of 4, and as fast
  config.chat = True
  # What `bench` compares.
  config.prompts = 'prompts/quickstart.jsonl'
  config.limit = 1 if smoke else 3
  config.systems = ('ar', 'lookup', 'specdiff')
  config.rounds = 1 if smoke else 2
  config.ar_dtypes = ('float32', 'bfloat16')
  return config
