"""DFlash drafters that were trained here, in the forms of other programs."""

import dataclasses
import json
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
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import published_references
import pytest

from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.core import errors
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import published
from specdiff_jax.drafters.dflash import format as format_lib
from specdiff_jax.drafters.dflash import network as dflash
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import systems


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Returns a folder with a trained file, and what was made of it."""
  folder = tmp_path_factory.mktemp('made')
  path = trained(folder)
  for form in FORMS:
    convert(path, folder / form, form)
  return folder


@pytest.mark.parametrize('form', FORMS)
def test_there_and_back_to_the_bit(made, tmp_path, form):
  other = {'dflash': 'speculators', 'speculators': 'dflash'}[form]
  there = convert(made / form, tmp_path / 'there', other)
  back = convert(there, tmp_path / 'back', form)
  first, last = tensors(made / form), tensors(back)
  assert (
    set(first)
    == set(last)
    == set(format_lib.tensor_names(CONFIG.run_as).values())
  )
  for name, tensor in first.items():
    np.testing.assert_array_equal(last[name], tensor, err_msg=name)
    assert tensor.dtype == ml_dtypes.bfloat16
  ours, again = raw_of(made / form), raw_of(back)
  for key in ('num_target_layers', 'speculators_config'):  # one form's alone
    ours.pop(key, None), again.pop(key, None)
  assert again == ours
  facts = format_lib.facts(back)
  assert facts['verifier'] == VERIFIER.fingerprint


@pytest.mark.parametrize('form', FORMS)
def test_what_is_read_is_what_was_trained(made, form):
  found = published.read(str(made / form))
  sizes = CONFIG.run_as
  assert found.sizes.features == sizes.features
  assert found.sizes.mask_id == sizes.mask_id
  assert found.sizes.block == sizes.block
  assert found.sizes.network == sizes.network
  served, ours = (
    systems.parts('specdiff', recipe.systems['specdiff'], VERIFIER)
    for recipe in (
      decoding.told(['specdiff'], {'drafter': str(path), 'gamma': 3})
      for path in (made / form, made / 'drafter.safetensors')
    )
  )
  assert served.drafter.features == ours.drafter.features
  assert served.drafter.buckets == ours.drafter.buckets
  jax.tree.map(
    np.testing.assert_array_equal, served.params.network, ours.params.network
  )
  # One drafts the whole vocabulary, the other that of its file.
  assert served.params.head is None and ours.params.head.shape[0] == 40


def test_layers_are_counted_as_each_form_does(made):
  assert raw_of(made / 'dflash')['dflash_config']['target_layer_ids'] == [0, 1]
  raw = raw_of(made / 'speculators')
  assert raw['aux_hidden_state_layer_ids'] == [1, 2]
  told = raw['speculators_config']
  assert told['verifier']['name_or_path'] == 'org/name'
  assert told['proposal_methods'][0]['speculative_tokens'] == 3


def test_an_independent_forward_of_zlabs_form(tmp_path):
  """numpy, after the published description, of the files that are written."""
  folder = convert(trained(tmp_path), tmp_path / 'd', 'dflash', 'float32')
  raw, found = raw_of(folder), tensors(folder)
  rng = np.random.default_rng(3)
  noise = rng.standard_normal((4, 24))
  hidden = rng.standard_normal((9, 2 * 24))
  wanted = published_references.dflash(raw, found, noise, hidden)
  params = drafter_file.load(
    str(tmp_path / 'drafter.safetensors'), VERIFIER, dflash.TrainedConfig
  )[1]
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  network = dflash.DFlash(CONFIG.run_as)
  got = states_of(network, params, hidden, noise)
  np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_first_drafts_of_the_anchor_go_as_speculators(tmp_path):
  config = dataclasses.replace(CONFIG, from_anchor=1)
  path = trained(tmp_path, config)
  folder = convert(path, tmp_path / 'out', 'speculators')
  assert raw_of(folder)['sample_from_anchor'] is True
  assert raw_of(folder)['block_size'] == 3
  read = published.open_drafter(folder).config
  assert read.from_anchor and read.gamma == config.gamma
  with pytest.raises(errors.InputError, match='no key.*format=speculators'):
    convert(path, tmp_path / 'other', 'dflash')


def test_windows_go_there_and_back(tmp_path):
  config = dataclasses.replace(CONFIG, window=5)
  path = trained(tmp_path, config)
  for form in FORMS:
    folder = convert(path, tmp_path / form, form)
    assert published.read(folder).sizes.network == config.run_as.network
  raw = raw_of(tmp_path / 'dflash')
  assert raw['layer_types'] == ['sliding_attention'] * 2
  # Of kinds without a window nothing can be made.
  changed(tmp_path / 'dflash', {'sliding_window': None}, 'sliding_window')


def test_what_does_not_fit_is_refused(made):
  own = raw_of(made / 'dflash')['dflash_config']
  z_lab, speculators = made / 'dflash', made / 'speculators'
  more = lambda **x: {'dflash_config': own | x}
  changed(z_lab, more(target_layer_ids=[1, 0]), 'target_layer_ids', '[0, 1]')
  changed(z_lab, more(mask_token_id=5), 'mask_token_id is 5', '60')
  changed(z_lab, {'num_target_layers': 36} | more(target_layer_ids=[2, 34]),
          'one more than', '[1, 33]')  # fmt: skip
  changed(z_lab, {'num_target_layers': 3}, 'num_target_layers', drafter=True)
  changed(speculators, {'aux_hidden_state_layer_ids': [0, 1]}, 'from 1 on')
  changed(speculators, {'aux_hidden_state_layer_ids': []}, 'aux_hidden')
  changed(speculators, {'aux_hidden_state_layer_ids': [2, 3]}, 'layer_ids')
  changed(speculators, {'mask_token_id': 7}, 'mask_token_id is 7')
  changed(speculators, {'sample_from_anchor': 'yes'}, 'sample_from_anchor')
  changed(speculators, {'draft_vocab_size': 9}, 'draft_vocab_size is 9')
  changed(speculators, {'markov_rank': 4}, 'head.predecessor', drafter=True)
  changed(speculators, {'target_hidden_size': 9}, 'target_hidden_size')
  changed(speculators, {}, 'transformer_layer_config',
          drop=('transformer_layer_config',))  # fmt: skip


def test_the_newer_spelling_of_rope(made):
  raw = raw_of(made / 'dflash')
  file = made / 'dflash' / 'config.json'
  read = lambda: published.read(str(made / 'dflash')).sizes
  before = read()
  theta = {'rope_theta': raw['rope_theta'], 'rope_type': 'default'}
  newer = {k: v for k, v in raw.items() if not k.startswith('rope')}
  file.write_text(json.dumps(newer | {'rope_parameters': theta}))
  assert read() == before
  file.write_text(json.dumps(raw))
  theta['rope_theta'] = 7.0
  changed(made / 'dflash', {'rope_parameters': theta}, 'rope_theta', '7.0')


def test_tensors_that_the_config_does_not_state(made, tmp_path):
  folder = convert(made / 'dflash', tmp_path / 'd', 'dflash')
  whole = tensors(folder)
  file = f'{folder}/model.safetensors'
  conv = {
    'layers.0.attention_conv.base_kernel': np.ones((2, 2, 24), np.float32)
  }
  lacking = {k: v for k, v in whole.items() if k != 'hidden_norm.weight'}
  for found, word in (
    (whole | conv, 'attention_conv'),
    (lacking, 'hidden_norm|context_norm'),
  ):
    os.remove(file)
    safetensors_io.save(file, found, {'format': 'pt'})
    with pytest.raises(errors.InputError, match=word):
      published.load(folder, '', 'float32')


def test_another_verifier_is_refused(made):
  other = dataclasses.replace(VERIFIER, fingerprint='1' * 16)
  for form in FORMS:
    told = {'drafter': str(made / form), 'gamma': 3}
    recipe = decoding.told(['specdiff'], told)
    with pytest.raises(errors.InputError, match='fingerprint'):
      systems.parts('specdiff', recipe.systems['specdiff'], other)
