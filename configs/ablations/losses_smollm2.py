"""Which loss: streak-distillation against cross-entropy and AR-distillation.

Why: SpecDiff-2 (Fig. 2) reports that streak-distillation agrees with the
verifier 2.3 to 2.8 times as often as AR-distillation at slots j >= 13. This
asks the same of a small drafter: windows of 16 slots, the same start, data,
batches and steps, only the loss differs. The variant `gpu` has 46 times the
trajectories, 67 times the windows, twice the layers, a larger draft vocabulary
and longer rows, and computes in bfloat16.

Cost: `gpu`: one H100 did the four losses in 7 minutes as four processes at once
(each a sweep of one loss, 5 steps a second); a sweep does one after the other.
Plain, on 2 CPU cores shared with other work: 10 minutes a run, and 5 more for
each of the two passes of the verifier over 160 trajectories (its features, and
its law for kl).

Expected, `gpu` (11,396 held-out windows of 96 texts): tau 3.08 (streak), 2.78
(ce), 2.80 (kl, AR-distillation), 2.96 (decayed_ce). A window survives to slots
13 to 16, on average, in 0.96 %, 0.20 %, 0.17 % and 0.13 % of cases: 5.6 times
as often with the streak as with AR-distillation. Agreement there, whatever came
before it in the window, is lower: 0.089, 0.127, 0.133 and 0.118. The streak
gives up slots whose window is lost already.

Plain: tau 1.84, 1.58, 1.59 and 1.83 after 240 steps; agreement at slots 13 to
16 0.048, 0.070, 0.073 and 0.060, and not one of 2631 held-out windows survives
to slot 13.

COMMAND (after the first `collect` of configs/distill_smollm2.py):
  python -m specdiff_jax sweep \
      --config=configs/ablations/losses_smollm2.py:gpu \
      --config.data=runs/greedy --grid=loss=streak,ce,kl,decayed_ce \
      --workdir=runs/losses
"""

import ml_collections

import specdiff_jax as sd


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'gpu' is for one large GPU, 'smoke' is tiny."""
  config = sd.load_config(f'distill_smollm2:{variant}')
  if variant == 'smoke':
    return config
  config.gamma = 16
  config.windows = 16
  config.tokens = 224  # prompts of GSM8K and 128 tokens: nearly all are whole
  config.network.vocab = 4096
  config.batch = 4
  config.steps = 240
  config.train_limit = 160  # 6 epochs
  config.eval_every = 80
  config.save_every = 40
  if variant == 'gpu':
    config.update(
        batch=64, steps=1000, train_limit=0, eval_every=250, save_every=500,
        tokens=288, learning_rate=8e-4,
    )  # fmt: skip
    config.network.update(layers=4, vocab=6144)
  return config
