"""The contract of every system: speculation changes nothing but the speed.

Every system that a recipe can name is built by its own constructor, with the
options that change what is drafted, and goes through `testing.contract`; so do
drafters that are made to err.
"""

import dataclasses
import functools

import contract_systems as systems
import jax
import numpy as np
import pytest

from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding.rules import accept
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import heads
from specdiff_jax.drafters import none
from specdiff_jax.drafters import registry
from specdiff_jax.drafters.ngram import file as ngram_file
from specdiff_jax.drafters.ngram import kneser_ney
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import systems as systems_lib
from specdiff_jax.testing import contract
from specdiff_jax.testing import models

Row = systems.Row

# Options of every system that change what is drafted, or how it is accepted.
# 'drafter' is a kind of network, started from the verifier, or 'random'.
_SPS, _MLM = {'drafter': 'autoregressive'}, {'drafter': 'masked_lm'}
_EAGLE = {'drafter': 'eagle'}
REGISTRY = {
  'ar': ({}, {'exact': False}),
  'lookup': ({}, {'rule': 'greedy'}),
  'specdiff': (
    {'draft': 'argmax'},
    {'draft': 'sample'},
    {'draft': 'shared_noise'},
    {'draft': 'sample', 'rule': 'rejection'},
    {'denoising_steps': 2, 'context_window': 3},
    _MLM,
    {'drafter': 'random', 'scan_layers': True},
  ),
  'dflash': ({'drafter': 'dflash'},),
  'deer': ({},),
  'specdiff2': ({},),
  'tree': (
    {},
    {'draft_temperature': 1.5, 'budget': 5},
    {'rule': 'rejection'},
    {'rule': 'without_replacement'},
  ),
  'best_first': ({}, _MLM),
  'lattice': (
    _MLM | {'frontier': 2},
    *({'head': kind, 'candidates': 4} for kind in heads.KINDS),
    {'head': 'NGRAM', 'head_weight': 0.5},
  ),
  'diffuspec': (
    {'diffuspec': {'k_min': 1, 'delta': 2}},
    {'diffuspec': {'k_min': 1, 'confidence': 'HEAD', 'sizes': 2}},
    {'diffuspec': {'adl': False}, 'rule': 'greedy', 'denoising_steps': 2},
    _MLM
    | {'diffuspec': {'k_min': 2, 'ngram': 'NGRAM', 'tau': 0.99, 'sizes': 2}},
  ),
  'adaptive': ({'gammas': (2, 4), 'budgets': (7,)},),
  'sps': (
    _SPS | {'draft': 'argmax'},
    _SPS | {'draft': 'sample', 'rule': 'block'},
    _SPS,
  ),
  'd2sd': (
    {'drafter': 'dflash', 'gamma': 3, 'branches': 2, 'second_gamma': 4},
    {'drafter': 'random'},
  ),
  'mixture': ({'drafter': {'first': 'diffusion', 'second': 'dflash'}},),
  'eagle': (
    _EAGLE | {'candidates': 3, 'frontier': 2},
    _EAGLE | {'budget': 5},
  ),
  'early_exit': (
    {'draft': 'argmax'},
    {'draft': 'sample'},
    {},
    {'scan_layers': True},
  ),
}
# Drafters that err as they are told to, and one of published weights.
BY_HAND = (
  Row('scripted'),
  Row('tree'),
  Row('tree', scan_layers=True),
  Row('tree', rule=accept.SelfSelection()),
  Row('garbage'),
  Row('block_shared_noise'),
  Row('block_lattice'),
)
_SIZES = {
  'gamma': 4,
  'drafts': 2,
  'budget': 7,
  'network': {'layers': 1, 'trunk': 24, 'vocab': 40, 'ngram': 2},
  'masked_lm': {'mask_id': systems.VOCAB - 1},
}


def _name(case) -> str:
  if isinstance(case, Row):
    return name(case)
  system, options = case
  return '-'.join(
    ','.join(map(str, x.values())) if isinstance(x, dict) else str(x)
    for x in (system, *options.values())
  )


CASES = [
  *((system, options) for system in REGISTRY for options in REGISTRY[system]),
  *BY_HAND,
]


@pytest.fixture(scope='module')
def drafter_of(tmp_path_factory):
  """Returns a function from a kind to a file of a drafter of that kind."""

  @functools.cache
  def path(kind: str) -> str:
    verifier = models.tiny_verifier()
    recipe = decoding.told(['sps'], _sizes('sps') | {'drafter': 'random'})
    sizes = systems_lib.build_drafters.sizes(
      recipe.systems['specdiff'], verifier, kind
    )
    network = registry.network(kind)
    start = jax.jit(network.from_verifier, static_argnums=0)  # once, not by op
    params = start(sizes, jax.random.key(0), verifier.params)
    file = str(tmp_path_factory.mktemp('drafters') / f'{kind}.safetensors')
    vocab = np.random.default_rng(0).permutation(systems.VOCAB)[: sizes.vocab]
    drafter_file.save(file, sizes, params, vocab, verifier, {})
    return file

  return path


def _sizes(system: str) -> dict:
  options = {
    one.name
    for one in dataclasses.fields(systems_lib.options_lib.SYSTEMS[system])
  }
  return {n: value for n, value in _SIZES.items() if n in options}


@pytest.fixture(scope='module')
def head_of(drafter_of, tmp_path_factory):
  """Returns a function from a kind of head to a file of it, of that drafter."""

  @functools.cache
  def path(kind: str) -> str:
    verifier = models.tiny_verifier()
    recipe = decoding.told(['lattice'], _sizes('lattice'))
    drafter = systems_lib.build_drafters.load(
      recipe.systems['lattice'], verifier, 'diffusion', drafter_of('diffusion')
    )
    kinds = heads.KINDS | heads.CONFIDENCES
    head = kinds[kind](3, len(drafter.vocab), verifier.config)
    params = systems.random(head.shapes(), 3, 0.7)
    file = str(tmp_path_factory.mktemp('heads') / f'{kind}.safetensors')
    facts = {'drafter': heads.fingerprint(drafter)}
    drafter_file.save(file, head, params, drafter.vocab, verifier, facts)
    return file

  return path


@pytest.fixture(scope='module')
def ngram(tmp_path_factory):
  """Returns files of n-gram models of the verifier's own texts, by order."""
  folder = tmp_path_factory.mktemp('ngram')
  texts = [*systems.plain(SAMPLED), *systems.plain(GREEDY)]
  found = {order: str(folder / f'{order}.safetensors') for order in (2, 3)}
  for order, path in found.items():
    levels = kneser_ney.fit(texts, systems.VOCAB, order)
    ngram_file.save(path, levels, models.tiny_verifier().tokenizer, {})
  return found


@pytest.fixture(scope='module')
def built(drafter_of, head_of, ngram):
  """Returns a function from a case to its `Contract`, built once."""

  @functools.lru_cache(1)  # its checks run one after the other
  def build(index: int) -> contract.Contract:
    if index % 8 == 0:  # see conftest.fresh_programs
      jax.clear_caches()
    case = CASES[index]
    if isinstance(case, Row):
      return Contract(
        case.drafter(),
        case.drafter_params(SAMPLED),
        models.tiny_verifier(case.scan_layers),
        case.rule,
      )
    system, options = case
    options, named = _sizes(system) | options, {}
    verifier = models.tiny_verifier(options.pop('scan_layers', False))
    if 'network' in options:
      kind = options.get('drafter', 'diffusion')
      path = lambda kind: kind if kind == 'random' else drafter_of(kind)
      named = kind if isinstance(kind, dict) else {'': kind}
      named = {part: path(one) for part, one in named.items()}
      options['drafter'] = named.pop('', '')
    if 'head' in options:
      kind = options['head']
      options['head'] = ngram[2] if kind == 'NGRAM' else head_of(kind)
    own = options.get('diffuspec', {})
    if 'confidence' in own:
      options['diffuspec'] = own | {'confidence': head_of('confidence')}
    if 'ngram' in own:
      options['diffuspec'] = own | {'ngram': ngram[3]}
    recipe = decoding.told(
      [system], options, drafters={system: named} if named else {}
    )
    parts = systems_lib.parts(system, recipe.systems[system], verifier)
    return Contract(parts.drafter, parts.params, verifier, parts.rule)

  return build


class Contract(contract.Contract):
  """One whose plain texts are decoded once for all drafters of its shapes."""

  def plain(self, settings):
    scanned = self.verifier.config.scan_layers
    assert self.verifier.config == models.tiny_config(scanned)
    return plain(scanned, self.drafter.buckets[-1], settings)


@functools.cache
def plain(scan_layers, slots, settings):
  verifier = models.tiny_verifier(scan_layers)
  one = contract.Contract(none.NoDraft(slots), (), verifier)
  return one.decode(settings)


GREEDY, SAMPLED = contract.GREEDY, contract.SAMPLED
SETTINGS = contract.SETTINGS


def name(row):
  selected = isinstance(row.rule, accept.SelfSelection)
  return (
    row.kind
    + ('_scanned' if row.scan_layers else '')
    + ('_selected' if selected else '')
  )


def test_every_system_is_here():
  assert set(REGISTRY) == set(systems_lib.SYSTEMS)


@pytest.mark.parametrize('check', contract.CHECKS)
@pytest.mark.parametrize('case', range(len(CASES)), ids=map(_name, CASES))
def test_a_system_keeps_the_contract(built, case, check):
  contract.CHECKS[check](built(case))


def broken(**changes):
  """Returns the scripted tree with one thing wrong."""

  @dataclasses.dataclass(frozen=True)
  class Broken(type(Row('tree').drafter())):
    def draft(self, params, state, context, sampling, noise, slots):
      tree, state = super().draft(
        params, state, context, sampling, noise, slots
      )
      wrong = {n: change(getattr(tree, n)) for n, change in changes.items()}
      return tree.replace(**wrong), state

  return Broken(systems.BRANCHES, False, systems.VOCAB)


def contract_of(drafter, rule=accept.SampleAndMatch()):
  params = Row('tree').drafter_params(SAMPLED)
  return contract.Contract(drafter, params, models.tiny_verifier(), rule)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'token': lambda x: x + 1}, 'slot 0 .* last committed'),
    ({'depth': lambda x: x * 2}, 'depth is not'),
    ({'parent': lambda x: x.at[:, 1].set(3)}, 'before its child'),
    ({'token': lambda x: x[:, :-1]}, 'token of its tree'),
  ],
)
def test_a_broken_tree_is_told(changes, words):
  with pytest.raises(AssertionError, match=words):
    contract.check_tree(contract_of(broken(**changes)))


def test_a_tree_that_claims_to_be_a_chain_is_told():
  """Its accepted paths are not gathered."""
  one = contract_of(Row('tree_without_gather').drafter())
  with pytest.raises(AssertionError, match='`chain` is True'):
    contract.check_tree(one)
  with pytest.raises(AssertionError, match='differs from plain decoding'):
    contract.check_sampled(one)


def test_a_lossy_rule_is_told():
  one = contract_of(Row('tree').drafter(), systems.AcceptFirst())
  with pytest.raises(AssertionError, match='under AcceptFirst, at temper'):
    contract.check_greedy(one)


def test_wrong_depths_change_the_text_and_are_told():
  """Positions, and so the noise, are those of other tokens."""
  one = contract_of(broken(depth=lambda x: x.at[:, 1:].add(1)))
  with pytest.raises(AssertionError, match='differs from plain decoding'):
    contract.check_sampled(one)


def test_a_compilation_for_each_call_is_told():
  class Fresh(type(Row('lookup').drafter())):
    __hash__ = object.__hash__
    __eq__ = object.__eq__

  class Again(contract.Contract):
    def session(self, settings, drafter=None, params=()):
      fresh = dataclasses.replace(self, drafter=Fresh(self.drafter.gamma))
      return contract.Contract.session(fresh, settings, drafter, params)

  one = Again(Fresh(systems.GAMMA), (), models.tiny_verifier())
  with pytest.raises(AssertionError, match='compiled .* programs'):
    contract.check_compilations(one)


def taus(completions):
  return sum(c.emitted for c in completions) / sum(
    c.cycles for c in completions
  )


def test_the_reference_is_worth_comparing_with():
  """Plain texts are varied, and each setting has its own."""
  outputs = [systems.plain(settings) for settings in SETTINGS]
  for output in outputs:
    assert len({tuple(tokens) for tokens in output}) == len(output)
    assert np.mean([len(set(tokens)) for tokens in output]) > 5
  assert len({str(output) for output in outputs}) == len(SETTINGS)


@pytest.mark.parametrize('kind', ['ar', 'shared_noise', 'tree'])
def test_one_row_is_decoded_as_in_an_uneven_batch(kind):
  row = Row(kind)
  for settings in (GREEDY, SETTINGS[-1]):
    batch = systems.run(row, settings)
    alone = systems.run(row, settings, batch=1)
    assert systems.tokens(alone) == systems.tokens(batch)
    for first, second in zip(alone, batch):
      assert (first.cycles, first.emitted) == (second.cycles, second.emitted)
      np.testing.assert_array_equal(first.accepted, second.accepted)


@pytest.mark.parametrize('kind', ['tree', 'garbage'])
@pytest.mark.parametrize('settings', [GREEDY, SAMPLED], ids=['T0', 'T1'])
def test_a_lossy_rule_is_noticed(kind, settings):
  """Negative control of the comparisons above."""
  row = Row(kind, rule=systems.AcceptFirst())
  got = systems.tokens(systems.run(row, settings))
  assert got != systems.plain(settings)


def test_a_path_that_is_not_gathered_is_noticed():
  """Negative control: the keys of another branch stay in the cache."""
  row = Row('tree_without_gather')
  assert systems.tokens(systems.run(row, SAMPLED)) != systems.plain(SAMPLED)


@pytest.mark.parametrize('kind', ['tree', 'merged'])
@pytest.mark.parametrize('settings', [GREEDY, SAMPLED], ids=['T0', 'T1'])
def test_the_tree_walk_never_accepts_less_than_self_selection(kind, settings):
  """Asserted for every cycle: one that did would break the text."""
  row = Row(kind, rule=systems.Dominates())
  assert systems.tokens(systems.run(row, settings)) == systems.plain(settings)


def test_a_walk_that_accepts_more_is_noticed():
  """Negative control: the same comparison the other way round."""
  row = Row('tree', rule=systems.Dominates(reverse=True))
  assert systems.tokens(systems.run(row, SAMPLED)) != systems.plain(SAMPLED)


def test_trees_are_exercised():
  """Deep and partial paths are accepted, also off the first branch."""
  accepted = sum(c.accepted for c in systems.run(Row('tree'), SAMPLED))
  assert accepted.size == 4 and (accepted > 0).all()


def test_an_adversary_changes_only_the_speed():
  # Always right, or always wrong.
  right, wrong = (np.full((7, systems.GAMMA + 1), error) for error in (0, 1))
  for settings in (GREEDY, SAMPLED):
    best = systems.run(Row('scripted'), settings, error=right)
    worst = systems.run(Row('scripted'), settings, error=wrong)
    assert systems.tokens(best) == systems.tokens(worst)
    assert all(c.cycles == c.emitted for c in worst)
    for c in worst:
      np.testing.assert_array_equal(c.accepted[1:], 0)
    cycles = -(-(systems.NEW - 1) // (systems.GAMMA + 1))
    assert all(c.cycles == cycles for c in best)


def test_shared_noise_is_accepted_more_often():
  shared = systems.run(Row('shared_noise'), SAMPLED)
  own = systems.run(Row('sample'), SAMPLED)
  assert taus(shared) > taus(own) + 0.1


def test_a_recompilation_is_noticed(compilations):
  """Negative control: a program for another shape."""
  before = compilations()
  jax.jit(lambda x: x + 1)(np.zeros(3))
  assert compilations() == before + 1


@pytest.mark.parametrize('kind', ['ar', 'shared_noise', 'tree'])
def test_noise_is_keyed_by_the_request_not_by_its_row(kind):
  row = Row(kind)
  wanted = dict(zip(range(6), systems.plain(SAMPLED)))
  for order in ([5, 2, 0, 1], [2, 4], [3], [1, 5, 4, 3, 2, 0]):
    got = systems.run(row, SAMPLED, [systems.REQUESTS[i] for i in order])
    assert [c.number for c in got] == order
    assert systems.tokens(got) == [wanted[i] for i in order]
  # Negative controls: another number, another seed.
  prompt = systems.REQUESTS[3].prompt
  other = systems.run(row, SAMPLED, [request_lib.Request(77, prompt)])
  assert systems.tokens(other) != [wanted[3]]
  seed = dataclasses.replace(SAMPLED, seed=99)
  other = systems.run(row, seed, [systems.REQUESTS[3]])
  assert systems.tokens(other) != [wanted[3]]


def test_greedy_decoding_draws_no_noise():
  prompt = systems.REQUESTS[3].prompt
  requests = [request_lib.Request(77, prompt), systems.REQUESTS[3]]
  settings = dataclasses.replace(GREEDY, seed=99, top_k=5, top_p=0.5)
  got = systems.tokens(systems.run(Row('ar'), settings, requests))
  assert got == [systems.plain(GREEDY)[3]] * 2


def test_scanned_layers_are_the_unrolled_ones():
  for settings in (GREEDY, SAMPLED):
    got = systems.run(Row('ar', scan_layers=True), settings)
    assert systems.tokens(got) == systems.plain(settings)


def test_a_state_is_donated():
  row = Row('ar')
  session = systems.session(row, GREEDY)
  rows = session.rows()
  rows.fill([0], session.start(systems.REQUESTS[:1], rows.group))
  state = rows.state
  cache = jax.tree.leaves(state.cache)
  session.engine.decode(session.params, (), state, np.int32(1), np.int32(4))
  assert all(array.is_deleted() for array in cache)
