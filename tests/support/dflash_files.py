"""DFlash drafters on disk: trained, converted, changed by hand."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.checkpoints import export
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import stored
from specdiff_jax.core import errors
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import published
from specdiff_jax.drafters import registry
from specdiff_jax.drafters.dflash import format as format_lib
from specdiff_jax.drafters.dflash import network as dflash
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import systems
from specdiff_jax.testing import models

VERIFIER = models.tiny_verifier()
CONFIG = dflash.TrainedConfig(
  gamma=3,
  layers=2,
  features=(0, 1),
  mask_id=models.VOCAB - 1,
  vocab=40,
  window=0,
  verifier=VERIFIER.config,
)
FORMS = ('dflash', 'speculators')


def trained(folder, config=CONFIG, vocab=None):
  path = str(folder / 'drafter.safetensors')
  params = models.random_params(config.shapes(), 3, 0.15)
  vocab = np.arange(config.vocab) if vocab is None else vocab
  facts = {'verifier_source': 'org/name'}
  drafter_file.save(path, config, params, vocab, VERIFIER, facts)
  return path


def convert(origin, target, form, dtype='', head=''):
  source = (
    published.open_drafter(str(origin))
    if os.path.isdir(origin)
    else format_lib.trained(str(origin), str(head))
  )
  target = str(target)
  export.convert(source, target, form, dtype, writers=registry.writers())
  return target


def states_of(network, params, hidden, noise):
  """Returns the states of a block of `noise` after the verifier's `hidden`."""

  @jax.jit
  def forward(features, x):
    at = jnp.arange(len(hidden))[None]
    keys = network.apply({'params': params}, features, at, method='context')
    return network.apply({'params': params}, x, at[:, -1:] + 1, keys)

  features = hidden.reshape(1, len(hidden), len(CONFIG.features), -1)
  x = noise[None, None]
  return forward(features.astype(np.float32), x.astype(np.float32))[0, 0]


def tensors(folder):
  found = safetensors_io.tensors(f'{folder}/model.safetensors')
  return {name: stored.read(tensor) for name, tensor in found.items()}


def raw_of(folder):
  with open(f'{folder}/config.json') as file:
    return json.load(file)


def changed(folder, values, *words, drop=(), drafter=False):
  """Checks that a config.json with other values is refused, and by what."""
  file = os.path.join(folder, 'config.json')
  before = raw_of(folder)
  raw = {k: v for k, v in (before | values).items() if k not in drop}
  try:
    with open(file, 'w') as out:
      json.dump(raw, out)
    with pytest.raises(errors.InputError) as error:
      if drafter:
        told = {'drafter': str(folder), 'gamma': 3}
        recipe = decoding.told(['specdiff'], told)
        systems.parts('specdiff', recipe.systems['specdiff'], VERIFIER)
      published.read(str(folder))
    for word in words:
      assert word in str(error.value), (word, error.value)
  finally:
    with open(file, 'w') as out:
      json.dump(before, out)
