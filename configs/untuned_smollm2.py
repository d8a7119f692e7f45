"""A diffusion drafter that was never aligned: SmolLM2 as a masked LM.

Why: DiffuSpec drafts with a diffusion model as it was pretrained. This makes one
of the verifier itself (DiffuLLaMA, 2410.17891): its attention opens step by step
from causal to full, and the loss is the diffusion ELBO of whole texts. It is the
drafter for which a path search should matter most; `configs/diffuspec_smollm2.py`
has the same on a drafter that was aligned.

Cost: all 30 layers are trained; not measured. A cycle of `bench` runs drafter and verifier over the whole text, so
that it cannot be faster than plain decoding here: tau is what to look at.

Expected: every output is exact. tau is not measured at full length.

COMMAND (runs/greedy and runs/sampled: see configs/distill_smollm2.py):
  python -m specdiff_jax distill --config=configs/untuned_smollm2.py:gpu \
      --config.data=runs/greedy,runs/sampled --workdir=runs/untuned
  python -m specdiff_jax bench --config=configs/untuned_smollm2.py \
      --config.drafter=runs/untuned/drafter.safetensors
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
  config.anneal_fraction = 0.3
  config.network = ml_collections.ConfigDict({'kind': 'masked_lm'})
  config.masked_lm = ml_collections.ConfigDict({'mask_id': 16})
  config.learning_rate = 3e-4
  config.steps = 3 if smoke else 3000 if variant == 'gpu' else 400
  # What `bench` compares: the parts of DiffuSpec by themselves are variants of
  # configs/diffuspec_smollm2.py.
  config.drafter = 'random' if smoke else 'runs/untuned/drafter.safetensors'
  config.prompts = 'prompts/tiny.jsonl' if smoke else 'prompts/quickstart.jsonl'
  config.systems = ('ar', 'specdiff', 'best_first', 'diffuspec')
  config.diffuspec = ml_collections.ConfigDict({'k_min': 3})
  config.budget = 8  # of best_first: as many tokens verified
  return config
