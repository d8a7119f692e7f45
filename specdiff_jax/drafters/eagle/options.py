"""Options of a new EAGLE network; see `drafters.options`."""

import dataclasses

from specdiff_jax.core import fields
from specdiff_jax.drafters import options


@dataclasses.dataclass(frozen=True)
class Options(options.Options):
  """Options of a new network, which has one layer whatever `layers` is."""

  features: tuple[int, ...] = fields.run(
      (), 'verifier layers that it reads; by default three, as published ones',
      element=int,
  )  # fmt: skip


OPTIONS = {'drafter': Options}
