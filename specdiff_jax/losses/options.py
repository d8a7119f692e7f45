"""Hyper-parameters of each loss: a dataclass for every name.

A field that several losses have is declared once, in a dataclass from which
theirs inherit. Nothing here needs jax, so that `--help` is quick.
"""

from collections.abc import Mapping
import dataclasses

from specdiff_jax.core import fields

run, unit = fields.run, fields.unit


@dataclasses.dataclass(frozen=True)
class Decayed:
  decay: float = run(
      7.0, 'decay of the weights exp(-(j - 1) / decay) in decayed_ce, '
      'decayed_kl, dspark, confidence and variable_prefix', above=0,
      within='positive',
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Warmed(Decayed):
  """Cross-entropy for a part of the run, then another loss."""

  ce_fraction: float = unit(
      0.3, 'part of the steps spent on decayed_ce before streak, soft_streak, '
      'rejection or tv',
  )  # fmt: skip
  beta_end: float = run(
      0.0, 'last beta of the Box-Cox loss of a length J (streak, soft_streak, '
      'rejection): 0 is -log J',
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Verifiers:
  """A loss against the verifier's distribution."""

  law_temperature: float = run(
      1.0, "temperature of the verifier's distribution in the losses that read "
      'it', above=0,
  )  # fmt: skip
  stored_law: bool = run(
      False, "such losses take the verifier's likeliest tokens that `collect` "
      'stored (store_top_k) in place of a pass of the verifier; what was not '
      'stored is spread evenly over the other tokens',
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plainly:
  """A loss without options."""


@dataclasses.dataclass(frozen=True)
class WarmedVerifiers(Warmed, Verifiers):
  """Cross-entropy, then a loss against the verifier's distribution."""


@dataclasses.dataclass(frozen=True)
class Dpace:
  dpace_smoothing: float = run(
      0.5, 'a of dpace: 0 is the gradient of the streak', low=0, below=1,
      within='from 0 to below 1',
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Suffix:
  suffix_base: float = run(
      1.01, 'of suffix: a slot weighs base^(R - j) among the last R', low=1,
      high=2, within='from 1 to 2',
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Lk(Verifiers):
  lk_eta: float = run(3.0, 'of lk: its share of KL is exp(-eta overlap)', low=0)


@dataclasses.dataclass(frozen=True)
class DecayedVerifiers(Decayed, Verifiers):
  """A loss against the verifier's distribution, weighted by place."""


@dataclasses.dataclass(frozen=True)
class Dspark(DecayedVerifiers):
  ce_share: float = unit(
      0.1, 'of dspark: share of the cross-entropy, beside the L1 distance',
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class VariablePrefix(Decayed):
  prefix_base: float = run(
      0.9, 'of variable_prefix: l tokens are shown with weight base^l', above=0,
      high=1, within='above 0 and at most 1',
  )  # fmt: skip
  prefix_pooled: bool = run(
      False, 'of variable_prefix: the mean is over all targets by weight, as '
      'in DFlash, which favours windows that show little; False: over windows, '
      'each by its own weights, as in D2SD', newer=True,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Elbo:
  noise_schedule: str = run(
      'linear', 'of elbo: linear (LLaDA, DiffuLLaMA) or log_linear (MDLM)',
      choices=('linear', 'log_linear'),
  )  # fmt: skip
  anneal_fraction: float = unit(
      0.3, 'part of the steps over which elbo opens the attention of a drafter '
      'of kind masked_lm, from causal to full',
  )  # fmt: skip


LOSSES: Mapping[str, type] = {
  'streak': Warmed,
  'soft_streak': WarmedVerifiers,
  'dpace': Dpace,
  'ce': Plainly,
  'decayed_ce': Decayed,
  'ce_streak': Plainly,
  'suffix': Suffix,
  'kl': Verifiers,
  'decayed_kl': DecayedVerifiers,
  'reverse_kl': Verifiers,
  'js': Verifiers,
  'tv': WarmedVerifiers,
  'lk': Lk,
  'dspark': Dspark,
  'confidence': DecayedVerifiers,
  'rejection': WarmedVerifiers,
  'variable_prefix': VariablePrefix,
  'elbo': Elbo,
}
