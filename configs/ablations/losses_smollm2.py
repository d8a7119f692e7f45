"""Which loss: streak-distillation against cross-entropy and AR-distillation.

Why: SpecDiff-2 (Fig. 2) reports that streak-distillation agrees with the
verifier 2.3 to 2.8 times as often as AR-distillation at slots j >= 13. This
asks the same of a small drafter: windows of 16 slots, the same start, data,
batches and steps, only the loss differs.

Cost: on 2 CPU cores shared with other work (load 7 to 10) 10 minutes a run, and
5 more for each of the two passes of the verifier over 160 trajectories (its
features, and its law for kl).

Expected: held-out tau 1.84 (streak), 1.58 (ce), 1.59 (kl, AR-distillation) and
1.83 (decayed_ce) after 240 steps. Late slots do not gain: agreement at slots 13
to 16 is 0.048, 0.070, 0.073 and 0.060, and not one of 2631 held-out windows
survives to slot 13. At these lengths J is near 1, so that the weights of the
streak lie on the first slots; and its first 96 steps are decayed_ce, to which
most of its gain belongs.

COMMAND (after the `collect` of configs/distill_smollm2.py):
  python -m specdiff_jax sweep --config=configs/ablations/losses_smollm2.py \
      --config.data=runs/trajectories --grid=loss=streak,ce,kl,decayed_ce \
      --workdir=runs/losses
"""

import pathlib
import runpy

import ml_collections

_BASE = pathlib.Path(__file__).resolve().parent.parent / 'distill_smollm2.py'


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'smoke' runs it on the random tiny verifier."""
  config = runpy.run_path(str(_BASE))['get_config'](variant)
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
  return config
