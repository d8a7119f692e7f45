"""DEER: drafts that are drawn, and accepted by min(1, p / q).

Why: DEER (2512.15176) trains a diffusion drafter in two stages, the second on
the end of a text alone, with more weight on what is just behind the prefix (loss
suffix), and verifies what it draws by rejection. Stage I is any drafter with a
plain loss; here the recipe goes on from the one that is shipped. Beside it stands
the rule match on the same drafter, which keeps the verifier's own draws.

Cost: a step is one of configs/distill_smollm2.py.

Expected: at temperature 0 the same tokens as plain decoding; above it, the
verifier's distribution (its tokens are not those that plain decoding draws from
the same seed: that is match's). tau is not measured at full length.

COMMAND (runs/greedy and runs/sampled: see configs/distill_smollm2.py):
  python -m specdiff_jax distill --config=configs/deer_smollm2.py:gpu \
      --config.data=runs/greedy,runs/sampled --workdir=runs/deer
  python -m specdiff_jax bench --config=configs/deer_smollm2.py \
      --config.drafter=runs/deer/drafter.safetensors
"""

import ml_collections

import specdiff_jax as sd


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'gpu' is for one large GPU, 'smoke' is tiny."""
  config = sd.load_config('distill_smollm2' + (variant and f':{variant}'))
  smoke, drafter = variant == 'smoke', 'smollm2_135m_instruct.safetensors'
  # What `distill` does: stage II.
  config.start_from = '' if smoke else drafter
  config.loss = 'suffix'
  config.suffix_base = 1.01
  config.learning_rate = 2e-4
  config.steps = 3 if smoke else 600
  # What `bench` compares.
  config.system = 'deer'
  config.systems = ('ar', 'specdiff', 'deer')
  config.drafter = 'random' if smoke else drafter
  config.temperature = 1.0
  config.prompts = 'prompts/tiny.jsonl' if smoke else 'prompts/quickstart.jsonl'
  return config
