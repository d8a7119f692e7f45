"""Options of a verifier that is adapted; see `drafters.options`."""

import dataclasses

from specdiff_jax.core import fields


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of a new network, which has the verifier's sizes."""

  mask_id: int = fields.run(
      -1, 'token that stands for what is masked', low=0
  )  # fmt: skip

  def __post_init__(self):
    fields.check(self)


OPTIONS = {'drafter': Options}
