"""A head of the shipped drafter, and trees whose edges know their parent.

Why: a window's slots are drafted independently of each other's tokens. A head of
rank 64 says what a token adds to the scores of the next one (DSpark's Markov
head; `head_kind` has two others), the drafter stays as it is, and the system
`lattice` verifies the likeliest prefixes under both (PCTree). It is the recipe
for a head of your own drafter: change `verifier`, `start_from`, `drafter` and
the data. Losses: decayed cross-entropy, or loss=dspark (a tenth of it, and the
L1 distance to the verifier's distribution; with stored_law=True from what
`collect` stored).

Cost: a step runs the frozen drafter once, without its backward pass. The head
has 2 x 64 numbers for each token: 3.7 million here, 7 MB.

Expected: `tau_eval` is that of the chain of likeliest tokens, each given the one
before: at step 0 the drafter's own on these texts, which the head then has to
beat. In `bench` the row `lattice` is to be compared with `best_first`
at the same budget. 200 steps of 8 on 764 texts of all kinds (a CPU, minutes): 2.2 %
more tokens than the best-first tree of 17 (docs/results.md); on 565 texts and the
drafter that was shipped before, nothing (docs/log.md). A run on a GPU is still to come.

COMMAND (the first benches the shipped head, the others train one and bench it;
runs/greedy and runs/sampled: see configs/distill_smollm2.py):
  python -m specdiff_jax bench --config=configs/head_smollm2.py --limit=8
  python -m specdiff_jax distill --config=configs/head_smollm2.py:gpu \
      --config.data=runs/greedy,runs/sampled --workdir=runs/head
  python -m specdiff_jax bench --config=configs/head_smollm2.py \
      --config.head=runs/head/head.safetensors --limit=8
"""

import ml_collections

import specdiff_jax as sd


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'gpu' is for one large GPU, 'smoke' is tiny."""
  config = sd.load_config('distill_smollm2' + (variant and f':{variant}'))
  smoke, drafter = variant == 'smoke', 'smollm2_135m_instruct.safetensors'
  if smoke:
    drafter = 'runs/tiny/drafter.safetensors'  # of configs/tiny.py:smoke
    config.gamma = 4
  # What `distill` does.
  config.start_from = drafter
  config.head_kind = 'markov'
  config.head_rank = 4 if smoke else 64
  config.loss = 'decayed_ce'
  config.learning_rate = 2e-3
  config.steps = 3 if smoke else 600
  # What `bench` compares, at one budget.
  config.prompts = 'prompts/tiny.jsonl' if smoke else 'prompts/quickstart.jsonl'
  config.drafter = drafter
  config.head = '' if smoke else 'smollm2_135m_instruct_markov.safetensors'
  config.systems = ('ar', 'specdiff', 'best_first', 'lattice')
  config.budget = 8 if smoke else 17
  config.candidates = 8
  config.frontier = 8
  return config
