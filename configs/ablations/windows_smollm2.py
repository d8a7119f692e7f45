"""How many windows a pass: one context, more and more anchors.

Why: the context of a row is computed once and shared by its windows, so that
more windows give more targets for little more work; but those of one text are
not independent. One window a row is what drafters with a bidirectional prefix
have to do.

Cost: 8, 4 and 6 minutes for 1, 4 and 16 windows on 2 CPU cores beside other
work; the first of them computes the verifier's features for all. The run of 48
was not finished.

Expected: held-out tau 1.52, 1.69 and 1.83 with 1, 4 and 16 windows after 240
steps (24 trajectories).

COMMAND (after the `collect` for a CPU of configs/distill_smollm2.py):
  python -m specdiff_jax sweep --config=configs/ablations/windows_smollm2.py \
      --config.data=runs/trajectories --grid=windows=1,4,16,48 \
      --workdir=runs/windows
"""

import ml_collections

import specdiff_jax as sd


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'smoke' runs it on the random tiny verifier."""
  config = sd.load_config(f'ablations/losses_smollm2:{variant}')
  if variant != 'smoke':
    config.gamma = 7
  return config
