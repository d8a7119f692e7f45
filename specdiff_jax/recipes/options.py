"""The options of each system and each loss: a dataclass for every name.

A field that several of them have is declared once, in a dataclass of its own
from which theirs inherit. Nothing here needs jax, so that `--help` is quick.
"""

from collections.abc import Mapping
import dataclasses

from specdiff_jax.core import fields
from specdiff_jax.core import limits
from specdiff_jax.drafters import registry
from specdiff_jax.drafters import told

field = fields.field
options = dataclasses.dataclass(frozen=True)
_REPORTED = ('bench', 'verify')
DTYPES = ('float32', 'bfloat16')


# --- what several have -------------------------------------------------------


@options
class Gamma:
  gamma: int = field(
    8,
    'tokens drafted for each call of the verifier',
    decides=('text', 'run'),
    low=1,
    high=limits.MOST_DEEP,
    reported=_REPORTED,
  )


@options
class Seed:
  seed: int = field(
    0,
    'seed of all randomness: the same seed gives the same text',
    decides=('text', 'run'),
    reported=_REPORTED,
  )


@options
class Batch:
  batch: int = field(
    1,
    'requests decoded together, each row refilled when its text is done, in '
    'batches of 32 and more a sixteenth of them at a time (distill: '
    'trajectories a step)',
    decides='run',
    low=1,
    high=1 << 16,
    reported=('bench',),
  )


@options
class Network:
  """Sizes of a new drafter."""

  kind: str = field(
    'diffusion',
    'diffusion; autoregressive for the system sps; or masked_lm, all of the '
    'verifier adapted to diffusion, with a mask token of masked_lm.mask_id: '
    'first with loss elbo, of whole texts, then from it with one of windows',
    choices=('diffusion', 'autoregressive', 'masked_lm'),
  )
  layers: int = field(2, 'layers of a new drafter', low=1, high=1024)
  start: tuple[int, ...] = field(
    (),
    'verifier layers that those of an autoregressive drafter start as; by '
    'default the first ones',
    element=int,
  )
  features: tuple[int, ...] = field(
    (),
    'verifier layers that a diffusion drafter reads; by default the one below '
    'its own and the last',
    element=int,
  )
  trunk: int = field(
    1024, 'width of the MLP that starts its slots', low=1, high=1 << 20
  )
  vocab: int = field(
    4096, 'tokens of its draft vocabulary', low=1, high=1 << 24
  )
  ngram: int = field(
    3,
    'longest match of its lookup hint; 0: none',
    low=0,
    high=limits.MOST_NGRAM,
  )


@options
class Sizes:
  masked_lm: told.Told = field(
    told.Told(),
    'of a published masked language model that drafts',
    decides='text',
    reported=('bench',),
  )
  network: Network = field(Network(), 'sizes of a new drafter', decides='run')


@options
class Rule:
  rule: str = field(
    'match',
    'what accepts drafts: match (any draft; seeded output equals plain '
    'decoding), greedy (any draft), rejection or block (draft=sample), '
    'without_replacement (system=tree)',
    decides='text',
    choices=('match', 'greedy', 'rejection', 'without_replacement', 'block'),
    reported=_REPORTED,
  )


@options
class Drawn(Rule):
  draft: str = field(
    'shared_noise',
    "how the drafter's distributions become tokens above temperature 0: "
    "shared_noise (the verifier's own draws), sample or argmax",
    decides='text',
    choices=('argmax', 'sample', 'shared_noise'),
    reported=_REPORTED,
  )
  draft_temperature: float = field(
    0.0,
    "temperature of drawn drafts; 0: the verifier's own distribution "
    '(specdiff) or 1 (K drafts)',
    decides='text',
    fits=lambda x: (
      not x or limits.LEAST_TEMPERATURE <= x <= limits.MOST_TEMPERATURE
    ),
    within=f'0 or {limits.LEAST_TEMPERATURE:g} to {limits.MOST_TEMPERATURE:g}',
  )
  draft_top_k: int = field(
    0,
    'drafts are drawn among so many tokens, if draft_temperature is set',
    decides='text',
    low=0,
    high=2**31 - 1,
  )


@options
class Drafter:
  drafter: str = field(
    '',
    'safetensors file of the drafter, or its name in specdiff_jax/zoo; '
    "'random' for an untrained one; or the directory (or hub name) of a "
    'published diffusion drafter: Dream, DiffuCoder, LLaDA, A2D, MDLM, '
    'DiffuLLaMA, DiffuGPT or DFlash',
    decides='text',
    path=True,
    reported=_REPORTED,
  )


@options
class Trained(Drafter, Sizes, Seed, Gamma):
  """A system with a drafter that was trained."""


@options
class Diffusion(Trained):
  denoising_steps: int = field(
    1,
    'passes of the drafter for each window; SpecDiff-2 takes 1',
    decides='text',
    low=1,
    high=64,
  )
  denoising_order: str = field(
    'confidence',
    'what a pass decides first: confidence or entropy',
    decides='text',
    choices=('confidence', 'entropy'),
  )
  remask: bool = field(
    False, 'later passes may change what earlier ones decided', decides='text'
  )
  context_window: int = field(
    0,
    'last verified tokens that the drafter sees; 0 for all of them',
    decides='text',
    low=0,
    high=limits.MOST_TOKENS,
  )


@options
class Drafts:
  drafts: int = field(
    8,
    'K, drafts of one pass (systems specdiff2 and tree)',
    decides='text',
    low=1,
    high=limits.MOST_DRAFTED,
    reported=_REPORTED,
  )


@options
class Budget:
  budget: int = field(
    32,
    'tokens verified at once by the systems tree and best_first, the last '
    'committed one included',
    decides='text',
    low=2,
    high=limits.MOST_DRAFTED,
    reported=_REPORTED,
  )


@options
class SlotsByDtype:
  """Tokens that plain AR scores at once, by dtype."""

  float32: int = field(
    0, 'tokens that plain AR scores at once; 0: where it is fastest (one)',
    low=0, high=limits.MOST_DRAFTED,
  )  # fmt: skip
  bfloat16: int = field(
    0, 'the same in bfloat16; 0: one, but two on a CPU',
    low=0, high=limits.MOST_DRAFTED,
  )  # fmt: skip


@options
class PlainSlots:
  ar_slots: SlotsByDtype = field(
    SlotsByDtype(), 'tokens that plain AR scores at once', decides='text'
  )


# --- systems -----------------------------------------------------------------


@options
class Plain(Gamma, PlainSlots):
  exact: bool = field(
    True,
    'plain AR runs through the shapes of the drafted systems, which makes '
    'outputs of chains equal bit for bit on a CPU, and those of trees up '
    'to the order in which attention adds up a branch; False: through its '
    'own fastest ones',
    decides='text',
    reported=('bench',),
  )


@options
class Lookup(Rule, Gamma):
  ngram: int = field(
    3,
    'longest match of prompt lookup, in tokens',
    decides='text',
    low=1,
    high=limits.MOST_NGRAM,
  )


@options
class SpecDiff(Drawn, Diffusion):
  """One chain."""


@options
class SpecDiff2(Drafts, Drawn, Diffusion):
  """K chains, of which the verifier selects one."""


@options
class Tree(Budget, Drafts, Drawn, Diffusion):
  """The same K drafts, merged."""


@options
class BestFirst(Budget, Rule, Diffusion):
  """The most probable prefixes of the marginals."""


@options
class Adaptive(PlainSlots, Drawn, Diffusion):
  gammas: tuple[int, ...] = field(
    (2, 4, 7),
    'draft lengths that the system adaptive chooses among, up to gamma',
    decides='text',
    low=1,
    high=limits.MOST_DEEP,
  )
  budgets: tuple[int, ...] = field(
    (),
    'sizes of best-first trees that it chooses among; a tree goes before a '
    'chain of its size',
    decides='text',
    low=2,
    high=limits.MOST_DRAFTED,
    element=int,
  )


@options
class OfFamily(Drawn, Trained):
  """Chains of a family that alone drafts for a system, such as sps."""


@options
class EarlyExit(Drawn, Gamma):
  exit_layer: int = field(
    0,
    'layers of the verifier that draft in the system early_exit; 0: four '
    'fifths of them, where an exit that was not trained begins to agree',
    decides='text',
    low=0,
  )


SYSTEMS: Mapping[str, type] = {
  'ar': Plain,
  'lookup': Lookup,
  'specdiff': SpecDiff,
  'specdiff2': SpecDiff2,
  'tree': Tree,
  'best_first': BestFirst,
  'adaptive': Adaptive,
  **dict.fromkeys(registry.systems(), OfFamily),
  'early_exit': EarlyExit,
}
