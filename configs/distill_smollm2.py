"""How the quickstart's drafter was made: collect, then distill.

Why: the recipe behind specdiff_jax/zoo/smollm2_135m_instruct.safetensors, and
the one to copy for a drafter of your own model: change `verifier` and the
prompts, keep the rest. The variant `gpu` is how the shipped one began, on
mathematics; `domains` how it went on, with prompts of all kinds, on two CPU cores;
the plain recipe is the first on two CPU cores, with a sixth of the prompts.

Cost: `gpu`, on one H100 that did other work too: 2.7 million tokens in 3.6
minutes with compilation, both collections at once; 3000 steps in 6.7 minutes
with compilation (22 steps a second and 128 TFLOP/s while it was alone). Plain,
on 2 CPU cores beside other work: 145k tokens in 27 minutes, and in 57 the 1160
of 1800 steps after which it was stopped; 18 of these the first epoch, which
runs the verifier for its features.

Expected: `gpu`: tau 3.28 on 96 held-out trajectories of both temperatures (2.56
after 300 steps, 3.12 after 1500, flat from 2400 on). Plain: tau 2.61 on 24
greedy ones after 1100 steps, still rising, while on its own training text it
was far ahead: it had too few trajectories. `domains`: on 2 CPU cores beside other
work 219k tokens in 46 minutes, 600 steps in 38 (25 of these the first epoch); tau
2.58, 2.60, 2.72, 2.72, 2.76 after each 100 steps, on held-out texts of all kinds
(specdiff_jax/zoo has tau by set of prompts).

COMMAND (prompts.jsonl: fields `id` and `prompt`, such as GSM8K's train split):
  python -m specdiff_jax collect --config=configs/distill_smollm2.py:gpu \
      --config.batch=128 --prompts=prompts.jsonl --workdir=runs/greedy
  python -m specdiff_jax collect --config=configs/distill_smollm2.py:gpu \
      --config.batch=128 --prompts=prompts.jsonl --workdir=runs/sampled \
      --config.temperature=1.0 --config.completions=2
  python -m specdiff_jax distill --config=configs/distill_smollm2.py:gpu \
      --config.data=runs/greedy,runs/sampled --workdir=runs/distill
  python -m specdiff_jax bench --config=configs/quickstart.py \
      --config.drafter=runs/distill/drafter.safetensors

All kinds of text (stage2.jsonl: prompts of code, mathematics, instructions ...):
  python -m specdiff_jax collect --config=configs/distill_smollm2.py \
      --config.system=ar --config.exact=False --config.batch=64 \
      --prompts=stage2.jsonl --workdir=runs/stage2
  python -m specdiff_jax distill --config=configs/distill_smollm2.py:domains \
      --config.data=runs/stage2 --workdir=runs/domains \
      --config.start_from=runs/distill/drafter.safetensors

On a CPU (exact=False: plain decoding of one token a pass, not as many as drafts
have; its texts differ at near ties):
  python -m specdiff_jax collect --config=configs/distill_smollm2.py \
      --config.system=ar --config.exact=False --config.batch=64 \
      --prompts=prompts.jsonl --limit=1216 --workdir=runs/trajectories
  python -m specdiff_jax distill --config=configs/distill_smollm2.py \
      --config.data=runs/trajectories --workdir=runs/distill
"""

import ml_collections

# Larger batches, and the verifier in the step in place of a cache on the host.
ON_GPU = {
  'system': 'ar',
  'dtype': 'bfloat16',
  'train_dtype': 'bfloat16',
  'prompt_buckets': (256,),  # holds GSM8K's prompts; one program
  'batch': 64,
  'feature_cache': 0,
  'steps': 3000,
  'learning_rate': 1.2e-3,
  'eval_limit': 96,
  'eval_every': 300,
  'save_every': 600,
  'log_every': 50,
}


# Further training of a drafter of one kind of text, on trajectories of all kinds.
ON_ALL_TEXTS = {
  'new_vocab': 8192,
  'steps': 600,
  'windows': 32,
  'learning_rate': 4e-4,
  'tokens': 256,
  'eval_fraction': 0.03,
  'eval_limit': 48,
  'eval_every': 100,
  'feature_store': 'runs/features',
  'store': 'int8',
}
VARIANTS = '', 'gpu', 'domains', 'smoke'


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'gpu' is for one large GPU, 'smoke' is tiny.

  'domains' trains a drafter further on other kinds of text (`start_from`).
  """
  if variant not in VARIANTS:
    raise ValueError(f'the variants are {VARIANTS}, not {variant!r}')
  smoke = variant == 'smoke'
  config = ml_collections.ConfigDict()
  # The model, and how `collect` decodes: lookup drafts, and changes nothing.
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
  config.gamma = 4 if smoke else 7
  config.chat = not smoke
  # What `distill` does.
  config.data = 'prompts/tiny.jsonl' if smoke else 'runs/trajectories'
  config.eval_prompts = ('prompts/quickstart.jsonl',)
  config.loss = 'streak'
  config.steps = 3 if smoke else 1800
  config.learning_rate = 8e-4
  config.mesh = (-1, 1)
  config.tokens = 96 if smoke else 288
  config.windows = 8 if smoke else 48
  config.network = ml_collections.ConfigDict(
    {
      'layers': 2,
      'features': () if smoke else (9, 18, 27, 29),
      'trunk': 896,
      'vocab': 6144,
      'ngram': 3,
    }
  )
  config.ce_fraction = 0.4
  config.decay = 4.0
  config.beta_end = 0.0
  config.eval_fraction = 0.2 if smoke else 0.02
  config.eval_limit = 24
  config.feature_cache = 10_000
  config.eval_every = 0 if smoke else 100
  config.save_every = 0 if smoke else 100
  if variant == 'gpu':
    config.update(ON_GPU)
  if variant == 'domains':
    config.update(ON_ALL_TEXTS)
    config.start_from = 'smollm2_135m_instruct.safetensors'
  return config
