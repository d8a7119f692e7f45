"""The contract of drafters: speculation changes nothing but the speed."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import compilations
from specdiff_jax.core import protocols
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.decoding.rules import accept
from specdiff_jax.drafters import none
from specdiff_jax.models import networks
from specdiff_jax.testing import models
from specdiff_jax.verifiers import causal

BUCKET, NEW, BATCH = 16, 24, 4
GREEDY = request_lib.Settings(max_new_tokens=NEW)
SAMPLED = dataclasses.replace(GREEDY, temperature=1.0, seed=3)
SETTINGS = (
  GREEDY,
  SAMPLED,
  dataclasses.replace(GREEDY, temperature=1.4, top_k=12, seed=4),
  dataclasses.replace(GREEDY, temperature=1.2, top_p=0.8, seed=5),
  dataclasses.replace(GREEDY, temperature=0.8, top_k=20, top_p=0.9, seed=6),
)
_MATCH = accept.SampleAndMatch()
_FACTS = {'buckets': tuple, 'max_depth': int, 'proposal': str, 'chain': bool}

Tokens = list[list[int]]


@functools.cache
def requests(vocab_size: int) -> tuple[request_lib.Request, ...]:
  """Returns six prompts of 1 to 11 tokens, each with a first token of its own."""
  return tuple(
    request_lib.Request(
      number,
      [
        number,
        *np.random.default_rng(number)
        .integers(0, vocab_size, size=2 * number)
        .tolist(),
      ],
    )
    for number in range(6)
  )


def check_drafter(
  drafter: protocols.Drafter,
  params: types.Params = (),
  *,
  verifier: weights.Checkpoint | None = None,
  rules: Sequence[protocols.AcceptanceRule] = (_MATCH,),
) -> None:
  """Raises AssertionError, which says how, where a drafter breaks decoding.

  It decodes six prompts under several settings and compares with plain decoding
  through the same shapes: at temperature 0 all tokens have to be equal, under
  SampleAndMatch those that are drawn with a seed, too. It checks the trees,
  end tokens and limits at every offset, rows alone and together, that a second
  call compiles nothing, and that params full of NaN cost only speed.

  Args:
    drafter: the drafter.
    params: its params.
    verifier: what it drafts for, in float32; by default `tiny_verifier`.
    rules: those that it is to be used with.

  Example:
    >>> import specdiff_jax as sd
    >>> from specdiff_jax.drafters import lookup
    >>> sd.testing.check_drafter(lookup.PromptLookup(gamma=2))
  """
  for rule in rules:
    one = Contract(drafter, params, verifier or models.tiny_verifier(), rule)
    for check in CHECKS.values():
      check(one)


# Trees of the last `Contract.decode`, with the last committed tokens before them.
_TREES: list[tuple[types.DraftTree, Any]] = []


@dataclasses.dataclass(frozen=True)
class _Watched:
  """A drafter whose trees are kept; all else is its own."""

  drafter: protocols.Drafter

  def __getattr__(self, name):
    return getattr(self.drafter, name)

  def draft(self, params, state, context, sampling, noise, slots):
    tree, state = self.drafter.draft(
      params, state, context, sampling, noise, slots
    )
    shape = context.length.size, slots
    for name in ('token', 'parent', 'depth', 'valid'):
      found = getattr(tree, name).shape
      if found != shape:
        raise AssertionError(f'{name} of its tree is {found}, not {shape}.')
    kept = tree.replace(log_q=None, candidates=None), context.last
    jax.debug.callback(lambda *one: _TREES.append(one), *kept)
    return tree, state


@dataclasses.dataclass(frozen=True, eq=False)
class Contract:
  """A drafter with all that it decodes with."""

  drafter: protocols.Drafter
  params: types.Params
  verifier: weights.Checkpoint
  rule: protocols.AcceptanceRule = _MATCH

  @property
  def name(self) -> str:
    return f'{type(self.drafter).__name__} under {type(self.rule).__name__}'

  @property
  def is_seeded(self) -> bool:
    """Whether tokens that are drawn with a seed are plain decoding's."""
    inner = getattr(self.rule, 'rule', self.rule)
    return isinstance(inner, accept.SampleAndMatch)

  @property
  def settings(self) -> tuple[request_lib.Settings, ...]:
    """Those under which the very tokens are compared."""
    return SETTINGS if self.is_seeded else SETTINGS[:1]

  @property
  def requests(self) -> tuple[request_lib.Request, ...]:
    return requests(self.verifier.config.vocab_size)

  def session(
    self,
    settings: request_lib.Settings,
    drafter: Any = None,
    params: types.Params = (),
  ) -> session_lib.Session:
    """Returns what decodes, with another drafter if one is given."""
    engine = engine_lib.Engine(
      causal.CausalVerifier(networks.network(self.verifier.config)),
      drafter or cast(protocols.Drafter, _Watched(self.drafter)),
      _MATCH if drafter else self.rule,
      NEW,
    )
    params = params if drafter else self.params
    return session_lib.Session(
      engine, self.verifier.params, params, settings, BATCH, (BUCKET,)
    )

  def decode(
    self,
    settings: request_lib.Settings,
    asked: Sequence[request_lib.Request] | None = None,
  ) -> Tokens:
    """Returns the tokens of the drafter's system."""
    _TREES.clear()
    found = self.session(settings).decode(asked or self.requests)
    return [one.tokens.tolist() for one in found]

  def plain(self, settings: request_lib.Settings) -> Tokens:
    """Returns the tokens of plain decoding through the same shapes."""
    drafter = none.NoDraft(self.drafter.buckets[-1])
    found = self.session(settings, drafter).decode(self.requests)
    return [one.tokens.tolist() for one in found]

  def compare(self, got: Tokens, wanted: Tokens, where: str) -> None:
    """Raises AssertionError at the first difference."""
    for request, mine, plain in zip(self.requests, got, wanted):
      if mine != plain:
        pairs = enumerate(zip(mine, plain))
        at = next(
          (i for i, (a, b) in pairs if a != b), min(len(mine), len(plain))
        )
        raise AssertionError(
          f'{self.name}, {where}: prompt {request.number} differs from plain '
          f'decoding at token {at}: {mine[at : at + 5]} for '
          f'{plain[at : at + 5]}. A drafter must only propose: look at the '
          'parents, depths and slot 0 of its tree, and at `chain`.'
        )


def check_tree(one: Contract) -> None:
  """Checks what the drafter says of itself, and its trees of each size."""
  drafter = one.drafter
  for name, kind in _FACTS.items():
    _hold(
      isinstance(getattr(drafter, name, None), kind),
      one,
      f'{name} is {getattr(drafter, name, None)!r}, but has to be a '
      f'{kind.__name__}',
    )
  sizes = drafter.buckets
  _hold(
    sizes and list(sizes) == sorted(set(sizes)) and sizes[0] > 0,
    one,
    f'buckets is {sizes}, but has to be sizes in ascending order',
  )
  _hold(
    drafter.proposal in protocols.PROPOSALS,
    one,
    f'proposal is {drafter.proposal!r}, but has to be one of '
    f'{", ".join(protocols.PROPOSALS)}',
  )
  for index, slots in enumerate(sizes):
    forced = one
    if len(sizes) > 1:
      params = cast(protocols.AdaptiveDrafter, drafter).forced(
        one.params, index
      )
      forced = dataclasses.replace(one, params=params)
    forced.decode(SAMPLED)
    jax.effects_barrier()
    _hold(_TREES, one, f'it drafted no tree of {slots} slots')
    for tree, last in _TREES:
      _check_slots(one, tree, last)


def _check_slots(one: Contract, tree: types.DraftTree, last: Any) -> None:
  slots = tree.token.shape[1]
  most = min(one.drafter.max_depth, slots - 1)
  _hold(
    (tree.token[:, 0] == last).all(),
    one,
    'slot 0 of its tree is not the last committed token, `context.last`',
  )
  index, rows = np.arange(slots), np.arange(BATCH)[:, None]
  valid = tree.valid & (index > 0)
  _hold(
    (tree.parent[:, 0] == 0).all() and (tree.parent[:, 1:] < index[1:]).all(),
    one,
    'a parent in its tree does not come before its child',
  )
  above = tree.depth[rows, tree.parent]
  _hold(
    (tree.depth[:, 0] == 0).all() and (tree.depth == above + 1)[valid].all(),
    one,
    "a slot's depth is not that of its parent and one more",
  )
  _hold(
    (tree.depth[valid] <= most).all(),
    one,
    f'a slot lies deeper than max_depth, {most}',
  )
  _hold(
    tree.ancestors is None
    or (tree.ancestors == tree_lib.ancestors(tree.parent)).all(),
    one,
    'its `ancestors` are not those that `parent` yields; leave them out',
  )
  _hold(
    not one.drafter.chain or (tree.parent == index - 1)[valid].all(),
    one,
    '`chain` is True, but a slot is not the child of the one before it',
  )


def check_greedy(one: Contract) -> None:
  """Checks that greedy output is plain decoding's, token for token."""
  one.compare(one.decode(GREEDY), one.plain(GREEDY), 'at temperature 0')


def check_sampled(one: Contract) -> None:
  """Checks that output drawn with a seed is, under SampleAndMatch."""
  for settings in one.settings[1:]:
    one.compare(one.decode(settings), one.plain(settings), f'{settings}')


def check_ends(one: Contract) -> None:
  """Checks that an end token ends a text wherever in a draft it stands."""
  settings = one.settings[:2][-1]
  plain = one.plain(settings)
  for end in dict.fromkeys(plain[0][: 2 * one.drafter.max_depth + 3]):
    ended = dataclasses.replace(settings, end_ids=(end,))
    got = one.decode(ended, one.requests[:BATCH])
    wanted = [_cut(text, end) for text in plain]
    one.compare(got, wanted, f'end token {end}')


def check_limits(one: Contract) -> None:
  """Checks that a text has the tokens that were asked for, and no more."""
  settings = one.settings[:2][-1]
  plain = one.plain(settings)
  for limit in range(1, min(2 * one.drafter.max_depth + 3, NEW)):
    limited = dataclasses.replace(settings, max_new_tokens=limit)
    got = one.decode(limited, one.requests[:BATCH])
    wanted = [text[:limit] for text in plain]
    one.compare(got, wanted, f'max_new_tokens={limit}')


def check_rows(one: Contract) -> None:
  """Checks that rows of uneven lengths do not change each other."""
  settings = one.settings[:2][-1]
  plain = one.plain(settings)
  turned = one.decode(settings, one.requests[::-1])
  one.compare(turned[::-1], plain, 'in another order')
  alone = [one.decode(settings, [request])[0] for request in one.requests]
  one.compare(alone, plain, 'each prompt alone')


def check_compilations(one: Contract) -> None:
  """Checks that a second call of the same sizes compiles nothing."""
  short = functools.partial(dataclasses.replace, max_new_tokens=6)
  one.decode(short(SETTINGS[-1]), one.requests[:BATCH])
  one.decode(short(GREEDY))
  others = [request_lib.Request(n, [n] * (1 + 3 * n)) for n in range(5)]
  before = compilations.count()
  for settings, asked in (
    (short(GREEDY), others),
    (short(SAMPLED), others[::-1]),
    (dataclasses.replace(SAMPLED, max_new_tokens=3, seed=9), others[:3]),
    (short(GREEDY, end_ids=(7,)), one.requests),
    (short(SETTINGS[2]), one.requests[:1]),
  ):
    one.decode(settings, asked)
    more = compilations.count() - before
    _hold(
      not more,
      one,
      f'another call compiled {more} programs ({settings}). It has to be a '
      'frozen dataclass whose equal objects are equal, with arrays in params '
      'and state only, of the same shapes and types in every cycle',
    )


def check_adversary(one: Contract) -> None:
  """Checks that params full of NaN change nothing but the speed."""

  def broken(leaf):
    leaf = jnp.asarray(leaf)
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    return jnp.full_like(leaf, jnp.nan) if is_float else leaf

  if one.rule.reads_q:  # its draws are from what such params say
    return
  bad = dataclasses.replace(one, params=jax.tree.map(broken, one.params))
  settings = one.settings[:2][-1]
  bad.compare(bad.decode(settings), one.plain(settings), 'params full of NaN')


def _hold(good: Any, one: Contract, what: str) -> None:
  if not good:
    raise AssertionError(f'{one.name}: {what}.')


def _cut(text: Sequence[int], end: int) -> list[int]:
  """Returns a text up to its first end token, which belongs to it."""
  text = list(text)
  return text[: text.index(end) + 1] if end in text else text


CHECKS: Mapping[str, Callable[[Contract], None]] = {
  'tree': check_tree,
  'greedy': check_greedy,
  'sampled': check_sampled,
  'ends': check_ends,
  'limits': check_limits,
  'rows': check_rows,
  'compilations': check_compilations,
  'adversary': check_adversary,
}
