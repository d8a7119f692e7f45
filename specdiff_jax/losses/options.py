"""Hyper-parameters of each loss: a dataclass for every name.

A field that several losses have is declared once, in a dataclass of its own
from which theirs inherit. Nothing here needs jax, so that `--help` is quick.
"""

from collections.abc import Mapping
import dataclasses

from specdiff_jax.core import fields

field = fields.field
options = dataclasses.dataclass(frozen=True)


@options
class Decayed:
  decay: float = field(
    7.0,
    'decay of the weights exp(-(j - 1) / decay) in decayed_ce and '
    'variable_prefix',
    decides='run',
    above=0,
    within='positive',
  )


@options
class Warmed(Decayed):
  """Cross-entropy for a part of the run, then another loss."""

  ce_fraction: float = fields.unit(
    0.3,
    'part of the steps spent on decayed_ce before streak, soft_streak, '
    'rejection or tv',
    decides='run',
  )
  beta_end: float = field(
    0.0,
    'last beta of the Box-Cox loss of a length J (streak, soft_streak, '
    'rejection): 0 is -log J',
    decides='run',
  )


@options
class Verifiers:
  """A loss against the verifier's distribution."""

  law_temperature: float = field(
    1.0,
    "temperature of the verifier's distribution in the losses that read it",
    decides='run',
    above=0,
  )
  stored_law: bool = field(
    False,
    "such losses take the verifier's likeliest tokens that `collect` "
    'stored (store_top_k) in place of a pass of the verifier; what was not '
    'stored is spread evenly over the other tokens',
    decides='run',
  )


@options
class Plainly:
  """A loss without options."""


@options
class WarmedVerifiers(Warmed, Verifiers):
  """Cross-entropy, then a loss against the verifier's distribution."""


@options
class Dpace:
  dpace_smoothing: float = field(
    0.5,
    'a of dpace: 0 is the gradient of the streak',
    decides='run',
    low=0,
    below=1,
    within='from 0 to below 1',
  )


@options
class Lk(Verifiers):
  lk_eta: float = field(
    3.0, 'of lk: its share of KL is exp(-eta overlap)', decides='run', low=0
  )


@options
class VariablePrefix(Decayed):
  prefix_base: float = field(
    0.9,
    'of variable_prefix: l tokens are shown with weight base^l',
    decides='run',
    above=0,
    high=1,
    within='above 0 and at most 1',
  )


@options
class Elbo:
  noise_schedule: str = field(
    'linear',
    'of elbo: linear (LLaDA, DiffuLLaMA) or log_linear (MDLM)',
    decides='run',
    choices=('linear', 'log_linear'),
  )
  anneal_fraction: float = fields.unit(
    0.3,
    'part of the steps over which elbo opens the attention of a drafter of '
    'kind masked_lm, from causal to full',
    decides='run',
  )


LOSSES: Mapping[str, type] = {
  'streak': Warmed,
  'soft_streak': WarmedVerifiers,
  'dpace': Dpace,
  'ce': Plainly,
  'decayed_ce': Decayed,
  'ce_streak': Plainly,
  'kl': Verifiers,
  'reverse_kl': Verifiers,
  'js': Verifiers,
  'tv': WarmedVerifiers,
  'lk': Lk,
  'rejection': WarmedVerifiers,
  'variable_prefix': VariablePrefix,
  'elbo': Elbo,
}
