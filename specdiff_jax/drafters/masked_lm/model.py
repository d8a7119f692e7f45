"""What a masked language model is besides its network and its weights.

Some predict a slot from the output at its own position, others (those that
were made of autoregressive models) from the output one before it: an error in
that looks like a bad drafter, not like an error.
"""

import dataclasses
from typing import Any

from specdiff_jax.core import errors

PREFIXES = ('full', 'causal')


@dataclasses.dataclass(frozen=True)
class MaskedLM:
  """A masked language model; raises InputError on impossible values.

  Attributes:
    network: the sizes of its network, which `networks.network` makes.
    mask_id: the token that stands for what is not known.
    shifted: slot j is predicted by the output at j - 1 (Dream, DiffuCoder,
      DiffuLLaMA, DiffuGPT), not at j (LLaDA, A2D, MDLM).
    prefix: what the prefix sees. 'full': everything, the masks too, as these
      models were trained; every pass then reads the whole text again.
      'causal': each of its tokens those before it, so that keys are kept from
      cycle to cycle; right for models that were trained so.
  """

  network: Any
  mask_id: int
  shifted: bool
  prefix: str = 'full'

  def __post_init__(self):
    ids = range(self.network.vocab_size)
    if self.mask_id not in ids:
      raise errors.InputError(
        f'the mask token has the id {self.mask_id}, but the model knows the '
        f'ids 0 to {ids[-1]}; correct it in its config.json, or give '
        'masked_lm.mask_id.'
      )
    if self.prefix not in PREFIXES:
      raise errors.InputError(
        f'the prefix attention of a masked language model is '
        f'{self.prefix!r}, but it has to be one of {", ".join(PREFIXES)}.'
      )
