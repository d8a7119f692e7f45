"""How the autoregressive baseline's drafter was made (system sps).

Why: SpS (2302.01318), a small autoregressive drafter, is what every paper of
this field compares with. This one has the size, data, steps and draft vocabulary of
the diffusion drafter's first stage (`gpu`), and about its compute, so that the two
differ in how they draft. configs/distill_smollm2.py makes the trajectories. Its
layers start as the verifier's 0, 1 and 29: of four choices that had the lowest
loss after 30 steps of 4 trajectories (4.55; layers 0, 28, 29 4.88; 0, 1, 2
5.31; 27, 28, 29 5.70).

Cost: `gpu`, on one H100 beside the other drafter's training: 3000 steps in 4.8
minutes. Plain, on 2 CPU cores beside other work: 1160 steps in 62 minutes.
There are no features to compute. A step has 1.93e11 FLOPs for 8 trajectories,
one of configs/distill_smollm2.py 1.97e11 beside the verifier's.

Expected: `gpu`: simulated tau 2.91 on 96 held-out trajectories of both
temperatures, gamma 4. Plain: 1.63 on 24 greedy ones after 100 steps, 1.91 after
300, 2.12 after 600 and at the end: that it stays there while the loss goes on
falling says that it has learned these texts by heart.

COMMAND (runs/greedy and runs/sampled: see configs/distill_smollm2.py):
  python -m specdiff_jax distill --config=configs/distill_sps_smollm2.py:gpu \
      --config.data=runs/greedy,runs/sampled --workdir=runs/distill_sps
  python -m specdiff_jax bench --config=configs/quickstart.py \
      --config.drafters.sps=runs/distill_sps/drafter.safetensors \
      --systems=ar,sps,specdiff
"""

import ml_collections

import specdiff_jax as sd


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'gpu' is for one large GPU, 'smoke' is tiny."""
  if variant not in ('', 'gpu', 'smoke'):
    raise ValueError(f'the variants are "", "gpu" and "smoke", not {variant!r}')
  smoke = variant == 'smoke'
  config = ml_collections.ConfigDict()
  # The model, and how `distill` collects what is not there yet.
  config.verifier = 'random:tiny' if smoke else 'quickstart'
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
  config.data = 'prompts/tiny.jsonl' if smoke else 'runs/trajectories'
  config.eval_prompts = ('prompts/quickstart.jsonl',)
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
  if variant == 'gpu':
    plain, gpu = (sd.load_config(f'distill_smollm2{v}') for v in ('', ':gpu'))
    config.update({n: v for n, v in gpu.items() if plain.get(n) != v})
  return config
