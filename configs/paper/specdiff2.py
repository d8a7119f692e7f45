"""SpecDiff-2's own pairs of models (arXiv 2511.00606), with its settings.

Why: the tables of the paper, for whoever has its machines. The variants are its
verifiers: `qwen72b` (also the default) and `qwen14b` with DiffuCoder-7B and
windows of 32, `llama70b` and `llama13b` with DiffuLLaMA-7B and windows of 16; one
denoising pass, drafts at temperature 1.5, K up to 8. `specdiff` is one chain (the
paper's unaligned drafter, unless a distilled one is given), `specdiff2` K chains
of which the verifier selects one, `tree` all of them merged. docs/results.md
asks the paper's claims of a small model.

Cost: not measured: nothing was run.

Expected: compiled by `aot`, a chip of v5p:2x2x2 holds 18 of its 96 GiB of
llama70b, and of 2x2x1 10 of llama13b (--config.mesh=1,4); a cycle is worth 4.3
and 7.0 plain steps there (docs/results.md). The paper's speed-ups for
Qwen2.5-72B are 4.6 on MATH-500 and 5.0 on HumanEval at temperature 0, with a
drafter that was distilled for it; its drafters before that reach 3.2 on MATH-500.

COMMAND (of one pair, the others by their variants; with its weights a table, and the
grid of Figure 5):
  python -m specdiff_jax aot --config=configs/paper/specdiff2.py:qwen72b \
      --topology=v5p:2x2x2 --program=decode
  python -m specdiff_jax bench --config=configs/paper/specdiff2.py:qwen72b \
      --config.verifier=models/Qwen2.5-72B-Instruct \
      --config.drafter=models/DiffuCoder-7B-Instruct --suite=math500 \
      --path=math500.jsonl --out=runs/paper/math500.json
  python -m specdiff_jax bench --config=configs/paper/specdiff2.py:qwen72b \
      --config.verifier=models/Qwen2.5-72B-Instruct \
      --config.drafter=models/DiffuCoder-7B-Instruct --suite=math500 \
      --path=math500.jsonl --systems=ar,specdiff2 --grid=drafts=1,2,4,8 \
      --grid=draft_temperature=0.5,1.0,1.5,2.0 --out=runs/paper/figure5
"""

import ml_collections

import specdiff_jax as sd

# Verifier, drafter, family of the drafter where its config.json has none, window.
PAIRS = {
  'qwen72b': ('qwen2.5_72b', 'dream_7b', '', 32),  # DiffuCoder is a Dream
  'qwen14b': ('qwen2.5_14b', 'dream_7b', '', 32),
  'llama70b': ('llama2_70b', 'diffullama_7b', 'diffullama', 16),
  'llama13b': ('llama2_13b', 'diffullama_7b', 'diffullama', 16),
}


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe of a pair; 'smoke' runs it on the random tiny verifier."""
  known = ('', *PAIRS, 'smoke')
  if variant not in known:
    raise ValueError(f'the variants are {known}, not {variant!r}')
  if variant == 'smoke':
    config = sd.load_config('llama2_70b_diffullama:smoke')
    config.systems = ('ar', 'specdiff', 'specdiff2', 'tree')
    return config
  verifier, drafter, family, gamma = PAIRS[variant or 'qwen72b']
  config = sd.load_config('llama2_70b_diffullama')
  config.verifier = f'preset:{verifier}'
  config.drafter = f'preset:{drafter}'
  config.masked_lm.family = family
  config.system = 'specdiff2'
  config.systems = ('ar', 'specdiff', 'specdiff2', 'tree')
  config.batch = 1
  config.gamma = gamma
  config.drafts = 8
  config.budget = 1 + 8 * gamma  # of `tree`: as many tokens as `specdiff2`
  config.draft_temperature = 1.5
  config.mesh = (1, 8)
  config.limit = 0
  return config
