"""What the options of new networks of several families have in common.

Those of a family lie in its module `options`. None needs jax, so that `--help`
is quick.
"""

import dataclasses

from specdiff_jax.core import fields
from specdiff_jax.models import config as config_lib

HEADS = ('markov', 'gated', 'selector')  # kinds of `heads` that score tokens
CONFIDENCE = 'confidence'  # and the one that scores slots


@dataclasses.dataclass(frozen=True)
class Options:
  """A network with layers and a draft vocabulary."""

  layers: int = fields.run(
      2, 'layers of a new drafter', low=1, high=config_lib.MOST_LAYERS
  )  # fmt: skip
  vocab: int = fields.run(
      4096, 'tokens of its draft vocabulary', low=1, high=1 << 24
  )  # fmt: skip

  def __post_init__(self):
    fields.check(self)
