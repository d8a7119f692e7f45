"""What a path holds, told from its headers: no weight is read."""

from collections.abc import Mapping
import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.checkpoints import hub
from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import presets
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import sources
from specdiff_jax.checkpoints.hf import families
from specdiff_jax.core import errors
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import heads
from specdiff_jax.drafters import published
from specdiff_jax.drafters import registry
from specdiff_jax.drafters import tables
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import networks
from specdiff_jax.parallel import rules

_PRESET = 'preset:'


def describe(path: str) -> dict[str, Any]:
  """Returns what is known of a model, as JSON.

  `path` is a GGUF file, a directory of Hugging Face or our own, a name on the
  hub, the safetensors file of one of our drafters, or preset:NAME. 'fault' says
  why the tensors are not those of the config; it is '' where they are.

  Example: describe('preset:qwen2.5_72b')['parameters']
  """
  if path.startswith(_PRESET):
    config = presets.published(path.removeprefix(_PRESET))
    family = families.hf_config(config)['architectures'][0]
    return _of_config(path, 'preset', family, config)
  if path.endswith('.safetensors'):
    return _of_our_drafter(path)
  source = _opened(path)
  told = _of_config(path, source.form, source.family, source.config)
  if source.drafter:
    family = registry.family(source.drafter.family)
    told['drafter'] = family.describe(source.drafter)  # pyright: ignore[reportOptionalCall]  # it has readers
  entries = source.entries()
  told |= _stored((e.kind, e.nbytes) for e in entries)
  told['tokenizer'] = _of_tokenizer(source)
  return told | {'fault': _fault(source)}


def sizes(path: str) -> networks.Config:
  """Returns the config of a model, which our own drafters' files lack."""
  if path.startswith(_PRESET):
    return presets.published(path.removeprefix(_PRESET))
  if path.endswith('.safetensors'):
    raise errors.InputError(
      f'{path}: our own drafters are small and on every chip whole; leave '
      'out --mesh.'
    )
  return _opened(path).config


def _opened(path: str) -> sources.Source:
  """Opens a drafter or model; a name on the hub only out of its cache."""
  name = not os.path.exists(path) and hub.is_name(path)
  if name and not path.endswith('.gguf') and not hub.cached(path):
    raise errors.InputError(
      f'{path}: there is no such file or directory, nor a whole model of '
      f"this name in the hub's cache ({hub.cache_dir()}), and inspecting "
      'downloads nothing; correct the path, or download the model first.'
    )
  return published.open_drafter(path) or sources.open_model(path)


def per_chip(
  config: networks.Config, mesh: Mapping[str, int], dtype: str
) -> dict[str, Any]:
  """Returns bytes of weights on each chip of a mesh, by the sharding rules.

  No device is needed. 'cache_per_token' is that of one token, in bfloat16
  and not divided; 'not_split' says which dimensions the mesh does not divide.
  """
  abstract = jax.sharding.AbstractMesh(tuple(mesh.values()), tuple(mesh))
  kind = np.dtype(params_lib.dtype_of(dtype))
  tree = params_lib.nest(
    {
      name: jax.ShapeDtypeStruct(shape, kind)
      for name, shape in networks.shapes(config).items()
    }
  )
  split = tables.sharding()
  placed = rules.shardings(tree, split, abstract)
  leaves = list(zip(jax.tree.leaves(tree), jax.tree.leaves(placed)))
  mine = sum(math.prod(s.shard_shape(x.shape)) for x, s in leaves)
  whole = sum(math.prod(x.shape) for x, _ in leaves)
  return {
    'weights': mine * kind.itemsize,
    'weights_whole': whole * kind.itemsize,
    'cache_per_token': _cache_bytes(config),
    'not_split': rules.not_split(tree, split, abstract),
  }


def _cache_bytes(config: networks.Config) -> int:
  config = getattr(config, 'network', config)  # of a DFlash drafter
  cache = jax.eval_shape(lambda: cache_lib.empty(config, 1, 1, jnp.bfloat16))
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))


def _of_config(
  path: str, form: str, family: str, config: networks.Config
) -> dict[str, Any]:
  return {
    'path': path,
    'form': form,
    'family': family,
    'network': type(config).__name__.removesuffix('Config'),
    'config': dataclasses.asdict(config),
    'parameters': presets.parameters(config),
  }


def _of_our_drafter(path: str) -> dict[str, Any]:
  tensors = safetensors_io.tensors(path)
  facts = safetensors_io.metadata(path)
  if facts.get('format') != drafter_file.FORMAT:
    raise errors.InputError(
      f'{path}: a file of tensors alone does not say what model it is; give '
      'its directory, with config.json.'
    )
  kind = drafter_file.kind_of(facts)
  sizes_of: Any = (heads.KINDS | heads.CONFIDENCES).get(kind)
  if not sizes_of:
    registry.family_of(kind, path)
    sizes_of = registry.network(kind).config
  text = facts.get('config', '')
  config = drafter_file.fields(path, text, sizes_of)
  count = sum(
    math.prod(tensor.shape)
    for name, tensor in tensors.items()
    if name != 'vocab'
  )
  told = {'path': path, 'form': 'drafter of this project'}
  told |= {'family': kind, 'config': config}
  told |= {'parameters': count, 'verifier': facts.get('verifier')}
  told |= _stored((t.kind, t.nbytes) for t in tensors.values())
  try:
    made = drafter_file.sizes(path, text, sizes_of)
    whole = jax.tree.map(
      lambda x: x['int8'] if drafter_file.is_rounded(x) else x,
      params_lib.nest(tensors),
      is_leaf=drafter_file.is_rounded,
    )
    drafter_file.check_shapes(path, made, whole)
  except errors.InputError as e:
    return told | {'fault': str(e)}
  return told | {'fault': ''}


def _stored(pairs) -> dict[str, Any]:
  """Returns bytes by dtype, and in all."""
  by_kind = {}
  for kind, nbytes in pairs:
    by_kind[kind] = by_kind.get(kind, 0) + nbytes
  by_kind = dict(sorted(by_kind.items(), key=lambda pair: -pair[1]))
  return {'dtypes': by_kind, 'bytes': sum(by_kind.values())}


def _of_tokenizer(source: sources.Source) -> dict[str, Any]:
  try:
    tokenizer = source.tokenizer()
  except errors.InputError as e:
    return {'error': str(e)}
  return {
    'kind': type(tokenizer.backend.model).__name__,
    'vocab_size': tokenizer.vocab_size,
    'end_ids': list(tokenizer.end_ids),
    'mask_id': tokenizer.mask_id,
    'chat_template': bool(tokenizer.chat_template),
  }


def _fault(source: sources.Source) -> str:
  """Returns what is wrong with names and shapes of the tensors, or ''."""
  try:
    for _ in params_lib.checked(source.config, source.tensors(), source.name):
      pass
  except errors.InputError as e:
    return str(e)
  return ''
