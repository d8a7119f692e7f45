"""From a config to systems that decode, and to what `bench` compares."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import json
import os
from typing import Any

import jax
import jax.numpy as jnp

from specdiff_jax.checkpoints import fetch
from specdiff_jax.checkpoints import hub
from specdiff_jax.checkpoints import placing
from specdiff_jax.checkpoints import presets
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import ngram as ngram_lib
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.drafters import tables
from specdiff_jax.models import int8
from specdiff_jax.models import networks
from specdiff_jax.parallel import rules
from specdiff_jax.recipes import systems
from specdiff_jax.verifiers import causal

Config = systems.Config

# Fields of decoding that change no text (but for the last bits of a law).
_SPEED = frozenset(
  ('batch', 'prompt_buckets', 'cycles_per_call', 'cache_step', 'cache_dir')
)
# The least and the most of a field. Programs are compiled for so many slots,
# and the cache has to hold them; counters are int32.
_BETWEEN = {
  'batch': (1, 1 << 16),
  'gamma': (1, systems.MOST_DEEP),
  'drafts': (1, systems.MOST_DRAFTED),
  'budget': (2, systems.MOST_DRAFTED),
  'ngram': (1, ngram_lib.MOST),
  'denoising_steps': (1, 64),
  'cycles_per_call': (1, 1 << 30),
  'cache_step': (0, request_lib.MOST_TOKENS),
  'context_window': (0, request_lib.MOST_TOKENS),
  'draft_top_k': (0, 2**31 - 1),
  # Of a new drafter, or a random one.
  'network.layers': (1, 1024),
  'network.trunk': (1, 1 << 20),
  'network.vocab': (1, 1 << 24),
  'network.ngram': (0, ngram_lib.MOST),
}

# What transformers' `generate` does to laws and texts that nothing here does,
# with the values that switch it off.
_GENERATION = {
    'repetition_penalty': 1, 'encoder_repetition_penalty': 1,
    'no_repeat_ngram_size': 0, 'encoder_no_repeat_ngram_size': 0,
    'bad_words_ids': None, 'suppress_tokens': None,
    'begin_suppress_tokens': None, 'forced_bos_token_id': None,
    'forced_eos_token_id': None, 'forced_decoder_ids': None,
    'sequence_bias': None, 'min_length': 0, 'min_new_tokens': 0,
    'exponential_decay_length_penalty': None, 'min_p': 0, 'top_h': None,
    'typical_p': 1, 'epsilon_cutoff': 0, 'eta_cutoff': 0, 'num_beams': 1,
    'num_beam_groups': 1, 'diversity_penalty': 0, 'penalty_alpha': 0,
    'guidance_scale': 1, 'watermarking_config': None, 'stop_strings': None,
    'dola_layers': None,
}  # fmt: skip


def check(config: Config) -> None:
  """Raises InputError on values that no part could work with."""
  systems.one_of('system', config.system, systems.SYSTEMS)
  systems.one_of('rule', config.rule, systems.RULES)
  systems.one_of('dtype', config.dtype, systems.DTYPES)
  systems.one_of('int8', config.int8, systems.INT8)
  systems.one_of('draft', config.draft, ('argmax', 'sample', 'shared_noise'))
  orders = ('confidence', 'entropy')
  systems.one_of('denoising_order', config.denoising_order, orders)
  settings(config, ())
  for name, (low, high) in _BETWEEN.items():
    first, _, inner = name.partition('.')
    value = config[first][inner] if inner else config[first]
    systems.between(name, value, low, high)
  for name in ('limit', 'exit_layer'):
    systems.least(name, config[name], 0)
  systems.least('rounds', config.rounds, 1)
  tempered = config.draft_temperature
  if tempered and not (
    request_lib.LEAST_TEMPERATURE <= tempered <= request_lib.MOST_TEMPERATURE
  ):
    raise errors.InputError(
      f'config.draft_temperature is {tempered}, but it has to be 0 or '
      f'{request_lib.LEAST_TEMPERATURE:g} to {request_lib.MOST_TEMPERATURE:g}.'
    )
  for dtype, slots in config.ar_slots.items():
    systems.between(f'ar_slots.{dtype}', slots, 0, systems.MOST_DRAFTED)
  if not config.prompt_buckets:
    raise errors.InputError('config.prompt_buckets is empty; give (128, 256).')
  for name, low, high in (
    ('prompt_buckets', 1, request_lib.MOST_TOKENS),
    ('gammas', 1, systems.MOST_DEEP),
    ('budgets', 2, systems.MOST_DRAFTED),
  ):
    for element in config[name]:
      systems.between(name, element, low, high)


def settings(config: Config, end_ids: Sequence[int]) -> request_lib.Settings:
  """Returns sampling and limits, checked."""
  return request_lib.Settings(
    temperature=config.temperature,
    top_k=config.top_k,
    top_p=config.top_p,
    seed=config.seed,
    max_new_tokens=config.max_new_tokens,
    end_ids=tuple(end_ids),
  )


def device() -> str:
  """Returns what this runs on, such as 'cpu x 1 (2 cores)'."""
  devices = jax.devices()
  cores = f' ({os.cpu_count()} cores)' if devices[0].platform == 'cpu' else ''
  return f'{devices[0].device_kind} x {len(devices)}{cores}'


def verifier(
  config: Config,
  dtype: str = '',
  progress: Callable[[int, int], None] | None = None,
  split: Callable[[Any], Any] | None = None,
) -> weights.Checkpoint:
  """Loads the verifier and puts it on the devices.

  `progress` is called with (values read, values in all). `split` goes from the
  tree of weights to its shardings; by default config.decode_mesh decides.

  Example: verifier(configs.quickstart.get_config())
  """
  dtype = dtype or config.dtype
  name = config.verifier
  if not name:
    raise errors.InputError(
      'config.verifier is empty; give a .gguf file, a directory, a name on '
      "the hub ('org/name'), or quickstart."
    )
  kind, _, preset = name.partition(':')
  more = {'adapter': config.adapter, 'progress': progress}
  # Straight to where it belongs, so that the host holds no copy.
  split = split or _split(systems.decode_mesh(config))
  more['shardings'] = split
  if kind == 'random':
    systems.one_of('verifier', preset, presets.SIZES)
    if config.adapter:
      raise errors.InputError(
        f'config.adapter is {config.adapter}, but a random verifier takes no '
        'adapter; leave it empty.'
      )
    checkpoint = presets.random(preset, dtype)
  elif name == 'quickstart':
    file = fetch.quickstart_file(config.cache_dir)
    checkpoint = weights.load(file, dtype, **more)
    source = checkpoint.source.replace(file, name)
    checkpoint = dataclasses.replace(checkpoint, source=source)
  else:
    checkpoint = weights.load(name, dtype, **more)
  params = _placed(checkpoint.params, split)
  if _is_int8(config, 'verifier'):
    params = int8.quantise(params)
  return dataclasses.replace(checkpoint, params=params)


def not_applied(config: Config) -> dict[str, Any]:
  """Returns what the verifier's generation_config.json asks for in vain.

  Its end tokens are read with the tokenizer; temperature, top-k and top-p are
  the config's.
  """
  folder = config.verifier
  if hub.is_name(folder) and not os.path.exists(folder):
    folder = hub.cached(folder)
  path = os.path.join(folder, 'generation_config.json')
  if not folder or not os.path.isfile(path):
    return {}
  found = files.read_json(path)
  return {
    name: found[name]
    for name, off in _GENERATION.items()
    if found.get(name) not in (None, [], {}, off)
  }


def _split(
  mesh: jax.sharding.Mesh | None,
  table: Sequence[rules.Rule] = rules.TRANSFORMER,
) -> Callable[[Any], Any]:
  """Returns a function from a tree of weights to its shardings."""
  if mesh is None:
    return placing.default
  return functools.partial(rules.shardings, rules=table, mesh=mesh)


def _placed(params: Any, split: Callable[[Any], Any]) -> Any:
  """Returns weights as device arrays, split as it says."""

  def place(x, sharding):
    return jnp.asarray(x) if sharding is None else jax.device_put(x, sharding)

  return jax.tree.map(place, params, split(params))


def _is_int8(config: Config, model: str) -> bool:
  return model in systems.INT8[config.int8]


# --- decoding ---------------------------------------------------------------


def system(
  config: Config,
  checkpoint: weights.Checkpoint,
  name: str = '',
  slots: int = 0,
  platform: str = '',
) -> session_lib.Session:
  """Returns the system `name` (else the config's) with the given verifier.

  `slots` pads plain AR to that many tokens per pass; see config.exact.
  `platform` is what it will be compiled for, by default where this runs.

  Example: system(config, verifier(config), 'lookup')
  """
  name = name or config.system
  tokenizer = checkpoint.tokenizer
  mesh = systems.decode_mesh(config)
  parts = systems.parts(name, config, checkpoint, slots)
  systems.room(config, name, parts.drafter)
  make = functools.partial(
    engine_lib.Engine,
    verifier=causal.CausalVerifier(
      networks.network(checkpoint.config),
      systems.cache_dtype(checkpoint, platform),
    ),
    drafter=parts.drafter,
    rule=parts.rule,
    max_new_tokens=config.max_new_tokens,
    cache_step=config.cache_step,
    mesh=mesh,
  )
  engine = systems.paired(config, name, make)
  drafter_params = parts.params
  if _is_int8(config, 'drafter'):
    drafter_params = int8.quantise(drafter_params, tables.matrices())
  return session_lib.Session(
    name=name,
    engine=engine,
    params=checkpoint.params,
    drafter_params=_placed(drafter_params, _split(mesh, tables.sharding())),
    settings=settings(
      config, (*tokenizer.end_ids, *tokenizer.stop_ids(config.stop))
    ),
    batch=config.batch,
    buckets=tuple(sorted(config.prompt_buckets)),
    cycles_per_call=config.cycles_per_call,
    stop=tuple(config.stop),
    decode_text=tokenizer.decode,
    settled_text=tokenizer.settled,
    size={
      'gamma': parts.drafter.max_depth,
      'drafts': parts.drafts,
      'verify_tokens': parts.drafter.buckets[-1],
    },
  )


def prompts(
  config: Config, path: str | None, limit: int | None
) -> list[prompts_lib.Prompt]:
  """Reads `limit` prompts (0: all) of `path`, else of config.prompts.

  Without a limit it reads all of `path`, or config.limit of config.prompts.
  """
  if limit is None and not path:
    limit = config.limit
  path = path or config.prompts
  if not path:
    raise errors.InputError(
      'There are no prompts: give --prompts FILE.jsonl, or set '
      'config.prompts in the recipe.'
    )
  return prompts_lib.read(path, limit or None)


def requests(
  config: Config,
  checkpoint: weights.Checkpoint,
  texts: Sequence[prompts_lib.Prompt],
) -> list[request_lib.Request]:
  """Returns the prompts in tokens; raises InputError where one is too long."""
  result = []
  for prompt in texts:
    try:
      ids = checkpoint.tokenizer.encode_prompt(prompt.text, config.chat)
    except errors.InputError as error:
      raise errors.InputError(f'The prompt {prompt.id!r}: {error}') from error
    if not 0 < len(ids) <= max(config.prompt_buckets):
      raise errors.InputError(
        f'The prompt {prompt.id!r} has {len(ids)} tokens, but it needs 1 to '
        f'{max(config.prompt_buckets)} to fit the buffers. Raise '
        'config.prompt_buckets, or leave this prompt out.'
      )
    most = checkpoint.config.max_positions
    if len(ids) + config.max_new_tokens > most:
      raise errors.InputError(
        f'The prompt {prompt.id!r} has {len(ids)} tokens, which with '
        f'{config.max_new_tokens} new ones are more than the {most} positions '
        'that the verifier was trained for. Lower config.max_new_tokens, or '
        'leave this prompt out.'
      )
    result.append(request_lib.named(prompt.id, ids))
  return result


def identity(
  config: Config, checkpoint: weights.Checkpoint, names: Sequence[str]
) -> dict[str, Any]:
  """Returns those of the fields `names` that decide a completion, as JSON.

  What decides only the speed is left out, and the verifier stands there by its
  fingerprint.
  """
  own = {name: config[name] for name in names if name not in _SPEED}
  for name, value in own.items():
    if hasattr(value, 'to_dict'):
      own[name] = value.to_dict()
  own |= {'verifier': checkpoint.fingerprint}
  if config.temperature:  # else there is none
    own |= {'noise': sampling_lib.KEYED}
  return json.loads(json.dumps(own))


def turns(config: Config, rows: Sequence[Any]) -> list[Sequence[Any]]:
  """Returns what each of several systems decodes before the next one does.

  One request after another; all of them where rows are decoded together, so
  that rows are refilled.
  """
  return [[row] for row in rows] if config.batch == 1 else [rows]
