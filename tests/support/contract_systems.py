"""The systems that keep the contract, on a model of a few thousand numbers.

Drafters are made for the tests: `testing.Scripted` knows the continuation and
errs where it is told to, as a chain or as a tree; `Garbage` knows nothing.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.core import protocols
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.decoding.rules import accept
from specdiff_jax.drafters import early_exit
from specdiff_jax.drafters import family
from specdiff_jax.drafters import heads
from specdiff_jax.drafters import lattice
from specdiff_jax.drafters import lookup
from specdiff_jax.drafters import none
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.autoregressive import drafter as autoregressive
from specdiff_jax.drafters.autoregressive import network as causal_network
from specdiff_jax.drafters.dflash import drafter as block
from specdiff_jax.drafters.dflash import network as dflash
from specdiff_jax.drafters.diffusion import drafter as diffusion
from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.drafters.masked_lm import drafter as masked_lm
from specdiff_jax.drafters.masked_lm import model as masked_lm_model
from specdiff_jax.models import networks
from specdiff_jax.models import transformer
from specdiff_jax.models import transformer_layer
from specdiff_jax.testing import contract
from specdiff_jax.testing import models
from specdiff_jax.testing import scripted
from specdiff_jax.verifiers import causal

VOCAB, BUCKET, NEW = models.VOCAB, contract.BUCKET, contract.NEW
GAMMA = 6

# All trees have as many slots, so that all verify in the same shapes. This one
# has three branches of 1, 3 and 2 slots, interleaved, so that an accepted path
# has to be gathered.
BRANCHES = (0, 0, 0, 0, 2, 3, 4)
CHAIN = tuple(max(i - 1, 0) for i in range(GAMMA + 1))


config = models.tiny_config
random = models.random_params


def verifier(scan_layers: bool = False):
  """Returns (network, params); the params are of the same numbers."""
  one = models.tiny_verifier(scan_layers)
  return transformer.Transformer(one.config), one.params


@dataclasses.dataclass(frozen=True)
class Garbage:
  """Drafts any ids, with holes, and keeps a state full of NaN."""

  proposal: ClassVar[str] = 'unknown'
  chain: ClassVar[bool] = True
  features: ClassVar[tuple[int, ...]] = (1, 0)
  buckets: ClassVar[tuple[int, ...]] = (GAMMA + 1,)
  max_depth: ClassVar[int] = GAMMA

  def init(self, params, context):
    return jnp.full(context.length.shape, jnp.nan)

  def read(self, params, state, context, features, start):
    return state + features.sum((1, 2, 3))

  def draft(self, params, state, context, sampling, noise, slots):
    last = context.last[:, None]
    slot = jnp.arange(slots)
    token = (last * 7 + context.length[:, None] * 5 + slot * 13) % VOCAB
    token = token.at[:, 0].set(last[:, 0])
    return tree_lib.chain(token, token % 4 > 0), state

  def observe(self, params, state, context, verdict, features, slots):
    return state + features.sum((1, 2, 3))


@dataclasses.dataclass(frozen=True)
class AcceptFirst(accept.SampleAndMatch):
  """A lossy rule, for negative controls: the first draft token always passes.

  It does what the rule does, with the verifier's token at the root replaced
  by what was drafted after it.
  """

  def __call__(self, tree, logits, length, sampling, noise, max_depth):
    forced = 1e4 * jax.nn.one_hot(tree.token[:, 1], logits.shape[-1])
    logits = logits.at[:, 0].set(forced)
    return super().__call__(tree, logits, length, sampling, noise, max_depth)


@functools.cache
def diffusion_params(scan_layers: bool = False):
  """Returns the config and the random params of a drafter."""
  c = drafter_network.DrafterConfig(
    gamma=GAMMA,
    layers=1,
    features=(0, 1),
    trunk=24,
    vocab=40,
    ngram=2,
    verifier=config(scan_layers),
  )
  ids = np.random.default_rng(0).permutation(VOCAB)[: c.vocab]
  head = verifier()[1]['head']
  network = random(c.shapes(), 2, 0.1)
  return c, family.DrafterParams(network, ids, head[ids])


@functools.cache
def causal_params(scan_layers: bool = False):
  """Returns the config and the params of an autoregressive drafter.

  It is the verifier without its second half, so that some drafts are accepted.
  """
  c = causal_network.CausalConfig((0,), 40, config(scan_layers))
  network, params = verifier()
  del network
  ids = np.random.default_rng(0).permutation(VOCAB)[: c.vocab]
  own = {name: params[name] for name in ('layer_0', 'final_norm')}
  return c, family.DrafterParams(own, ids, params['head'][ids])


@functools.cache
def masked_params(prefix: str, shifted: bool = True, turn: int = 0):
  """Returns a masked language model and its params: the verifier's own.

  Its vocabulary is another: ids are permuted, and its mask comes last. Where
  the prefix does not see the masks, and outputs are shifted, the first slot
  has the verifier's own law. `turn` maps ids wrongly, for negative controls.
  """
  _, params = verifier()
  order = np.random.default_rng(6).permutation(VOCAB)
  network = dict(params)
  for name in ('embed', 'head'):
    table = params[name][order]
    network[name] = np.concatenate([table, np.zeros_like(table[:1])])
  sizes = dataclasses.replace(config(), vocab_size=VOCAB + 1)
  model = masked_lm_model.MaskedLM(sizes, VOCAB, shifted, prefix)
  mapped = (order + turn) % VOCAB
  return model, masked_lm.make_params(model, network, mapped, VOCAB)


@functools.cache
def block_params():
  """Returns the config and the random params of a DFlash drafter."""
  c = dflash.DFlashConfig(
    dataclasses.replace(config(), qk_norm=True), (1, 0), GAMMA + 1, VOCAB - 1
  )
  shapes = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in networks.shapes(c).items()
  }
  return c, family.DrafterParams(random(params_lib.nest(shapes), 8, 0.1))


@functools.cache
def script_error():
  """Returns errors [7, M]; most are 0, so siblings often repeat a token."""
  rng = np.random.default_rng(5)
  shape = (7, GAMMA + 1)
  error = np.where(rng.random(shape) < 0.3, rng.integers(1, 3, shape), 0)
  error[1] = 1  # a cycle that accepts nothing
  return error


@dataclasses.dataclass(frozen=True)
class Dominates(accept.SampleAndMatch):
  """The tree walk, which breaks the text if self-selection accepts more.

  Both see the same drafts and the same y in every cycle. `reverse` breaks the
  text where the walk accepts more, for the negative control.
  """

  reverse: bool = False

  def __call__(self, tree, logits, length, sampling, noise, max_depth):
    given = (tree, logits, length, sampling, noise, max_depth)
    walked = super().__call__(*given)
    selected = accept.SelfSelection()(*given)
    more, less = walked.count, selected.count
    less, more = (more, less) if self.reverse else (less, more)
    broken = (walked.bonus + 1) % logits.shape[-1]
    return walked.replace(bonus=jnp.where(less > more, broken, walked.bonus))


def _drafts(arrangement, **options):
  return 2, strategies.Drafts(
    drafts=3, arrangement=arrangement, temperature=1.0, **options
  )


HEAD = heads.Gated(3, VOCAB, config())

# Strategies over the marginals, with the gamma that fills the slots.
DIFFUSION = {
  'argmax': (GAMMA, strategies.Chain(mode='argmax')),
  'sample': (GAMMA, strategies.Chain(mode='sample')),
  'shared_noise': (GAMMA, strategies.Chain(mode='shared_noise')),
  'chains': _drafts('chains'),
  'distinct': _drafts('distinct'),
  'merged': (3, strategies.Drafts(drafts=4, temperature=1.5, budget=GAMMA + 1)),
  'best_first': (4, strategies.BestFirst(GAMMA + 1)),
  'lattice': (4, lattice.Lattice(GAMMA + 1, 3, 4, HEAD)),
}


CHAINS = {
  mode: strategies.Chain(mode=mode)
  for mode in ('argmax', 'sample', 'shared_noise')
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the table."""

  kind: str
  scan_layers: bool = False
  rule: protocols.AcceptanceRule = accept.SampleAndMatch()

  def drafter(self):
    if self.kind in DIFFUSION:
      c, _ = diffusion_params(self.scan_layers)
      gamma, strategy = DIFFUSION[self.kind]
      return diffusion.MaskedDiffusion(c, gamma, strategy)
    family, _, mode = self.kind.partition('_')
    if family in masked_lm_model.PREFIXES:
      model, _ = masked_params(family)
      return masked_lm.MaskedLMDrafter(model, *DIFFUSION[mode])
    if family == 'block':
      c, _ = block_params()
      return block.Block(c, *DIFFUSION[mode])
    if family == 'sps':
      c, _ = causal_params(self.scan_layers)
      return autoregressive.Autoregressive(c, GAMMA, CHAINS[mode])
    if family == 'exit':
      return early_exit.EarlyExit(
        config(self.scan_layers), 1, GAMMA, CHAINS[mode]
      )
    return {
      'ar': none.NoDraft(GAMMA + 1),
      'lookup': lookup.PromptLookup(GAMMA),
      'scripted': scripted.Scripted(CHAIN, True, VOCAB),
      'tree': scripted.Scripted(BRANCHES, False, VOCAB),
      'tree_without_gather': scripted.Scripted(BRANCHES, True, VOCAB),
      'garbage': Garbage(),
    }[self.kind]

  def engine(self) -> engine_lib.Engine:
    return engine_of(self.drafter(), self.rule, self.scan_layers)

  def drafter_params(self, settings, error=None):
    if self.kind in DIFFUSION:
      return diffusion_params(self.scan_layers)[1]
    family = self.kind.partition('_')[0]
    if family in masked_lm_model.PREFIXES:
      return masked_params(family)[1]
    if family == 'block':
      params = block_params()[1]
      if self.kind == 'block_lattice':
        edges = random(HEAD.shapes(), 3, 0.7)
        return self.drafter().with_edges(params, edges)
      return params
    if family == 'sps':
      return causal_params(self.scan_layers)[1]
    if not isinstance(self.drafter(), scripted.Scripted):
      return ()
    error = script_error() if error is None else error
    return scripted.Script(script(settings), error)


REQUESTS = contract.requests(VOCAB)


def engine_of(
  drafter, rule=accept.SampleAndMatch(), scan_layers: bool = False, **options
) -> engine_lib.Engine:
  """Returns the engine of the verifier above and of a drafter."""
  network, _ = verifier(scan_layers)
  return engine_lib.Engine(
    causal.CausalVerifier(network), drafter, rule, NEW, **options
  )


def session(
  row: Row, settings: request_lib.Settings, batch: int = 4, error=None, **more
) -> session_lib.Session:
  """Returns a system of the table with its weights."""
  fields = {
    'engine': row.engine(),
    # As systems are served.
    'params': transformer_layer.merged(verifier(row.scan_layers)[1]),
    'drafter_params': transformer_layer.merged(
      row.drafter_params(settings, error)
    ),
    'settings': settings,
    'batch': batch,
    'buckets': (BUCKET,),
  }
  return session_lib.Session(**(fields | more))


def script(settings: request_lib.Settings):
  """Returns the texts [V, T] that plain decoding gives, by first token."""
  settings = dataclasses.replace(settings, max_new_tokens=NEW, end_ids=())
  text = np.zeros((VOCAB, BUCKET + NEW), np.int32)
  for request, completion in zip(REQUESTS, plain(settings)):
    whole = list(request.prompt) + list(completion)
    text[request.prompt[0], : len(whole)] = whole
  return text


@functools.cache
def plain(settings: request_lib.Settings) -> list[list[int]]:
  """Returns the completions of plain decoding."""
  return tokens(run(Row('ar'), settings))


def run(
  row: Row,
  settings: request_lib.Settings,
  requests: Sequence[request_lib.Request] = REQUESTS,
  batch: int = 4,
  error=None,
  cycles_per_call: int = 1,
  **options,
) -> list[request_lib.Completion]:
  """Decodes with a system of the table."""
  one = session(row, settings, batch, error, cycles_per_call=cycles_per_call)
  return one.decode(requests, **options)


def tokens(completions) -> list[list[int]]:
  return [completion.tokens.tolist() for completion in completions]
