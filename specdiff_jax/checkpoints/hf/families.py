"""Sizes of a model out of Hugging Face's config.json, and back.

What a file asks for and no field of ours can say is refused by name. What is
read for which architecture is in `architectures`, tensor names are in `names`.
"""

from collections.abc import Callable
import dataclasses
import os
from typing import Any

from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints.hf import architectures
from specdiff_jax.checkpoints.hf import directory
from specdiff_jax.checkpoints.hf import names as hf_names
from specdiff_jax.checkpoints.hf import sizes as hf_sizes
from specdiff_jax.checkpoints.hf import writing
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing

Raw = hf_sizes.Raw


def read_config(folder: str) -> hf_names.Config:
  """Reads config.json of a model of any family, in old and current spelling.

  A head that the config ties to the embedding is untied where the file has
  another one, as `transformers` does; then both are compared.

  InputError names the file and the key that is wrong or not supported.

  Example: read_config('models/Qwen3-0.6B')
  """
  file = os.path.join(folder, 'config.json')
  raw = files.read_json(file)
  name = architecture(file, raw)
  text = raw.get('text_config')
  if text is not None:  # the language model in one that sees pictures
    text = hf_sizes.as_object(file, 'text_config', text)
    _no_quantising(file, raw)
    raw = {**text, 'tie_word_embeddings': raw.get('tie_word_embeddings')}
  key = 'tie_word_embeddings'
  if raw.get(key) is None and not architectures.FAMILIES[name].defaults[key]:
    names = directory.tensors(folder)
    raw = {**raw, key: not any(n.endswith('lm_head.weight') for n in names)}
  return untied(folder, config_of(name, file, raw))


def untied(
  folder: str,
  config: hf_names.Config,
  usual: Callable[[str], str] = lambda name: name,
) -> hf_names.Config:
  """Returns a config whose head is tied only if the file has no other head.

  `usual` gives the usual name of a tensor in the file.
  """
  if not config.tied_head or not directory.has_tensors(folder):
    return config
  other = dataclasses.replace(config, tied_head=False)
  ours = lambda name: hf_names.our_name(other, usual(name))
  both = {}
  for name, tensor in directory.tensors(folder).items():
    if ours(name) in ('embed', 'head'):
      both[ours(name)] = tensor
  if len(both) < 2 or stored.equal(both['embed'], both['head']):
    return config
  return other


def hf_config(config: hf_names.Config) -> dict[str, Any]:
  """Returns a config.json, but for the dtype and the ids of special tokens.

  Raises InputError where no family is made of such layers. Norms that have
  their offset in them are written without: see `names.as_stored`.
  """
  raw = writing.config_json(config)
  again = config_of(raw['architectures'][0], 'config.json', raw)
  lost = _differences(config, again)
  if lost:
    raise errors.InputError(
      f'A model with {", ".join(lost)} cannot be written for transformers: '
      f'{raw["architectures"][0]}, the family most like it, has no such '
      'layers. Keep it in the native form.'
    )
  return raw


def _differences(config: hf_names.Config, again: hf_names.Config) -> list[str]:
  """Returns what a config says otherwise than the one that was read back."""
  alike = {'scan_layers', 'global_every'}  # of the latter `local_layers` counts
  alike |= {'norm_offset'} if getattr(config, 'post_norms', False) else set()
  names = [field.name for field in dataclasses.fields(config)]
  return [
    f'{name}={getattr(config, name)!r}'
    for name in (*names, 'local_layers')
    if name not in alike and getattr(config, name) != getattr(again, name)
  ]


def architecture(file: str, raw: Raw) -> str:
  """Returns the first architecture of config.json that is known here."""
  found = raw.get('architectures') or [f'model_type {raw.get("model_type")!r}']
  found = found if isinstance(found, list) else [found]
  for name in found:
    if isinstance(name, str) and name in architectures.FAMILIES:
      _check_type(file, raw, name)
      return name
  raise errors.InputError(
    f'{file}: architecture {printing.names(found)} is not known here; known: '
    f'{", ".join(architectures.FAMILIES)}.'
  )


def _check_type(file: str, raw: Raw, name: str) -> None:
  """Raises InputError where model_type, which `transformers` takes, differs."""
  kind, usual = raw.get('model_type'), writing.MODEL_TYPES.get(name)
  if name.startswith('Gemma3') and kind in ('gemma3', 'gemma3_text'):
    return
  if kind not in (None, usual):
    raise errors.InputError(
      f'{file}: the architecture is {name}, but model_type is '
      f'{printing.short(kind)}, not {usual!r}; correct the wrong one.'
    )


def config_of(name: str, file: str, raw: Raw) -> hf_names.Config:
  """Returns the sizes that config.json `raw` states for architecture `name`.

  `file` is named in errors.
  """
  family = architectures.FAMILIES[name]
  given = {
    key: value
    for key, value in raw.items()
    if value is not None or key in family.off
  }
  for key in family.aliases & given.keys():
    given.setdefault(family.spellings[key], given[key])
  raw = {**family.defaults, **given}
  _no_quantising(file, raw)
  for key, value in family.only.items():
    if raw.get(key, value) != value:
      raise errors.InputError(
        f'{file}: {key} is {printing.short(raw[key])}; only {value!r} is '
        'supported. Take another model.'
      )
  _check_others(file, family, raw)
  with errors.naming(file):
    return family.read(file, raw)


def _no_quantising(file: str, raw: Raw) -> None:
  for key in ('quantization_config', 'compression_config'):
    if raw.get(key) is not None:
      raise errors.InputError(
        f'{file}: {key} is {printing.short(raw[key])}; only models without '
        'it are supported. Take an unquantised copy of this one.'
      )


def _check_others(file: str, family: architectures.Family, raw: Raw) -> None:
  """Raises InputError for keys of other families that say something else."""
  for key, usual in family.spellings.items():
    if raw.get(key) is not None and raw[key] != raw.get(usual):
      raise errors.InputError(
        f'{file}: {key} is {printing.short(raw[key])}, but {usual}, which '
        f'this architecture reads, is {printing.short(raw.get(usual))}; give '
        'them one value, or take away the wrong one.'
      )
  for key, harmless in architectures.CHANGING.items():
    if key in family.own or raw.get(key) in (None, False, *harmless):
      continue
    if raw[key] not in ([], {}):
      raise errors.InputError(
        f'{file}: {key} is {printing.short(raw[key])}, which changes the '
        'network of another architecture and is not supported here; take '
        'another model.'
      )
