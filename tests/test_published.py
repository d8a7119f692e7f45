"""Directories of published drafters, from config.drafter to decoded text."""

import dataclasses
import json

import jax
import numpy as np
import published_models
import pytest
import tiny_model

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.drafters.dflash import drafter as block
from specdiff_jax.drafters.masked_lm import drafter as masked_lm
from specdiff_jax.models import config as config_lib
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import systems as build_systems
from specdiff_jax.text import tokenizer as tokenizer_lib

PRESETS = {'diffullama', 'diffugpt'}
PROMPTS = ('A stitch in time', 'saves nine, they say; do they?')


@pytest.fixture(scope='module')
def checkpoint():
  """Returns a random verifier with the tokens of the byte tokenizer."""
  size = published_models.VOCAB
  config = config_lib.TransformerConfig(
    vocab_size=size,
    width=published_models.WIDTH,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=6,
    mlp_width=40,
    tied_head=False,
  )
  params = jax.tree.map(
    jax.numpy.asarray, tiny_model.random_params(config, 1, scale=0.16)
  )
  tokenizer = tokenizer_lib.Tokenizer.bytes(size)
  return weights.Checkpoint(config, params, tokenizer, 'test', 'random')


def config(folder='', family='', **changes):
  masked_lm = {'family': family if family in PRESETS else ''}
  masked_lm |= changes.pop('masked_lm', {})
  return fields.typed({
      'drafter': str(folder), 'masked_lm': masked_lm,
      'dtype': 'float32', 'gamma': 4, 'max_new_tokens': 10, 'chat': False,
      'prompt_buckets': (32,), 'budget': 5, 'batch': 1, 'drafts': 2,
  } | changes)  # fmt: skip


def parts_of(name, full, checkpoint):
  return build_systems.parts(name, full.systems[name], checkpoint)


def decoded(full, checkpoint, name):
  """Returns the tokens of the prompts, and the system."""
  one = decoding.system(full, checkpoint, name)
  requests = [
    request_lib.named(str(i), checkpoint.tokenizer.encode(text))
    for i, text in enumerate(PROMPTS)
  ]
  return [c.tokens.tolist() for c in one.decode(requests)], one


@pytest.fixture(scope='module')
def plain(checkpoint):
  return decoded(config(), checkpoint, 'ar')[0]


def written(tmp_path, family, **changes):
  """Writes a drafter, whose DFlash comes without a tokenizer as published."""
  raw, tensors = published_models.make(family)
  published_models.write(
    tmp_path, raw | changes, tensors, tokenizer=family != 'dflash'
  )
  return tmp_path


@pytest.mark.parametrize(
  'family, name, prefix',
  [
    ('dream', 'best_first', ''),
    ('mdlm', 'specdiff', 'causal'),
    ('dflash', 'specdiff2', ''),
  ],
)
def test_a_directory_decodes_what_plain_decoding_does(
  tmp_path, checkpoint, plain, family, name, prefix
):
  full = config(written(tmp_path, family), family, masked_lm={'prefix': prefix})
  got, one = decoded(full, checkpoint, name)
  assert got == plain
  drafter = one.engine.drafter
  if family == 'dflash':
    assert isinstance(drafter, block.Block) and drafter.features == (1, 0)
  else:
    assert isinstance(drafter, masked_lm.MaskedLMDrafter)
    assert drafter.model.prefix == (prefix or 'full')
    mask = {'mdlm': published_models.VOCAB}
    wanted = mask.get(family, published_models.MASK)
    assert drafter.model.mask_id == wanted


@pytest.mark.parametrize(
  'family', ['llada', 'a2d_qwen3', 'diffullama', 'diffugpt']
)
def test_other_families_are_built(tmp_path, checkpoint, family):
  full = config(written(tmp_path, family), family)
  parts = parts_of('specdiff', full, checkpoint)
  model = parts.drafter.model
  assert model.mask_id == published_models.MASK
  assert model.shifted == family.startswith('diffu')
  # All tokens are drafted but for the mask.
  ids = set(np.asarray(parts.params.ids).tolist())
  assert ids == set(range(published_models.VOCAB)) - {model.mask_id}


def test_adaptive_takes_a_causal_prefix(tmp_path, checkpoint, plain):
  """Arms of several lengths, which share the keys of one prefix."""
  causal = {'prefix': 'causal'}
  full = config(written(tmp_path, 'dream'), gammas=(2, 4), masked_lm=causal)
  assert decoded(full, checkpoint, 'adaptive')[0] == plain


def test_one_copy_of_the_weights_for_several_systems(tmp_path, checkpoint):
  full = config(written(tmp_path, 'llada'))
  first, second = (
    parts_of(name, full, checkpoint).params.network
    for name in ('specdiff', 'tree')
  )
  assert first['embed'] is second['embed']


def test_what_a_config_overrides(tmp_path, checkpoint):
  told = {'alignment': 'shifted', 'mask_id': 261}
  full = config(written(tmp_path, 'a2d_qwen3'), masked_lm=told)
  one = parts_of('specdiff', full, checkpoint).drafter
  assert one.model.shifted and one.model.mask_id == 261
  told |= {'alignment': 'same', 'tokenizer': 'verifier'}
  full = config(tmp_path, masked_lm=told)
  (tmp_path / 'tokenizer.json').unlink()
  parts = parts_of('specdiff', full, checkpoint)
  assert not parts.drafter.model.shifted
  assert parts.params.ids.shape == (published_models.VOCAB - 1,)


def test_tokens_of_a_directory_without_tokenizer_json(tmp_path, checkpoint):
  """Dream comes with vocab.json, and code that is not read."""
  folder = written(tmp_path, 'dream')
  (folder / 'tokenizer.json').unlink()
  vocab = checkpoint.tokenizer.backend.get_vocab(with_added_tokens=True)
  plain = {k: v for k, v in vocab.items() if v < 256}
  (folder / 'vocab.json').write_text(json.dumps(plain))
  added = {'<|mask|>': 260, '<|end|>': 256}
  (folder / 'added_tokens.json').write_text(json.dumps(added))
  params = parts_of('specdiff', config(folder), checkpoint).params
  assert set(np.asarray(params.ids).tolist()) == set(range(257))


def refused(full, checkpoint, *words, name='specdiff'):
  with pytest.raises(errors.InputError) as error:
    parts_of(name, full, checkpoint)
  for word in words:
    assert word in str(error.value), word


def test_a_tokenizer_of_other_words_is_refused(tmp_path, checkpoint):
  folder = written(tmp_path, 'dream')
  file = folder / 'tokenizer.json'
  text = file.read_text()
  for i in range(257, 260):  # 3 of 264 tokens have other names
    text = text.replace(f'<|spare_{i}|>', f'<|other_{i}|>')
  file.write_text(text)
  full = config(folder)
  refused(full, checkpoint, str(folder), '4 of its 264', 'masked_lm.unknown')
  full = config(folder, masked_lm={'unknown': 0.02})
  params = parts_of('specdiff', full, checkpoint).params
  mask = published_models.MASK
  assert np.asarray(params.feed)[257:261].tolist() == [mask] * 4
  assert set(range(257, 261)).isdisjoint(np.asarray(params.ids).tolist())


def test_drafters_of_another_verifier_are_refused(tmp_path, checkpoint):
  full = config(written(tmp_path / 'a', 'dflash', hidden_size=32))
  # The weights would not fit that config either: sizes are compared first.
  raw, tensors = published_models.make('dflash')
  wide = {
    name: np.zeros([32 if n == 24 else 64 if n == 48 else n for n in x.shape])
    for name, x in tensors.items()
  }
  wide = {name: x.astype(np.float32) for name, x in wide.items()}
  published_models.write(tmp_path / 'a', raw | {'hidden_size': 32}, wide, False)
  refused(full, checkpoint, 'width 32', 'random is 24')
  layers = {'mask_token_id': 260, 'target_layer_ids': [1, 7]}
  full = config(written(tmp_path / 'b', 'dflash', dflash_config=layers))
  refused(full, checkpoint, '(1, 7)', '0 to 1')
  full = config(written(tmp_path / 'c', 'dflash'), gamma=5)
  refused(full, checkpoint, 'gamma is 5', '5 slots', 'drafts 4')
  full = config(tmp_path / 'c', context_window=9)
  refused(full, checkpoint, 'context_window', 'Give 0')


def test_eagle_decodes_what_plain_decoding_does(tmp_path, checkpoint, plain):
  full = config(written(tmp_path, 'eagle3'), budget=9, frontier=2, candidates=3)
  got, one = decoded(full, checkpoint, 'eagle')
  assert got == plain
  drafter = one.engine.drafter
  assert drafter.features == (0, 1, 0) and drafter.buckets == (9,)
  wanted = np.flatnonzero(published_models.drafted()['t2d'])
  np.testing.assert_array_equal(one.drafter_params.vocab, wanted)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'eagle_config': None}, ('(0, 1)', 'fc.weight')),
    ({'eagle_config': [0, 1, 7]}, ('(0, 1, 7)', '0 to 1')),
    ({'draft_vocab_size': 89}, ("'lm_head.weight'", '(90, 24)')),
    ({'vocab_size': 300}, ('vocab_size 300', 'is 264')),
  ],
)
def test_an_eagle_of_another_verifier_is_refused(
  tmp_path, checkpoint, changes, words
):
  layers = changes.get('eagle_config')
  if layers:
    layers = {'eagle_aux_hidden_state_layer_ids': layers}
    changes = {'eagle_config': layers}
  folder = written(tmp_path, 'eagle3', **changes)
  refused(config(folder), checkpoint, str(folder), *words, name='eagle')


def test_verifier_layers_that_eagle_reads(tmp_path, checkpoint):
  deep = dataclasses.replace(checkpoint.config, layers=12)
  deep = dataclasses.replace(checkpoint, config=deep)
  full = config(written(tmp_path / 'a', 'eagle3', eagle_config=None))
  assert parts_of('eagle', full, deep).drafter.features == (1, 5, 8)
  layers = {'eagle_aux_hidden_state_layer_ids': [2, 6, 9]}  # as vLLM counts
  told = {'eagle_config': None, **layers}
  full = config(written(tmp_path / 'b', 'eagle3', **told))
  assert parts_of('eagle', full, deep).drafter.features == (1, 5, 8)
  full = config(written(tmp_path / 'c', 'eagle3', eagle_config=layers))
  words = '(2, 6, 9)', '(1, 5, 8)', 'Subtract one'
  refused(full, deep, *words, name='eagle')


def test_an_eagle_that_does_not_say_so(tmp_path, checkpoint):
  folder = written(tmp_path, 'eagle3', architectures=['LlamaForCausalLM'])
  full = config(folder)
  refused(full, checkpoint, 'masked_lm.family', "'eagle3'", name='eagle')
  full = config(folder, masked_lm={'family': 'eagle3'})
  assert parts_of('eagle', full, checkpoint).drafter.config.vocab == 90


@pytest.mark.parametrize(
  'd2t, words',
  [
    (None, ("'d2t'", 'missing')),
    (np.zeros(89, np.int64), ('(89,)', '90')),
    (np.zeros(90, np.float32), ('F32', '90')),
    (np.full(90, 200), ('outside 0 to 263',)),
    (np.arange(90)[::-1] % 7, ('twice',)),
  ],
)
def test_tokens_that_eagle_drafts_have_to_be_told(
  tmp_path, checkpoint, d2t, words
):
  raw, tensors = published_models.make('eagle3')
  # As vLLM spells the names.
  tensors = {k.replace('midlayer.', 'layers.0.'): v for k, v in tensors.items()}
  tensors['embed_tokens.weight'] = np.zeros((1, 1), np.float32)  # not read
  tensors.pop('d2t')
  if d2t is not None:
    tensors['d2t'] = d2t
  published_models.write(tmp_path, raw, tensors)
  refused(config(tmp_path), checkpoint, str(tmp_path), *words, name='eagle')


def test_systems_of_other_drafters_are_refused(tmp_path, checkpoint):
  folder = written(tmp_path / 'a', 'eagle3')
  refused(config(folder), checkpoint, 'family eagle', 'system eagle')
  folder = written(tmp_path / 'b', 'dflash')
  words = 'family dflash', 'specdiff'
  refused(config(folder), checkpoint, *words, name='eagle')


def test_other_bad_input(tmp_path, checkpoint):
  folder = written(tmp_path, 'a2d_qwen3')
  full = config(folder)
  refused(full, checkpoint, 'Published', 'specdiff2', name='sps')
  for field, value, word in (
    ('family', 'gpt5', 'diffullama'),
    ('alignment', 'left', 'shifted'),
    ('prefix', 'none', 'causal'),
    ('mask_id', 999, '999'),
  ):
    full = config(folder, masked_lm={field: value})
    refused(full, checkpoint, value if field != 'mask_id' else '999', word)
  causal = {'prefix': 'causal'}
  full = config(folder, context_window=9, masked_lm=causal)
  refused(full, checkpoint, 'context_window', 'causal')
  file = folder / 'tokenizer.json'
  file.write_text(file.read_text().replace('<|mask|>', '<|spare_260|>'))
  refused(config(folder), checkpoint, 'mask_token_id', 'masked_lm.mask_id')
  refused(config(tmp_path / 'gone' / 'x.safetensors'), checkpoint, 'no such')
