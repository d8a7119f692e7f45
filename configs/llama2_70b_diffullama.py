"""LLaMA-2-70B with DiffuLLaMA-7B as it was published, on TPU v5p.

Why: the pair of SpecDiff-2's family that needs no training at all: DiffuLLaMA
(arXiv 2410.17891) is LLaMA-2-7B turned into a diffusion model, so that both
have one vocabulary. It is bidirectional: every cycle reads the last
`context_window` tokens again.

Cost: shapes only so far. On a machine with the weights, give `verifier` and
`drafter` their directories.

Expected: `aot` ends with fits=true: a chip of v5p:2x2x4 holds 18 GiB of its 95.

COMMAND:
  python -m specdiff_jax aot --config=configs/llama2_70b_diffullama.py \
      --topology=v5p:2x2x4 --program=decode
  python -m specdiff_jax bench --config=configs/llama2_70b_diffullama.py \
      --config.verifier=models/Llama-2-70b-chat-hf \
      --config.drafter=models/diffullama
"""

import ml_collections


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'smoke' runs it on the random tiny verifier."""
  if variant not in ('', 'smoke'):
    raise ValueError(f'the variants are "" and "smoke", not {variant!r}')
  smoke = variant == 'smoke'
  config = ml_collections.ConfigDict()
  config.verifier = 'random:tiny' if smoke else 'preset:llama2_70b'
  config.drafter = 'random' if smoke else 'preset:diffullama_7b'
  config.masked_lm = ml_collections.ConfigDict({'family': 'diffullama'})
  config.system = 'tree'
  config.systems = ('ar', 'specdiff', 'tree')
  config.dtype = 'float32' if smoke else 'bfloat16'
  config.exact = smoke
  config.batch = 4 if smoke else 16
  config.temperature = 0.0
  config.top_k = 0
  config.top_p = 1.0
  config.seed = 0
  config.max_new_tokens = 8 if smoke else 1024
  config.prompt_buckets = (64, 256) if smoke else (1024, 2048)
  config.gamma = 4 if smoke else 16
  config.drafts = 2 if smoke else 8
  config.budget = 9 if smoke else 64
  config.context_window = 0 if smoke else 512
  config.mesh = (-1, 1) if smoke else (-1, 8)  # of `aot`
  config.decode_mesh = (1, 1) if smoke else (1, 8)  # of `bench`
  config.chat = not smoke
  config.prompts = 'prompts/tiny.jsonl'
  config.limit = 2 if smoke else 8
  config.rounds = 1 if smoke else 3
  config.ar_dtypes = ('float32',) if smoke else ('bfloat16',)
  config.network = ml_collections.ConfigDict(
    {'layers': 1, 'trunk': 64, 'vocab': 257, 'ngram': 3}
  )
  return config
