"""The options of each system: a dataclass for every name.

A field that several of them have is declared once, in a dataclass of its own
from which theirs inherit. Nothing here needs jax, so that `--help` is quick.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from specdiff_jax.core import fields
from specdiff_jax.core import limits
from specdiff_jax.drafters import registry
from specdiff_jax.drafters import told

field, text, run = fields.field, fields.text, fields.run
_REPORTED = ('bench', 'verify')
DTYPES = ('float32', 'bfloat16')


# --- what several have -------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Gamma:
  gamma: int = field(
      8, 'tokens drafted for each call of the verifier',
      decides=('text', 'run'), low=1, high=limits.MOST_DEEP, reported=_REPORTED,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Seed:
  seed: int = field(
      0, 'seed of all randomness: the same seed gives the same text',
      decides=('text', 'run'), reported=_REPORTED,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Batch:
  batch: int = run(
      1, 'requests decoded together, each replaced by the next when its text is '
      'done, in batches of 32 and more a sixteenth of them at a time (distill: '
      'trajectories a step)', low=1, high=1 << 16, reported=('bench',),
  )  # fmt: skip


_KIND = field(
    'diffusion', 'diffusion; autoregressive for the system sps; eagle for the '
    'system eagle; dflash, as published (mask token: masked_lm.mask_id); or '
    'masked_lm, all of the verifier adapted to diffusion, with a mask token '
    'of masked_lm.mask_id: first with loss elbo, of whole texts, then from '
    'it with one of windows', choices=tuple(registry.kinds()),
)  # fmt: skip


def _network() -> type[Any]:
  """Returns the dataclass of a new drafter's kind, and of all kinds' options.

  What `Told` has is left to it.
  """
  named = {
    one.name: (
      one.name,
      one.type,
      field(one.default, **vars(one.metadata['about'])),
    )
    for kind in reversed(registry.kinds())  # the first one's holds
    for one in dataclasses.fields(registry.options(kind))
    if not hasattr(told.Told, one.name)
  }
  return dataclasses.make_dataclass(
    'Network', [('kind', str, _KIND), *named.values()], frozen=True
  )


Network = _network()


@dataclasses.dataclass(frozen=True)
class Sizes:
  masked_lm: told.Told = text(
      told.Told(), 'a published masked language model that drafts',
      reported=('bench',),
  )  # fmt: skip
  network: Any = run(Network(), 'sizes of a new drafter')


@dataclasses.dataclass(frozen=True)
class Rule:
  rule: str = text(
      'match', 'what accepts drafts: match (any draft; seeded output equals '
      'plain decoding), greedy (any draft), rejection or block (draft=sample), '
      'without_replacement (system=tree)',
      choices=('match', 'greedy', 'rejection', 'without_replacement', 'block'),
      reported=_REPORTED,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Drawn(Rule):
  draft: str = text(
      'shared_noise', "how the drafter's distributions become tokens above "
      "temperature 0: shared_noise (the verifier's own draws), sample or "
      'argmax', choices=('argmax', 'sample', 'shared_noise'),
      reported=_REPORTED,
  )  # fmt: skip
  draft_temperature: float = text(
      0.0, "temperature of drawn drafts; 0: the verifier's own distribution "
      '(specdiff) or 1 (K drafts)',
      fits=lambda x: (not x or limits.LEAST_TEMPERATURE <= x <= limits.MOST_TEMPERATURE),
      within=f'0 or {limits.LEAST_TEMPERATURE:g} to {limits.MOST_TEMPERATURE:g}',
  )  # fmt: skip
  draft_top_k: int = text(
      0, 'drafts are drawn among so many tokens, if draft_temperature is set',
      low=0, high=2**31 - 1,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Drafter:
  drafter: str = text(
      '', 'safetensors file of the drafter, or its name in specdiff_jax/zoo; '
      "'random' for an untrained one; or the directory (or hub name) of a "
      'published drafter: Dream, DiffuCoder, LLaDA, A2D, MDLM, DiffuLLaMA, '
      'DiffuGPT or DFlash; EAGLE-3 for the system eagle', path=True, reported=_REPORTED,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trained(Drafter, Sizes, Seed, Gamma):
  """A system with a drafter that was trained."""


@dataclasses.dataclass(frozen=True)
class Diffusion(Trained):
  denoising_steps: int = text(
      1, 'passes of the drafter for each window; SpecDiff-2 takes 1', low=1,
      high=64,
  )  # fmt: skip
  denoising_order: str = text(
      'confidence', 'what a pass decides first: by confidence, by entropy or '
      'random', choices=('confidence', 'entropy', 'random'),
  )  # fmt: skip
  remask: bool = text(
      False, 'later passes may change what earlier ones decided',
  )  # fmt: skip
  context_window: int = text(
      0, 'last verified tokens that the drafter sees; 0 for all of them', low=0,
      high=limits.MOST_TOKENS,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Drafts:
  drafts: int = text(
      8, 'K, drafts of one pass (systems specdiff2 and tree)', low=1,
      high=limits.MOST_DRAFTED, reported=_REPORTED,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Budget:
  budget: int = text(
      32, 'tokens verified at once by the systems tree, best_first, lattice, '
      'd2sd, mixture and eagle (which drafts a chain where they are gamma + 1 or '
      'less), the last committed one included', low=2, high=limits.MOST_DRAFTED,
      reported=_REPORTED,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Branching:
  candidates: int = text(
      8, 'K, likeliest tokens that the system lattice takes of each slot, eagle '
      'after each prefix', low=1, high=limits.MOST_DRAFTED, newer=True,
      reported=_REPORTED,
  )  # fmt: skip
  frontier: int = text(
      8, 'F, prefixes of each depth that they continue', low=1,
      high=limits.MOST_DRAFTED, newer=True, reported=_REPORTED,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SlotsByDtype:
  """Tokens that plain AR scores at once, by dtype."""

  float32: int = field(
      0, 'tokens that plain AR scores at once; 0: one, but two on a TPU',
      low=0, high=limits.MOST_DRAFTED,
  )  # fmt: skip
  bfloat16: int = field(
      0, 'the same in bfloat16; 0: one, but two on a TPU or CPU', low=0,
      high=limits.MOST_DRAFTED,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PlainSlots:
  ar_slots: SlotsByDtype = text(
      SlotsByDtype(), 'tokens that plain AR scores at once',
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DiffuSpecOwn:
  """Path search and draft length of DiffuSpec, as the paper names them."""

  cps: bool = field(
      True, 'search the path that is verified; False: each slot\'s likeliest '
      'token',
  )  # fmt: skip
  adl: bool = field(True, 'choose the length of drafts; False: always k_max')
  ngram: str = field(
      '', 'n-gram model that scores how tokens follow each other, a file of '
      "`specdiff ngram` or a .arpa file; '': uniform", path=True,
  )  # fmt: skip
  beam: int = field(3, 'B, paths that the search keeps', low=1, high=64)
  tau: float = field(
      0.8, "probability mass that a slot's candidates are to hold", above=0,
      high=1, within='above 0, and at most 1',
  )  # fmt: skip
  m_max: int = field(
      15, 'M_max, the most candidates of a slot', low=1, high=256,
  )  # fmt: skip
  lam: float = field(
      0.5, "lambda, weight of the drafter's log-probabilities; the n-gram's "
      'have the rest', low=0, high=1, within='from 0 to 1',
  )  # fmt: skip
  k_min: int = field(
      0, 'the shortest draft; 0: two thirds of k_max, as the 20 of 30 in the '
      'paper', low=0, high=limits.MOST_DEEP,
  )  # fmt: skip
  k_max: int = field(
      0, 'the longest draft, and the first; 0: gamma', low=0,
      high=limits.MOST_DEEP,
  )  # fmt: skip
  delta: int = field(
      10, 'tokens by which drafts grow while all of them are accepted', low=0,
      high=limits.MOST_DEEP,
  )  # fmt: skip
  rho: float = field(
      0.5, 'weight of the last cycle in the means that choose the length',
      above=0, high=1, within='above 0, and at most 1',
  )  # fmt: skip
  confidence: str = field(
      '', 'head of the drafter (distill with head_kind=confidence) that cuts '
      'drafts, a safetensors file', path=True,
  )  # fmt: skip
  threshold: float = field(
      0.3, 'product of confidences that the slots of a draft are to have', low=0,
      high=1, within='from 0 to 1',
  )  # fmt: skip
  sizes: int = field(
      3, 'sizes of drafts that are compiled, from k_min to k_max; one in '
      'between is computed in the next one and cut', low=1, high=16,
  )  # fmt: skip


# --- systems -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plain(Gamma, PlainSlots):
  exact: bool = text(
      True, 'plain AR runs through the shapes of the drafted systems, which '
      'makes outputs of chains equal bit for bit on a CPU, and those of trees '
      'up to the order in which attention adds up a branch; False: through its '
      'own fastest ones', reported=('bench',),
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Lookup(Rule, Gamma):
  ngram: int = text(
      3, 'longest match of prompt lookup, in tokens', low=1,
      high=limits.MOST_NGRAM,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SpecDiff(Drawn, Diffusion):
  """One chain."""


@dataclasses.dataclass(frozen=True)
class DFlash(SpecDiff):
  """One chain of a DFlash drafter."""


@dataclasses.dataclass(frozen=True)
class Deer(Diffusion):
  """One chain that is drawn, and accepted by min(1, p / q) (2512.15176)."""

  # Its own, whatever the config says of other systems.
  rule = 'rejection'
  draft = 'sample'
  draft_temperature = 0.0
  draft_top_k = 0


@dataclasses.dataclass(frozen=True)
class SpecDiff2(Drafts, Drawn, Diffusion):
  """K chains, of which the verifier selects one."""


@dataclasses.dataclass(frozen=True)
class Tree(Budget, Drafts, Drawn, Diffusion):
  """K drafts, merged."""


@dataclasses.dataclass(frozen=True)
class BestFirst(Budget, Rule, Diffusion):
  """The most probable prefixes of the marginals."""


@dataclasses.dataclass(frozen=True)
class Lattice(Branching, BestFirst):
  """The likeliest prefixes of each slot's likeliest tokens, by a head."""

  head: str = text(
      '', 'safetensors file of a head of the drafter (distill with head_kind), '
      'which scores tokens by the one before; or an n-gram model (`specdiff '
      'ngram`, .arpa); empty: the marginals alone', path=True, newer=True,
      reported=_REPORTED,
  )  # fmt: skip
  head_weight: float = text(
      1.0, 'what the head or n-gram adds to scores is multiplied with', low=0,
      high=100, newer=True,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DiffuSpec(Rule, Diffusion):
  """One path, searched through the marginals."""

  diffuspec: DiffuSpecOwn = text(
      DiffuSpecOwn(), 'the system diffuspec', newer=True, reported=('bench',),
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Adaptive(PlainSlots, SpecDiff):
  gammas: tuple[int, ...] = text(
      (2, 4, 7), 'draft lengths that the system adaptive chooses among, up to '
      'gamma', low=1, high=limits.MOST_DEEP,
  )  # fmt: skip
  budgets: tuple[int, ...] = text(
      (), 'sizes of best-first trees that it chooses among; a tree goes before '
      'a chain of its size', low=2, high=limits.MOST_DRAFTED, element=int,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OfFamily(Drawn, Trained):
  """Chains of a family that alone drafts for a system, such as sps."""


@dataclasses.dataclass(frozen=True)
class D2SD(Budget, Rule, Trained):
  """A first draft, and others that go on from its prefixes."""

  branches: int = text(
      4, 'K, prefixes of the first draft that the second drafter of the system '
      'd2sd goes on from, at most gamma', low=1, high=limits.MOST_DEEP,
      newer=True, reported=_REPORTED,
  )  # fmt: skip
  second_gamma: int = text(
      0, 'tokens of a draft of the second drafter of d2sd, at least gamma; 0: '
      'gamma', low=0, high=limits.MOST_DEEP, newer=True,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mixture(Budget, Rule, Trained):
  """A chain of each of several drafters."""


@dataclasses.dataclass(frozen=True)
class Eagle(Branching, Budget, Rule, Trained):
  """A tree by a drafter that reads the verifier's states."""


@dataclasses.dataclass(frozen=True)
class EarlyExit(Drawn, Gamma):
  exit_layer: int = text(
      0, 'layers of the verifier that draft in the system early_exit; 0: four '
      'fifths of them, where an exit that was not trained begins to agree',
      low=0,
  )  # fmt: skip


SYSTEMS: Mapping[str, type] = {
  'ar': Plain,
  'lookup': Lookup,
  'specdiff': SpecDiff,
  'dflash': DFlash,
  'deer': Deer,
  'specdiff2': SpecDiff2,
  'tree': Tree,
  'best_first': BestFirst,
  'lattice': Lattice,
  'diffuspec': DiffuSpec,
  'adaptive': Adaptive,
  **dict.fromkeys(registry.systems(), OfFamily),
  'd2sd': D2SD,
  'mixture': Mixture,
  'eagle': Eagle,
  'early_exit': EarlyExit,
}
