"""How the autoregressive baseline's drafter was made (system sps).

Why: SpS (2302.01318), a small autoregressive drafter, is what every paper of
this field compares with. This one has the size of the shipped diffusion
drafter, its data, its draft vocabulary and about its compute, so that the two
differ in how they draft. Copy it together with configs/distill_smollm2.py,
which makes the trajectories. Its layers start as the verifier's 0, 1 and 29: of
four choices that had the lowest loss after 30 steps of 4 trajectories (4.55;
layers 0, 28, 29 4.88; 0, 1, 2 5.31; 27, 28, 29 5.70).

Cost: 62 minutes for all 1160 steps on 2 CPU cores beside other work, of which
the first 160 took 3, with the machine to themselves. There are no features to
compute. A step has 1.93e11 FLOPs, one of configs/distill_smollm2.py 1.97e11.

Expected: simulated tau 1.63 on 24 held-out trajectories after 100 steps, 1.91
after 300, 2.12 after 600 and at the end, gamma 4. That it stays there while the
loss goes on falling says that it has learned these texts by heart: more
trajectories are the first thing to add.

COMMAND (runs/trajectories: see configs/distill_smollm2.py):
  python -m specdiff_jax distill --config=configs/distill_sps_smollm2.py \
      --config.data=runs/trajectories --workdir=runs/distill_sps
  python -m specdiff_jax bench --config=configs/quickstart.py \
      --config.drafters.sps=runs/distill_sps/drafter.safetensors \
      --systems=ar,sps,specdiff
"""

import pathlib

import ml_collections

_HERE = pathlib.Path(__file__).resolve().parent


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'smoke' runs it on the random tiny verifier."""
  if variant not in ('', 'smoke'):
    raise ValueError(f'the variants are "" and "smoke", not {variant!r}')
  smoke = variant == 'smoke'
  config = ml_collections.ConfigDict()
  # The model, and how `distill` collects what is not there yet.
  config.verifier = 'random:tiny' if smoke else 'quickstart'
  config.cache_dir = str(_HERE.parent / 'runs' / 'verifier')
  config.drafter = ''
  config.system = 'lookup'
  config.dtype = 'float32'
  config.exact = True
  config.batch = 4 if smoke else 8
  config.temperature = 0.0
  config.top_k = 0
  config.top_p = 1.0
  config.seed = 0
  config.max_new_tokens = 8 if smoke else 128
  config.prompt_buckets = (64, 128, 256, 512)
  config.gamma = 4  # drafted at once where tau is simulated; training has none
  config.chat = not smoke
  # What `distill` does.
  config.data = (
      str(_HERE / 'prompts' / 'tiny.jsonl') if smoke else 'runs/trajectories'
  )
  config.eval_prompts = (str(_HERE / 'prompts' / 'quickstart.jsonl'),)
  config.loss = 'ce'
  config.steps = 3 if smoke else 1160
  config.learning_rate = 8e-4
  config.mesh = (-1, 1)
  config.tokens = 96 if smoke else 288
  config.windows = 8 if smoke else 128  # all positions of the completions
  config.network = ml_collections.ConfigDict(
      {
          'kind': 'autoregressive',
          'layers': 3,
          'start': () if smoke else (0, 1, 29),
          'vocab': 6144,
      }
  )
  config.eval_fraction = 0.2 if smoke else 0.02
  config.eval_limit = 24
  config.eval_every = 0 if smoke else 100
  config.save_every = 0 if smoke else 100
  return config
