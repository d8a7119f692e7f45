"""Options of a new network that fills windows; see `drafters.options`."""

import dataclasses

from specdiff_jax.core import fields
from specdiff_jax.core import limits
from specdiff_jax.drafters import options


@dataclasses.dataclass(frozen=True)
class Options(options.Options):
  """Options of a new network."""

  features: tuple[int, ...] = fields.run(
      (), 'verifier layers that a diffusion drafter reads; by default the one '
      'below its own and the last, of kind dflash up to five, spread as in '
      'published ones', element=int,
  )  # fmt: skip
  trunk: int = fields.run(
      1024, 'width of the MLP that starts its slots', low=1, high=1 << 20,
  )  # fmt: skip
  ngram: int = fields.run(
      3, 'longest match of its lookup hint; 0: none', low=0,
      high=limits.MOST_NGRAM,
  )  # fmt: skip


OPTIONS = {'drafter': Options}
