"""Llama-3.1-8B with a drafter of DFlash's shape: what a cycle costs on chips.

Why: the pair of sizes that users of such systems serve most. `aot` says what a
cycle, a prefill and plain decoding move of HBM on chips that are not here, how
far that is from the least, and what speed-up a tau would give. `config.system`
may be `specdiff` (a chain of DFlash's block), `best_first` or `ar`.

Cost: shapes only; a minute of compiling a program on two CPU cores. With
weights, give `verifier` and `drafter` their directories.

Expected: `aot` ends with fits=true.

COMMAND:
  python -m specdiff_jax aot --config=configs/llama3_1_8b_dflash.py \
      --topology=v5p:2x2x1 --program=decode --tau=4
  python -m specdiff_jax aot --config=configs/llama3_1_8b_dflash.py \
      --topology=v5e:2x2 --program=prefill --config.prompt_buckets='(32768,)'
  python -m specdiff_jax bench --config=configs/llama3_1_8b_dflash.py \
      --config.verifier=models/Llama-3.1-8B-Instruct \
      --config.drafter=models/LLaMA3.1-8B-Instruct-DFlash
"""

import ml_collections


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'smoke' runs it on the random tiny verifier."""
  if variant not in ('', 'smoke'):
    raise ValueError(f'the variants are "" and "smoke", not {variant!r}')
  smoke = variant == 'smoke'
  config = ml_collections.ConfigDict()
  config.verifier = 'random:tiny' if smoke else 'preset:llama3.1_8b'
  config.drafter = 'random' if smoke else 'preset:dflash'
  config.system = 'specdiff'
  config.systems = ('ar', 'specdiff', 'best_first')
  config.dtype = 'float32' if smoke else 'bfloat16'
  config.exact = False
  config.batch = 4 if smoke else 1
  config.temperature = 0.0
  config.top_k = 0
  config.top_p = 1.0
  config.seed = 0
  config.max_new_tokens = 8 if smoke else 1024
  config.prompt_buckets = (64, 256) if smoke else (7168,)
  config.gamma = 4 if smoke else 15
  config.budget = 9 if smoke else 64
  config.mesh = (-1, 1) if smoke else (1, -1)
  config.chat = not smoke
  config.prompts = 'prompts/tiny.jsonl'
  config.limit = 2 if smoke else 8
  config.rounds = 1 if smoke else 3
  config.ar_dtypes = ('float32',) if smoke else ('bfloat16',)
  config.network = ml_collections.ConfigDict(
    {'layers': 1, 'trunk': 64, 'vocab': 257, 'ngram': 3}
  )
  return config
