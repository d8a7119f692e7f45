"""Options of a new causal network; see `drafters.options`."""

import dataclasses

from specdiff_jax.core import fields
from specdiff_jax.drafters import options


@dataclasses.dataclass(frozen=True)
class Options(options.Options):
  """Options of a new network."""

  start: tuple[int, ...] = fields.run(
      (), 'verifier layers that those of an autoregressive drafter start as; '
      'by default the first ones', element=int,
  )  # fmt: skip


OPTIONS = {'drafter': Options}
