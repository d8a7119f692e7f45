"""Qwen2.5-72B with a drafter of 7B that reads its features, on TPU v5p.

Why: the scale of SpecDiff-2 (arXiv 2511.00606), whose drafters of 7B serve
verifiers of 32B to 72B. This one has layers of the verifier's width, starts as
its last layers and reads five others; its window of 32 tokens is drafted in one
pass, and 8 drafts are verified together.

Cost: shapes only so far; nothing was trained. Compiled, a step of 64 rows on
v5p:4x4x4 takes 44.1 of a chip's 95.7 GiB and 3.86e14 FLOPs, and moves 130 GiB;
with fsdp=True 22.9 GiB and 149 (16 rows on 16 chips 32.6 GiB, 256 rows on 256
20.5, as many FLOPs). A decode cycle of 16 rows on v5p:2x2x4 takes 27.1 GiB.
With weights, give `verifier` their directory, and `data` what `collect` wrote.

Expected: `aot` ends with fits=true for both.

COMMAND:
  python -m specdiff_jax aot --config=configs/qwen2_5_72b_7b.py \
      --topology=v5p:4x4x4
  python -m specdiff_jax aot --config=configs/qwen2_5_72b_7b.py \
      --topology=v5p:2x2x4 --program=decode --config.batch=16
  python -m specdiff_jax distill --config=configs/qwen2_5_72b_7b.py \
      --config.verifier=models/Qwen2.5-72B-Instruct \
      --config.data=runs/trajectories --workdir=runs/qwen
"""

import ml_collections


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'smoke' runs it on the random tiny verifier."""
  if variant not in ('', 'smoke'):
    raise ValueError(f'the variants are "" and "smoke", not {variant!r}')
  smoke = variant == 'smoke'
  config = ml_collections.ConfigDict()
  config.verifier = 'random:tiny' if smoke else 'preset:qwen2.5_72b'
  config.drafter = 'random'
  config.system = 'tree'
  config.dtype = 'float32' if smoke else 'bfloat16'
  config.exact = False
  config.batch = 4 if smoke else 64
  config.temperature = 0.0
  config.top_k = 0
  config.top_p = 1.0
  config.seed = 0
  config.max_new_tokens = 8 if smoke else 4096
  config.prompt_buckets = (64, 256) if smoke else (4096,)
  config.gamma = 4 if smoke else 32
  config.drafts = 2 if smoke else 8
  config.budget = 9 if smoke else 257
  config.chat = not smoke
  config.data = 'prompts/tiny.jsonl'
  config.loss = 'streak'
  config.steps = 3 if smoke else 20_000
  config.learning_rate = 3e-4
  config.mesh = (-1, 1) if smoke else (-1, 8)
  config.tokens = 96 if smoke else 2048
  config.windows = 8 if smoke else 64
  config.vocab_block = 0 if smoke else 8192
  config.network = ml_collections.ConfigDict(
    {
      'layers': 1 if smoke else 7,
      'features': () if smoke else (1, 20, 39, 58, 77),
      'trunk': 64 if smoke else 4096,
      'vocab': 257 if smoke else 32768,
      'ngram': 3,
    }
  )
  config.feature_cache = 4000 if smoke else 0
  config.eval_fraction = 0.2 if smoke else 0.01
  config.eval_every = 0 if smoke else 500
  config.save_every = 0 if smoke else 500
  return config
