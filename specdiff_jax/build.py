"""From a config to running parts: the only reader of configs.

Choices by name are dicts from name to constructor; adding a system adds
a line to one of them. `build_training.py` does the same for training.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from specdiff_jax.bench import plan as plan_lib
from specdiff_jax.collecting import collect as collect_lib
from specdiff_jax.core import errors
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.data import trajectories
from specdiff_jax.decoding import accept
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.decoding import generate
from specdiff_jax.decoding import system as system_lib
from specdiff_jax.drafters import diffusion
from specdiff_jax.drafters import lookup
from specdiff_jax.drafters import none
from specdiff_jax.models import drafter_file
from specdiff_jax.models import drafter_network
from specdiff_jax.models import fetch
from specdiff_jax.models import presets
from specdiff_jax.models import transformer
from specdiff_jax.models import weights

Config = ml_collections.ConfigDict
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
ZOO = pathlib.Path(__file__).parent / 'zoo'


def check(config: Config) -> None:
  """Raises InputError on values that no part could work with."""
  one_of('system', config.system, SYSTEMS)
  one_of('dtype', config.dtype, DTYPES)
  one_of('draft', config.draft, ('argmax', 'sample', 'shared_noise'))
  settings(config, ())
  for name in ('batch', 'gamma', 'ngram', 'cycles_per_call', 'rounds'):
    least(name, config[name], 1)
  for name in ('limit', 'seed'):
    least(name, config[name], 0)
  for dtype, slots in config.ar_slots.items():
    least(f'ar_slots.{dtype}', slots, 1)
  if not config.prompt_buckets:
    raise errors.InputError('config.prompt_buckets is empty; give (128, 256).')
  for bucket in config.prompt_buckets:
    least('prompt_buckets', bucket, 1)


def settings(config: Config, end_ids: Sequence[int]) -> generate.Settings:
  """Returns sampling and limits, checked."""
  return generate.Settings(
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


def verifier(config: Config, dtype: str = '') -> weights.Checkpoint:
  """Loads the verifier and puts it on the device.

  Example: verifier(configs.quickstart.get_config())
  """
  dtype = dtype or config.dtype
  name = config.verifier
  kind, _, preset = name.partition(':')
  if kind == 'random':
    one_of('verifier', preset, presets.SIZES)
    checkpoint = presets.random(preset, dtype)
  elif name == 'quickstart':
    checkpoint = weights.load(fetch.quickstart_file(config.cache_dir), dtype)
    checkpoint = dataclasses.replace(checkpoint, source=name)
  else:
    checkpoint = weights.load(name, dtype)
  return dataclasses.replace(
      checkpoint, params=jax.tree.map(jnp.asarray, checkpoint.params)
  )


# --- decoding ---------------------------------------------------------------


def system(
    config: Config,
    checkpoint: weights.Checkpoint,
    name: str = '',
    slots: int = 0,
) -> system_lib.System:
  """Returns the system `name` (else the config's) with the given verifier.

  `slots` pads plain AR to that many tokens per pass; see config.exact.

  Example: system(config, verifier(config), 'lookup')
  """
  name = name or config.system
  drafter, drafter_params = SYSTEMS[name](config, checkpoint, slots)
  buckets = tuple(sorted(config.prompt_buckets))
  engine = engine_lib.Engine(
      model=transformer.Transformer(checkpoint.config),
      drafter=drafter,
      rule=accept.SampleAndMatch(),
      max_new_tokens=config.max_new_tokens,
      cache_dtype=_cache_dtype(checkpoint),
  )
  return system_lib.System(
      name=name,
      engine=engine,
      params=checkpoint.params,
      drafter_params=drafter_params,
      settings=settings(config, checkpoint.tokenizer.end_ids),
      batch=config.batch,
      buckets=buckets,
      cycles_per_call=config.cycles_per_call,
      stop=tuple(config.stop),
      decode_text=checkpoint.tokenizer.decode,
  )


def _ar(config, checkpoint, slots):
  if not slots:
    own = config.ar_slots[_dtype(checkpoint)]
    slots = config.gamma + 1 if config.exact else own
  return none.NoDraft(slots), ()


def _lookup(config, checkpoint, slots):
  del checkpoint, slots
  return lookup.PromptLookup(config.gamma, config.ngram), ()


def _specdiff(config, checkpoint, slots):
  del slots
  network, params = drafter(config, checkpoint)
  strategy = diffusion.MaskedDiffusion(
      config=network,
      gamma=config.gamma,
      draft_mode=config.draft,
      cache_dtype=_cache_dtype(checkpoint),
  )
  return strategy, params


SYSTEMS: Mapping[str, Callable[..., tuple[Any, Any]]] = {
    'ar': _ar,
    'lookup': _lookup,
    'specdiff': _specdiff,
}


def drafter(
    config: Config, checkpoint: weights.Checkpoint
) -> tuple[drafter_network.DrafterConfig, diffusion.DrafterParams]:
  """Loads config.drafter for this verifier, in the verifier's dtype."""
  if config.drafter == 'random':
    network = drafter_sizes(config, checkpoint)
    params = drafter_network.initial(network, jax.random.key(config.seed))
    vocab = jnp.arange(network.vocab)
  else:
    network, params, vocab = drafter_file.load(
        _drafter_path(config.drafter), checkpoint
    )
  if config.gamma > network.gamma:
    raise errors.InputError(
        f'config.gamma is {config.gamma}, but the drafter {config.drafter} '
        f'drafts {network.gamma} tokens at once. Lower gamma.'
    )
  dtype, verifier_params = DTYPES[_dtype(checkpoint)], checkpoint.params
  head = verifier_params['embed' if checkpoint.config.tied_head else 'head']
  return network, diffusion.DrafterParams(
      network=jax.tree.map(lambda x: jnp.asarray(x, dtype), params),
      vocab=jnp.asarray(vocab, jnp.int32),
      head=jnp.take(head, jnp.asarray(vocab), axis=0),
  )


def _drafter_path(name: str) -> str:
  """Returns the file that config.drafter names: a path, or one of the zoo."""
  if not name:
    raise errors.InputError(
        'config.drafter is empty, but the system specdiff needs one: give a '
        "safetensors file that `specdiff distill` wrote, or 'random'."
    )
  shipped = ZOO / name
  if not os.path.exists(name) and shipped.is_file():
    return str(shipped)
  return name


def drafter_sizes(
    config: Config, checkpoint: weights.Checkpoint
) -> drafter_network.DrafterConfig:
  """Returns the sizes of a new drafter."""
  sizes, model = config.network, checkpoint.config
  if not 1 <= sizes.layers < model.layers:
    raise errors.InputError(
        f'config.network.layers is {sizes.layers}, but a drafter starts from '
        f"the last of the verifier's {model.layers} layers: give 1 to "
        f'{model.layers - 1}.'
    )
  features = tuple(sizes.features)
  features = features or (model.layers - sizes.layers - 1, model.layers - 1)
  if not all(0 <= layer < model.layers for layer in features):
    raise errors.InputError(
        f'config.network.features is {features}, but the layers of the '
        f'verifier are 0 to {model.layers - 1}.'
    )
  return drafter_network.DrafterConfig(
      gamma=config.gamma,
      layers=sizes.layers,
      features=features,
      trunk=sizes.trunk,
      vocab=min(sizes.vocab, model.vocab_size),
      ngram=sizes.ngram,
      verifier=model,
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
) -> list[system_lib.Request]:
  """Returns the prompts in tokens; raises InputError where one is too long."""
  result = []
  for prompt in texts:
    ids = checkpoint.tokenizer.encode_prompt(prompt.text, config.chat)
    if not 0 < len(ids) <= max(config.prompt_buckets):
      raise errors.InputError(
          f'The prompt {prompt.id!r} has {len(ids)} tokens, but it needs 1 to '
          f'{max(config.prompt_buckets)} to fit the buffers. Raise '
          'config.prompt_buckets, or leave this prompt out.'
      )
    result.append(system_lib.request(prompt.id, ids))
  return result


def batches(config: Config, rows: Sequence[Any]) -> list[Sequence[Any]]:
  """Returns the rows in groups that are decoded together."""
  size = config.batch
  return [rows[i : i + size] for i in range(0, len(rows), size)]


def bench(
    config: Config,
    checkpoint: weights.Checkpoint,
    names: Sequence[str] | None,
    rounds: int | None,
) -> plan_lib.Plan:
  """Returns what `bench` does; `names` and `rounds` go before the config's."""
  names = tuple(names or config.systems)
  for name in names:
    one_of('systems', name, SYSTEMS)
  ars = {'ar': config.dtype}
  for dtype in config.ar_dtypes:
    one_of('ar_dtypes', dtype, DTYPES)
    if dtype != config.dtype:
      ars[f'ar {dtype}'] = dtype

  def make(name: str, dtype: str, slots: int) -> system_lib.System:
    own = checkpoint if dtype == config.dtype else verifier(config, dtype)
    return system(config, own, name, slots)

  facts = ('exact', 'batch', 'gamma', 'max_new_tokens', 'top_k', 'top_p')
  facts += ('seed', 'chat', 'drafter')
  return plan_lib.Plan(
      names=names,
      dtype=config.dtype,
      ars={n: (dtype, config.ar_slots[dtype]) for n, dtype in ars.items()},
      rounds=rounds or config.rounds,
      exact=config.exact,
      temperature=config.temperature,
      make=make,
      facts={name: config[name] for name in facts},
  )


def collect(
    config: Config,
    checkpoint: weights.Checkpoint,
    texts: Sequence[prompts_lib.Prompt],
    workdir: str,
    progress: Callable[[int, int, int], None],
    name: str = '',
) -> int:
  """Completes what the journal in `workdir` lacks; returns new tokens.

  The system `name` (else the config's) decides the speed, not the tokens.
  """
  one = system(config, checkpoint, name)

  def run(group):
    rows = [system_lib.request(p.id, ids) for p, ids in group]
    return [completion.tokens for completion in one(rows)]

  names = ('temperature', 'top_k', 'top_p', 'seed', 'max_new_tokens', 'chat')
  header = {name: config[name] for name in names} | {
      'verifier': checkpoint.fingerprint,
      'dtype': _dtype(checkpoint),
      'slots': one.engine.drafter.max_slots,  # decides the last bits in bf16
  }
  with trajectories.Journal(workdir, header) as journal:
    return collect_lib.collect(
        texts,
        lambda text: checkpoint.tokenizer.encode_prompt(text, config.chat),
        run,
        journal,
        progress,
        batch=config.batch,
        max_prompt=max(config.prompt_buckets),
    )


# --- small things -----------------------------------------------------------


def _dtype(checkpoint: weights.Checkpoint) -> str:
  return jax.tree.leaves(checkpoint.params)[0].dtype.name


def _cache_dtype(checkpoint: weights.Checkpoint) -> str:
  """Returns the weights' dtype, but float32 on CPU.

  There XLA updates a bf16 array, and attends to it, by way of float32 copies.
  """
  on_cpu = jax.default_backend() == 'cpu'
  return 'float32' if on_cpu else _dtype(checkpoint)


def one_of(field: str, name: str, known) -> None:
  """Raises InputError unless `name` is one of `known`."""
  if name not in known:
    raise errors.InputError(
        f'config.{field} is {name!r}, but it has to be one of '
        f'{", ".join(known)}.'
    )


def least(field: str, value: float, bound: float) -> None:
  """Raises InputError unless `value` is at least `bound`."""
  if not value >= bound:  # NaN fails too
    raise errors.InputError(
        f'config.{field} is {value}, but it has to be at least {bound}.'
    )
