"""The systems that keep the contract, on a model of a few thousand numbers.

Three drafters are made for the tests. `Scripted` knows the continuation and
errs where it is told to, as a chain or as a tree; `Garbage` knows nothing.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.decoding.rules import accept
from specdiff_jax.drafters import early_exit
from specdiff_jax.drafters import family
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
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import networks
from specdiff_jax.models import transformer
from specdiff_jax.verifiers import causal

VOCAB, GAMMA, BUCKET, NEW = 61, 6, 16, 24

# All trees have as many slots, so that all verify in the same shapes. This one
# has three branches of 1, 3 and 2 slots, interleaved, so that an accepted path
# has to be gathered.
BRANCHES = (0, 0, 0, 0, 2, 3, 4)
CHAIN = tuple(max(i - 1, 0) for i in range(GAMMA + 1))


def config(scan_layers: bool = False) -> config_lib.TransformerConfig:
  return config_lib.TransformerConfig(
    vocab_size=VOCAB,
    width=24,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=6,
    mlp_width=40,
    tied_head=False,  # a tied one says the same token again and again
    scan_layers=scan_layers,
  )


def random(shapes, seed: int, scale: float):
  """Returns params: norms near 1, other weights of this scale."""
  rng = np.random.default_rng(seed)

  def one(path, leaf):
    value = rng.standard_normal(leaf.shape).astype(np.float32)
    return 1 + 0.1 * value if 'norm' in str(path[-1]) else scale * value

  return jax.tree_util.tree_map_with_path(one, shapes)


@functools.cache
def verifier(scan_layers: bool = False):
  """Returns (network, params); the params are of the same numbers."""
  c, one = config(), np.ones((1, 1), np.int32)
  shapes = jax.eval_shape(
    lambda: transformer.Transformer(c).init(
      jax.random.key(0), one, one, one[None] > 0
    )
  )['params']
  # Large weights, so that the text depends on more than its last token.
  params = random(shapes, 1, 0.16)
  if scan_layers:
    layers = [params.pop(f'layer_{i}') for i in range(c.layers)]
    params['layers'] = jax.tree.map(lambda *x: np.stack(x), *layers)
  return transformer.Transformer(config(scan_layers)), params


@flax.struct.dataclass
class Script:
  """What `Scripted` reads."""

  truth: jax.Array  # [V, T] text of the prompt that begins with a token
  error: jax.Array  # [P, M] added to the right token, by cycle and slot


@dataclasses.dataclass(frozen=True)
class Scripted:
  """Drafts the known continuation plus errors, in a tree of any shape."""

  parents: tuple[int, ...] = CHAIN
  chain: bool = True

  proposal: ClassVar[str] = 'unknown'
  features: ClassVar[tuple[int, ...]] = ()

  @property
  def depths(self) -> list[int]:
    depths = [0]
    for parent in self.parents[1:]:
      depths.append(depths[parent] + 1)
    return depths

  @property
  def buckets(self) -> tuple[int, ...]:
    return (len(self.parents),)

  @property
  def max_depth(self) -> int:
    return max(self.depths)

  def init(self, params, context, features):
    return jnp.zeros_like(context.length)

  def draft(self, params, state, context, sampling, noise, slots):
    length = context.length[:, None]
    depth = jnp.array(self.depths)[None]
    place = jnp.minimum(length - 1 + depth, params.truth.shape[1] - 1)
    truth = params.truth[context.tokens[:, 0]]
    token = jnp.take_along_axis(truth, place, axis=1)
    token = (token + params.error[state % len(params.error)]) % VOCAB
    shape = token.shape
    tree = types.DraftTree(
      token=token.at[:, 0].set(context.last),
      parent=jnp.broadcast_to(jnp.array(self.parents), shape),
      depth=jnp.broadcast_to(depth, shape),
      valid=jnp.ones(shape, bool),
    )
    return tree, state + 1

  def observe(self, params, state, context, verdict, features, slots):
    return state


@dataclasses.dataclass(frozen=True)
class Garbage:
  """Drafts any ids, with holes, and keeps a state full of NaN."""

  proposal: ClassVar[str] = 'unknown'
  chain: ClassVar[bool] = True
  features: ClassVar[tuple[int, ...]] = (1, 0)
  buckets: ClassVar[tuple[int, ...]] = (GAMMA + 1,)
  max_depth: ClassVar[int] = GAMMA

  def init(self, params, context, features):
    return jnp.full(context.length.shape, jnp.nan)

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
  return c, random(params_lib.nest(shapes), 8, 0.1)


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


# Strategies over the marginals, with the gamma that fills the slots.
DIFFUSION = {
  'argmax': (GAMMA, strategies.Chain(mode='argmax')),
  'sample': (GAMMA, strategies.Chain(mode='sample')),
  'shared_noise': (GAMMA, strategies.Chain(mode='shared_noise')),
  'chains': _drafts('chains'),
  'distinct': _drafts('distinct'),
  'merged': (3, strategies.Drafts(drafts=4, temperature=1.5, budget=GAMMA + 1)),
  'best_first': (4, strategies.BestFirst(GAMMA + 1)),
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
  rule: types.AcceptanceRule = accept.SampleAndMatch()

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
      'scripted': Scripted(),
      'tree': Scripted(BRANCHES, chain=False),
      'tree_without_gather': Scripted(BRANCHES, chain=True),
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
      return block_params()[1]
    if family == 'sps':
      return causal_params(self.scan_layers)[1]
    if not isinstance(self.drafter(), Scripted):
      return ()
    return Script(script(settings), script_error() if error is None else error)


REQUESTS = tuple(
  request_lib.Request(
    number,
    [number]
    + np.random.default_rng(number)
    .integers(0, VOCAB, size=2 * number)
    .tolist(),
  )
  for number in range(6)
)


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
    'params': verifier(row.scan_layers)[1],
    'drafter_params': row.drafter_params(settings, error),
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
