"""Options of a new DFlash network; see `drafters.options`."""

import dataclasses

from specdiff_jax.core import fields
from specdiff_jax.drafters import options
from specdiff_jax.models import config as config_lib


@dataclasses.dataclass(frozen=True)
class Options(options.Options):
  """Options of a new network."""

  features: tuple[int, ...] = fields.run(
      (), 'verifier layers that it reads; by default up to five, spread as in '
      'published ones', element=int,
  )  # fmt: skip
  window: int = fields.run(
      0, 'tokens that a slot of a drafter of kind dflash sees, none behind it '
      'in its block; 0: all, and the whole block', low=0,
      high=config_lib.MOST_POSITIONS, newer=True,
  )  # fmt: skip
  conv: int = fields.run(
      0, 'taps of the convolutions in a drafter of kind dflash, over the slots '
      'of a block (DFlash 2 has 2); 0: none', low=0, high=16, newer=True,
  )  # fmt: skip
  from_anchor: bool = fields.run(
      False, "the committed token's own output is the first draft of a drafter "
      'of kind dflash (DSpark)', newer=True,
  )  # fmt: skip
  mask_id: int = fields.run(-1, 'token that stands for what is not known')


OPTIONS = {'drafter': Options}
