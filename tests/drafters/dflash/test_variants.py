"""DFlash 2 and DSpark: with a head and convolutions, in the forms of others."""

import dataclasses
import os

from dflash_files import changed
from dflash_files import CONFIG
from dflash_files import convert
from dflash_files import FORMS
from dflash_files import raw_of
from dflash_files import states_of
from dflash_files import tensors
from dflash_files import trained
from dflash_files import VERIFIER
import jax
import numpy as np
import published_references
import pytest

from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import family
from specdiff_jax.drafters import heads
from specdiff_jax.drafters import published
from specdiff_jax.drafters.dflash import network as dflash
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import systems
from specdiff_jax.testing import models

SELECTOR = {'taps': 2}, 'selector'
MARKOV = {'from_anchor': 1}, 'markov'
GATED = {'from_anchor': 1}, 'gated'
BONUS = {}, 'markov'
VARIANTS = {
  'selector': SELECTOR,
  'markov': MARKOV,
  'gated': GATED,
  'bonus': BONUS,
}
IDS = np.random.default_rng(7).permutation(models.VOCAB)[: CONFIG.vocab]


def both(folder, change, kind):
  """Returns the files of a drafter and of a head that was trained on it."""
  config = dataclasses.replace(CONFIG, **change)
  path = trained(folder, config, IDS)
  _, params, vocab = drafter_file.load(path, VERIFIER, dflash.TrainedConfig)
  one = family.Trained(config, params, vocab, path)
  head = heads.KINDS[kind](4, config.vocab, VERIFIER.config)
  found = models.random_params(head.shapes(), 5, 0.5)
  file = str(folder / 'head.safetensors')
  facts = {'drafter': heads.fingerprint(one)}
  drafter_file.save(file, head, found, vocab, VERIFIER, facts)
  return path, file


@pytest.fixture(scope='module', params=VARIANTS)
def made(request, tmp_path_factory):
  """Returns a variant's name, a folder with its files, and with both forms."""
  folder = tmp_path_factory.mktemp(request.param)
  path, head = both(folder, *VARIANTS[request.param])
  for form in FORMS:
    convert(path, folder / form, form, head=head)
  return request.param, folder


@pytest.mark.parametrize('form', FORMS)
def test_there_and_back_to_the_bit(made, tmp_path, form):
  _, folder = made
  other = {'dflash': 'speculators', 'speculators': 'dflash'}[form]
  there = convert(folder / form, tmp_path / 'there', other)
  back = convert(there, tmp_path / 'back', form)
  first, last = tensors(folder / form), tensors(back)
  assert first.keys() == last.keys()
  for name, tensor in first.items():
    np.testing.assert_array_equal(last[name], tensor, err_msg=name)
  ours, again = raw_of(folder / form), raw_of(back)
  for key in ('num_target_layers', 'speculators_config'):  # one form's alone
    ours.pop(key, None), again.pop(key, None)
  assert again == ours
  # A form that goes into itself keeps what else is beside the tensors.
  same = convert(folder / form, tmp_path / 'same', form)
  assert tensors(same).keys() == first.keys()


def served(system, **told):
  recipe = decoding.told([system], told | {'gamma': 3})
  return systems.parts(system, recipe.systems[system], VERIFIER)


@pytest.mark.parametrize('form', FORMS)
def test_what_is_served_is_what_was_trained(made, form):
  name, folder = made
  theirs = served('lattice', drafter=str(folder / form), candidates=4)
  ours = served(
    'lattice',
    drafter=str(folder / 'drafter.safetensors'),
    head=str(folder / 'head.safetensors'),
    candidates=4,
  )
  sizes = dataclasses.replace(theirs.drafter.config, verifier_layers=2)
  assert sizes == ours.drafter.config
  source = theirs.drafter.strategy.source
  assert source.kind == ours.drafter.strategy.source.kind
  jax.tree.map(
    np.testing.assert_array_equal, theirs.params.network, ours.params.network
  )
  edges = dict(theirs.params.edges)
  whole = np.asarray(edges.pop('successor'))
  mine = dict(ours.params.edges)
  np.testing.assert_array_equal(whole[IDS], mine.pop('successor'))
  assert not np.delete(whole, IDS, axis=0).any()
  jax.tree.map(np.testing.assert_array_equal, edges, mine)
  # Other systems read the slots alone.
  chain = served('specdiff', drafter=str(folder / form))
  assert chain.drafter.config == theirs.drafter.config
  assert 'head' not in chain.params.network
  assert published.read(str(folder / form)).sizes.head.rank == 4, name


def test_an_independent_forward_with_convolutions(tmp_path):
  path, head = both(tmp_path, *SELECTOR)
  folder = convert(path, tmp_path / 'out', 'dflash', 'float32', head)
  raw, found = raw_of(folder), tensors(folder)
  assert raw['architectures'] == ['DFlash2DraftModel']
  rng = np.random.default_rng(3)
  noise, hidden = rng.standard_normal((4, 24)), rng.standard_normal((9, 48))
  wanted = published_references.dflash(raw, found, noise, hidden)
  sizes, params = published.load(folder, '', 'float32')
  network = dflash.DFlash(dataclasses.replace(sizes.sizes, head=None))
  params = {k: v for k, v in params.items() if k != 'head'}
  got = states_of(network, params, hidden, noise)
  np.testing.assert_allclose(got, wanted, atol=1e-5)
  plain = {k: v for k, v in found.items() if '_conv.' not in k}
  other = published_references.dflash(raw, plain, noise, hidden)
  assert np.abs(other - wanted).max() > 1e-2  # they do something


@pytest.mark.parametrize('name', ['selector', 'markov', 'gated'])
def test_an_independent_reading_of_heads(tmp_path, name):
  path, head = both(tmp_path, *VARIANTS[name])
  folder = convert(path, tmp_path / 'out', 'dflash', 'float32', head)
  found = tensors(folder)
  one = served('lattice', drafter=folder, candidates=4)
  rng = np.random.default_rng(3)
  state, token = (
    rng.standard_normal((5, 24)).astype(np.float32),
    rng.integers(0, models.VOCAB, 5),
  )
  edges = one.drafter.strategy.source.edges(
    one.params.edges, state, token[:, None]
  )[:, 0]
  got = edges @ one.params.edges['successor'].T
  wanted = published_references.pair_scores(found, state, token)
  np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_configs_say_what_others_ask_for(tmp_path):
  for name, variant in VARIANTS.items():
    path, head = both(tmp_path, *variant)
    z_lab = raw_of(convert(path, tmp_path / f'{name}1', 'dflash', head=head))
    ours = raw_of(
      convert(path, tmp_path / f'{name}2', 'speculators', head=head)
    )
    proposal = ours['speculators_config']['proposal_methods'][0]
    assert proposal['speculative_tokens'] == 3
    if name == 'selector':
      own = z_lab['dflash_config']
      assert ours['speculators_model_type'] == 'dflash2'
      assert own['conv_kernel_size'] == ours['conv_kernel_size'] == 2
      assert own['selector_rank'] == ours['selector_rank'] == 4
      continue
    from_anchor = name != 'bonus'
    assert z_lab['architectures'] == ['Qwen3DSparkModel']
    assert z_lab['block_size'] == ours['block_size'] == 4 - from_anchor
    assert z_lab['dspark_bonus_anchor'] is not from_anchor
    assert ours['sample_from_anchor'] is from_anchor
    assert z_lab['markov_rank'] == ours['markov_rank'] == 4
    kind = 'gated' if name == 'gated' else 'vanilla'
    assert z_lab['markov_head_type'] == ours['markov_head_type'] == kind


def test_keys_of_dspark_wherever_they_are(tmp_path):
  path, head = both(tmp_path, *MARKOV)
  folder = convert(path, tmp_path / 'out', 'dflash', head=head)
  raw, read = raw_of(folder), lambda: published.read(folder).sizes
  before = read()
  own = ('markov_rank', 'markov_head_type', 'bonus_anchor')
  rest = {k: v for k, v in raw.items() if k.removeprefix('dspark_') not in own}
  rest.pop('sample_from_anchor')
  for more in (
    {'dspark_config': {'markov_rank': 4, 'markov_head_type': 'vanilla'}},
    {'dspark_markov_rank': 4},
  ):
    files.write_json(f'{folder}/config.json', rest | more)
    assert read() == before


def test_what_dspark_has_besides_is_passed_over(tmp_path):
  path, head = both(tmp_path, *MARKOV)
  folder = convert(path, tmp_path / 'out', 'dflash', head=head)
  more = {
    'confidence_head.proj.weight': np.ones((1, 28), np.float32),
    'embed_tokens.weight': np.ones((models.VOCAB, 24), np.float32),
  }
  file = f'{folder}/model.safetensors'
  whole = tensors(folder) | more
  facts = safetensors_io.metadata(file)
  os.remove(file)
  safetensors_io.save(file, whole, facts)
  assert served('lattice', drafter=folder, candidates=4)


def test_what_does_not_go_together(tmp_path):
  say = r'this drafter has.*Other.*programs know'
  for change, kind in (({}, 'selector'), ({'taps': 2}, 'markov'),
                       ({'taps': 2, 'from_anchor': 1}, 'selector')):  # fmt: skip
    path, head = both(tmp_path, change, kind)
    for form in FORMS:
      with pytest.raises(errors.InputError, match=say):
        convert(path, tmp_path / form, form, head=head)
  with pytest.raises(errors.InputError, match='2 taps.*no head'):
    convert(path, tmp_path / 'out', 'dflash')
  other = tmp_path / 'other'
  other.mkdir()
  path, _ = both(other, {'taps': 2}, 'selector')
  with pytest.raises(errors.InputError, match='trained on the drafter with'):
    convert(path, tmp_path / 'out', 'dflash', head=head)
  assert not (tmp_path / 'out').exists()


def test_what_is_refused_by_its_name(tmp_path):
  path, head = both(tmp_path, *SELECTOR)
  two = convert(path, tmp_path / 'two', 'dflash', head=head)
  own = raw_of(two)['dflash_config']
  more = lambda **x: {'dflash_config': own | x}
  changed(two, more(conv_kernel_size=None), 'conv_kernel_size is missing')
  changed(two, more(selector_rank='four'), 'selector_rank', 'four')
  changed(two, more(markov_rank=4), 'selector_rank is 4 and markov_rank is 4')
  changed(two, more(conv_group_size=7), 'conv_group_size', 'groups of 7')
  path, head = both(tmp_path, *MARKOV)
  spark = convert(path, tmp_path / 'spark', 'dflash', head=head)
  changed(spark, {'markov_head_type': 'rnn'}, 'markov_head_type', 'rnn')
  changed(spark, {'markov_head_type': ['gated']}, 'markov_head_type', 'gated')
  changed(spark, {}, 'markov_rank is missing', drop=('markov_rank',))
  theirs = convert(path, tmp_path / 'theirs', 'speculators', head=head)
  changed(theirs, {}, 'sample_from_anchor', drop=('sample_from_anchor',))
  for kind in ('eagle3', ['dspark']):
    changed(theirs, {'speculators_model_type': kind}, str(kind))
