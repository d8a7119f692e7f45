"""Directories in the form of Hugging Face, and names on its hub."""

import os
import re
from typing import Any, Iterator

import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import files
from specdiff_jax.models import safetensors_io

ARCHITECTURES = ('LlamaForCausalLM',)
PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle')
LAYER_NAMES = {
    'input_layernorm': 'attention_norm',
    'self_attn.q_proj': 'query',
    'self_attn.k_proj': 'key',
    'self_attn.v_proj': 'value',
    'self_attn.o_proj': 'output',
    'post_attention_layernorm': 'mlp_norm',
    'mlp.gate_proj': 'gate',
    'mlp.up_proj': 'up',
    'mlp.down_proj': 'down',
}
OTHER_NAMES = {
    'model.embed_tokens.weight': 'embed',
    'model.norm.weight': 'final_norm',
    'lm_head.weight': 'head',
}
_LAYER = re.compile(r'model\.layers\.(0|[1-9]\d*)\.(.+)\.weight')
_BUFFER = re.compile(r'model\.(.+\.)?rotary_emb\.inv_freq')
_HUB_NAME = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')
_HUB_FILES = ('*.json', '*.safetensors', '*.jinja')
_FLOATS = ('F32', 'F16', 'BF16', 'F64')


def is_hub_name(path: str) -> bool:
  """True for 'org/name'."""
  return bool(_HUB_NAME.fullmatch(path))


def download(name: str) -> str:
  """Returns the local directory of a model of the hub."""
  try:
    import huggingface_hub  # optional, and slow to import
  except ImportError as e:
    raise errors.InputError(
        f'{name}: there is no such file or directory, and to fetch it from '
        'the Hugging Face hub the package huggingface_hub is needed; correct '
        'the path, or `pip install huggingface_hub`.'
    ) from e
  try:
    return huggingface_hub.snapshot_download(
        name, allow_patterns=list(_HUB_FILES)
    )
  except Exception as e:  # it raises dozens of kinds, from several packages
    first = (str(e).strip() or type(e).__name__).splitlines()[0]
    raise errors.InputError(
        f'{name}: there is no such file or directory, and the Hugging Face hub '
        f'did not give a model of this name ({first}). Check the name and the '
        'network, log in if the model is gated, or give a local directory.'
    ) from e


def read_config(path: str) -> config_lib.TransformerConfig:
  """Reads config.json, in the older and the current spelling."""
  file = os.path.join(path, 'config.json')
  raw = files.read_json(file)
  _check_supported(file, raw)
  heads = _get(file, raw, 'num_attention_heads')
  width = _get(file, raw, 'hidden_size')
  tied = raw.get('tie_word_embeddings')
  if tied is None:
    tied = 'lm_head.weight' not in tensor_files(path)
  sizes = dict(
      vocab_size=_get(file, raw, 'vocab_size'),
      width=width,
      layers=_get(file, raw, 'num_hidden_layers'),
      heads=heads,
      kv_heads=_get(file, raw, 'num_key_value_heads', heads),
      head_dim=_get(file, raw, 'head_dim', width // max(heads, 1)),
      mlp_width=_get(file, raw, 'intermediate_size'),
      rope_base=float(_rope_base(file, raw)),
      norm_eps=float(_get(file, raw, 'rms_norm_eps', 1e-6)),
      tied_head=tied,
      max_positions=_get(file, raw, 'max_position_embeddings', 2048),
  )
  try:
    return config_lib.TransformerConfig(**sizes)
  except errors.InputError as e:
    raise errors.InputError(f'{file}: {e}') from e


def _check_supported(file: str, raw: dict[str, Any]) -> None:
  """Raises InputError for models of another form."""
  names = raw.get('architectures') or [f'model_type {raw.get("model_type")!r}']
  if not isinstance(names, list):
    names = [names]
  if not set(map(str, names)) & set(ARCHITECTURES):
    raise errors.InputError(
        f'{file}: architecture {", ".join(map(str, names))} is not known '
        f'here; known: {", ".join(ARCHITECTURES)}.'
    )
  wanted = {
      'hidden_act': 'silu',
      'attention_bias': False,
      'mlp_bias': False,
      'quantization_config': None,
  }
  for key, value in wanted.items():
    if raw.get(key, value) != value:
      raise errors.InputError(
          f'{file}: {key} is {raw[key]!r}; only {value!r} is supported. Take '
          'another model, or an unquantised copy of this one.'
      )


def _rope_base(file: str, raw: dict[str, Any]) -> float:
  """Returns the base of `rope_parameters` or of the older `rope_theta`."""
  parameters = raw.get('rope_parameters') or {}
  for settings in (parameters, raw.get('rope_scaling') or {}):
    if not isinstance(settings, dict):
      raise errors.InputError(
          f'{file}: rope settings {settings!r} are not an object; download the '
          'file again.'
      )
    kind = settings.get('rope_type', settings.get('type', 'default'))
    part = settings.get('partial_rotary_factor', 1.0)
    if kind != 'default' or part != 1.0:
      raise errors.InputError(
          f'{file}: rotary positions of type {kind!r} (partial_rotary_factor '
          f"{part}) are not supported; only 'default' on whole heads is. Take "
          'a model without RoPE scaling.'
      )
  return _get(file, {**raw, **parameters}, 'rope_theta', 10000.0)


def _get(file: str, raw: dict[str, Any], key: str, default: Any = None):
  value = raw.get(key)
  value = default if value is None else value
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise errors.InputError(
        f'{file}: {key} is {value!r}, where a number is expected; download the '
        'file again.'
    )
  return value


def tensor_files(path: str) -> dict[str, str]:
  """Returns tensor name -> file, for one file or several with an index."""
  index = os.path.join(path, 'model.safetensors.index.json')
  if not os.path.exists(index):
    file = os.path.join(path, 'model.safetensors')
    if not os.path.exists(file):
      _refuse_pickles(path)
    with safetensors_io.opened(file) as opened:
      return {name: file for name in opened.keys()}
  names = files.read_json(index).get('weight_map')
  if not isinstance(names, dict) or not names:
    raise errors.InputError(
        f'{index}: there is no weight_map in it; download the file again.'
    )
  for name, shard in names.items():
    if not isinstance(shard, str) or os.path.basename(shard) != shard:
      raise errors.InputError(
          f'{index}: tensor {name!r} is said to lie in {shard!r}, which is not '
          'the name of a file in this directory; download the index again.'
      )
  return {name: os.path.join(path, shard) for name, shard in names.items()}


def _refuse_pickles(path: str) -> None:
  pickles = [n for n in sorted(os.listdir(path)) if n.endswith(PICKLES)]
  if pickles:
    raise errors.InputError(
        f'{path}: the weights are there only as {pickles[0]}, a pickle, which '
        'can run any code and is never read; take or write the model as '
        'safetensors.'
    )


def iterate_tensors(
    path: str, config: config_lib.TransformerConfig
) -> Iterator[tuple[str, str, np.ndarray]]:
  """Yields (our name, name in the file, array as stored), one at a time.

  Left out are tables of rotary frequencies, which old files hold, and the copy
  of a tied head. A tensor that our params have no place for comes under an
  empty name.
  """
  by_file = {}
  for name, file in tensor_files(path).items():
    by_file.setdefault(file, []).append(name)
  for file, names in by_file.items():
    with safetensors_io.opened(file) as opened:
      present = set(opened.keys())
      for name in names:
        ours = our_name(name)
        if _BUFFER.fullmatch(name) or (ours == 'head' and config.tied_head):
          continue
        if name not in present:
          raise errors.InputError(
              f'{file}: the index says that tensor {name!r} is in this file, '
              'but it is missing; download index and file again.'
          )
        _check_float(file, name, opened.get_slice(name).get_dtype())
        yield ours, name, safetensors_io.read(opened, file, name)


def _check_float(file: str, name: str, kind: str) -> None:
  if kind not in _FLOATS:
    raise errors.InputError(
        f'{file}: tensor {name!r} is stored as {kind}, not as one of '
        f'{", ".join(_FLOATS)}; take an unquantised copy of the model.'
    )


def our_name(name: str) -> str:
  """Returns 'layer_0.query' for 'model.layers.0.self_attn.q_proj.weight'."""
  if name in OTHER_NAMES:
    return OTHER_NAMES[name]
  found = _LAYER.fullmatch(name)
  if found and found[2] in LAYER_NAMES:
    return f'layer_{found[1]}.{LAYER_NAMES[found[2]]}'
  return ''
