"""`verify --drafter`: what is served is what was trained, and what is not."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.checkpoints import export
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import stored
from specdiff_jax.core import errors
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import family
from specdiff_jax.drafters import heads
from specdiff_jax.drafters import registry
from specdiff_jax.drafters.dflash import format as dflash_format
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import fields
from specdiff_jax.testing import models
from specdiff_jax.tools.exactness import served
from specdiff_jax.tools.exactness import served_parts
from specdiff_jax.tools.exactness import served_report

CHECKPOINT = models.tiny_verifier()
CHECKPOINT = dataclasses.replace(
  CHECKPOINT, params=jax.tree.map(jnp.asarray, CHECKPOINT.params)
)
MASK = 60
# Prompts of several lengths, and completions of 2 to 14 tokens.
TEXTS = [
  served_parts.Text(
    f'text {number}', *np.split(np.random.default_rng(number).integers(
      0, MASK, prompt + size
    ), [prompt])
  )
  for number, (prompt, size) in enumerate([(5, 14), (12, 2), (1, 9)])
]  # fmt: skip


def recipe(kind='diffusion', **more):
  values = {
    'drafter': 'random', 'gamma': 3, 'max_new_tokens': 16, 'batch': 2,
    'prompt_buckets': (16,), 'dtype': 'float32', 'chat': False,
    'masked_lm': {'mask_id': MASK},
    'network': {'kind': kind, 'layers': 1, 'trunk': 16, 'vocab': 40},
  }  # fmt: skip
  return fields.typed(values | more)


def compared(one, part, given=TEXTS, tolerance=1e-3):
  plain = decoding.system(one, CHECKPOINT, 'ar')
  return served.compare(
    part, CHECKPOINT, plain.engine, given, plain.buckets, 2, tolerance
  )


def with_inner(part, **changes):
  inner = dataclasses.replace(part.replay.inner, **changes)
  return dataclasses.replace(
    part, replay=dataclasses.replace(part.replay, inner=inner)
  )


def with_config(part, **changes):
  config = dataclasses.replace(part.replay.inner.config, **changes)
  return with_inner(part, config=config)


def other_layers(part):
  """Serves with the features of other verifier layers."""
  return with_config(part, features=part.layers[::-1])


def other_mask(part):
  return with_config(part, mask_id=MASK - 1)


def other_shift(part):
  """Reads the outputs at the slots in place of those before them."""
  model = dataclasses.replace(part.replay.inner.model, shifted=False)
  return with_inner(part, model=model)


def other_vocab(part):
  moved = part.replay_params.replace(vocab=jnp.roll(part.vocab, 1))
  return dataclasses.replace(part, replay_params=moved)


CASES = {
  'diffusion': ('diffusion', 'specdiff', other_layers),
  'dflash': ('dflash', 'specdiff', other_mask),
  'dflash features': ('dflash', 'specdiff', other_layers),
  'masked_lm': ('masked_lm', 'specdiff', other_shift),
  'autoregressive': ('autoregressive', 'sps', other_vocab),
  'eagle': ('eagle', 'eagle', other_vocab),
  'second': ('dflash', 'd2sd', other_mask),
  'second diffusion': ('diffusion', 'd2sd', other_layers),
}


@pytest.mark.parametrize('kind, system, wrong', CASES.values(), ids=CASES)
def test_a_drafter_is_served_as_it_was_trained(kind, system, wrong):
  network = {'kind': kind, 'layers': 1, 'vocab': 40}
  if kind in ('dflash', 'diffusion', 'eagle'):
    network['features'] = (0, 1)
  both = {'d2sd': {'first': 'random', 'second': 'random'}}
  one = recipe(network=network, drafters=both)
  part = served_parts.parts(one, CHECKPOINT, [system, 'lookup'])[-1]
  row = compared(one, part)
  assert row.passed and row.worst < 1e-4, row
  assert row.agreement == 1 and row.windows >= 3
  if system == 'specdiff':  # every slot that a text has
    assert row.slots > 1.5 * row.windows
  # The control: the same served with a wrong setting.
  found = compared(one, wrong(part))
  assert not found.passed and found.worst > 1e-2, found
  assert found.text in [text.id for text in TEXTS]
  assert 1 <= found.slot <= 3


def file_of(tmp_path, kind, sizes):
  """Writes a random drafter; returns its path and what comes back."""
  config = registry.options(kind)(**sizes)
  network = registry.network(kind)
  config = network.sizes(config, 3, CHECKPOINT.config)
  path = str(tmp_path / 'drafter.safetensors')
  params = models.random_params(config.shapes(), 3, 0.15)
  vocab = np.arange(config.vocab)[::-1]
  drafter_file.save(path, config, params, vocab, CHECKPOINT, {})
  loaded = drafter_file.load(path, CHECKPOINT, network.config)
  return path, family.Trained(*loaded, path)


@pytest.mark.parametrize('kind', ['markov', 'selector'])
def test_a_head_is_served_as_it_was_trained(tmp_path, kind):
  sizes = {'layers': 1, 'trunk': 16, 'vocab': 40}
  path, drafter = file_of(tmp_path, 'diffusion', sizes)
  head = heads.KINDS[kind](4, 40, CHECKPOINT.config)
  name = str(tmp_path / 'head.safetensors')
  params = models.random_params(head.shapes(), 5, 0.7)
  facts = {'drafter': heads.fingerprint(drafter)}
  drafter_file.save(name, head, params, drafter.vocab, CHECKPOINT, facts)
  one = recipe(drafter=path, head=name, candidates=5)
  plain, part = served_parts.parts(one, CHECKPOINT, ['specdiff', 'lattice'])
  assert (plain.replay.head, part.replay.head) == (None, head)
  row = compared(one, part)
  assert row.passed and row.worst < 1e-4, row
  # The control: what follows a token is another token's.
  moved = part.replay_params
  edges = moved.edges | {'predecessor': moved.edges['predecessor'][::-1]}
  moved = moved.replace(edges=edges)
  assert not compared(
    one, dataclasses.replace(part, replay_params=moved)
  ).passed


def test_an_export_is_what_was_trained(tmp_path):
  sizes = {'layers': 1, 'features': (0, 1), 'vocab': 61, 'mask_id': MASK}
  path, _ = file_of(tmp_path, 'dflash', sizes)
  folder = str(tmp_path / 'export')
  source = dflash_format.trained(path)
  writers = registry.writers()
  export.convert(source, folder, 'dflash', '', writers=writers)
  one = recipe('dflash', drafter=path)
  (part,) = served_parts.parts(one, CHECKPOINT, ['specdiff'], folder)
  row = compared(one, part)
  assert row.passed and (row.source, row.served) == (path, folder)
  # The controls: another config.json, where the tensors do not tell their own.
  file = f'{folder}/model.safetensors'
  tensors = {n: stored.read(x) for n, x in safetensors_io.tensors(file).items()}
  safetensors_io.save(file, tensors, {})
  config = tmp_path / 'export' / 'config.json'
  told = json.loads(config.read_text())
  for name, value in {'mask_token_id': 59, 'target_layer_ids': [1, 0]}.items():
    own = told['dflash_config'] | {name: value}
    config.write_text(json.dumps(told | {'dflash_config': own}))
    (part,) = served_parts.parts(one, CHECKPOINT, ['specdiff'], folder)
    assert not compared(one, part).passed, name
  with pytest.raises(errors.InputError, match='trained elsewhere'):
    served_parts.parts(
      recipe('dflash', drafter=folder), CHECKPOINT, ['specdiff']
    )


def test_what_cannot_be_compared_is_refused():
  one = recipe()
  with pytest.raises(errors.InputError, match='No system of ar, lookup'):
    served_parts.parts(one, CHECKPOINT, ['ar', 'lookup'])
  with pytest.raises(errors.InputError, match='one drafter.*specdiff, sps'):
    served_parts.parts(one, CHECKPOINT, ['specdiff', 'sps'], 'folder')
  with pytest.raises(errors.InputError, match='int8'):
    served.check(recipe(int8='both'), CHECKPOINT, ['specdiff'], None, None)


def test_a_nan_is_no_agreement():
  values = ('a', 'b', 'b', 3, 9, 1.0)
  row = served_report.Row(*values, (0.0, float('nan')), 'text', 4, 2, 1e-2)
  assert not row.passed and row.json()['worst'] == 'nan'
  good = dataclasses.replace(row, by_slot=(0.0, 1e-3))
  assert good.passed
  report = served_report.Report([good, row], {'tolerance': 1e-2})
  assert not report.passed and 'NOT' in report.verdict()
  assert [line[-1] for line in report.table().rows] == ['yes', 'NO']
