"""What a user says of a published drafter, beside its files."""

import dataclasses

from specdiff_jax.core import fields


@dataclasses.dataclass(frozen=True)
class Told:
  """What a published masked language model's own files do not tell."""

  family: str = fields.field(
      '', 'its family where config.json does not tell it: diffullama, diffugpt; '
      'or eagle3',
  )  # fmt: skip
  prefix: str = fields.field(
      '', 'whether its prefix sees the masks: full, as these are trained; or '
      'causal, whose KV cache is kept: much cheaper, approximate for models '
      'that were not trained so',
  )  # fmt: skip
  alignment: str = fields.field(
      '', 'where the model says it wrongly: whether slot j is predicted at j '
      '(same) or j - 1 (shifted)',
  )  # fmt: skip
  mask_id: int = fields.field(-1, 'mask token, where the model says it wrongly')
  tokenizer: str = fields.field(
      '', "directory of its tokenizer, if not its own; 'verifier': the "
      "verifier's ids are its ids", path=True,
  )  # fmt: skip
  unknown: float = fields.field(
      0.01, 'fraction of its tokens that the verifier may lack',
  )  # fmt: skip
