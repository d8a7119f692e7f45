"""From a recipe to systems that decode, and to what `bench` compares."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import math
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
from specdiff_jax.core import fields as field_lib
from specdiff_jax.core import files
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.decoding.rules import accept
from specdiff_jax.drafters import tables
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import int8
from specdiff_jax.models import networks
from specdiff_jax.models import transformer
from specdiff_jax.models import transformer_layer
from specdiff_jax.parallel import rules
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import groups
from specdiff_jax.recipes import options as options_lib
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.recipes import systems
from specdiff_jax.verifiers import causal

# What transformers' `generate` does to distributions and texts that nothing here
# does, with the values that switch it off.
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


@fields.rim()
def check(recipe: recipe_lib.Recipe) -> None:
  """Raises InputError on values that no part could work with."""
  for group in (
    recipe.model,
    recipe.drafting,
    *recipe.systems.values(),
    recipe.decoding,
    recipe.bench,
  ):
    field_lib.check(group)
  settings(recipe.sampling, ())
  if not recipe.decoding.prompt_buckets:
    raise errors.InputError('config.prompt_buckets is empty; give (128, 256).')


def settings(
  sampling: groups.Sampling, end_ids: Sequence[int]
) -> request_lib.Settings:
  """Returns sampling and limits, checked."""
  return request_lib.Settings(
    temperature=sampling.temperature,
    top_k=sampling.top_k,
    top_p=sampling.top_p,
    seed=sampling.seed,
    max_new_tokens=sampling.max_new_tokens,
    end_ids=tuple(end_ids),
  )


def device() -> str:
  """Returns what this runs on, such as 'cpu x 1 (2 cores)'."""
  devices = jax.devices()
  cores = f' ({os.cpu_count()} cores)' if devices[0].platform == 'cpu' else ''
  return f'{devices[0].device_kind} x {len(devices)}{cores}'


def verifier(
  recipe: recipe_lib.Recipe,
  dtype: str = '',
  progress: Callable[[int, int], None] | None = None,
  split: Callable[[Any], Any] | None = None,
) -> weights.Checkpoint:
  """Loads the verifier and puts it on the devices.

  `progress` is called with (values read, values in all). `split` goes from the
  tree of weights to its shardings; by default config.decode_mesh decides, and
  weights that it leaves whole are merged (`transformer_layer.merged`).

  Example: verifier(recipe_file.load_recipe('quickstart'))
  """
  model = recipe.model
  dtype = dtype or model.dtype
  name = model.verifier
  if not name:
    raise errors.InputError(
      'config.verifier is empty; give a .gguf file, a directory, a name on '
      "the hub ('org/name'), or quickstart."
    )
  kind, _, preset = name.partition(':')
  merge = False
  if split is None:
    mesh = systems.decode_mesh(recipe.decoding)
    # A split over heads and hidden units would cut across merged weights.
    merge = mesh is None or mesh.shape['model'] == 1
    split = _split(mesh)
  # Straight to where it belongs, so that the host holds no copy.
  more: Any = {'adapter': model.adapter, 'progress': progress}
  more['shardings'] = split
  if kind == 'random':
    systems.one_of('verifier', preset, presets.SIZES)
    if model.adapter:
      raise errors.InputError(
        f'config.adapter is {model.adapter}, but a random verifier takes no '
        'adapter; leave it empty.'
      )
    checkpoint = presets.random(preset, dtype)
  elif name == 'quickstart':
    file = fetch.quickstart_file(model.cache_dir)
    checkpoint = weights.load(file, dtype, **more)
    source = checkpoint.source.replace(file, name)
    checkpoint = dataclasses.replace(checkpoint, source=source)
  else:
    checkpoint = weights.load(name, dtype, **more)
  params = _placed(checkpoint.params, split)
  if systems.is_int8(recipe, 'verifier'):
    params = int8.quantise(params)
  if merge:
    # One by one, so that no more than a layer is there twice.
    checkpoint = dataclasses.replace(checkpoint, params={})
    params = {n: transformer_layer.merged(params.pop(n)) for n in list(params)}
  config = checkpoint.config
  if systems.scan_layers():
    checkpoint = dataclasses.replace(checkpoint, params={})
    config, params = transformer.stacked(config, params)
    params = _placed(params, split)
  return dataclasses.replace(checkpoint, config=config, params=params)


def not_applied(recipe: recipe_lib.Recipe) -> dict[str, Any]:
  """Returns settings of the verifier's generation_config.json not applied.

  Its end tokens are read with the tokenizer; temperature, top-k and top-p are
  the config's.
  """
  folder = recipe.model.verifier
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


# --- decoding ---------------------------------------------------------------


def told(
  names: Sequence[str], values: Mapping[str, Any], **more: Any
) -> recipe_lib.Recipe:
  """Returns the checked recipe of keyword arguments for some systems.

  Args:
    names: the systems.
    values: of fields of theirs, of `Sampling` or `Decoding`, by name.
    more: values of any other fields.

  Raises:
    InputError: a name that none of the systems has, or a value that is not
      allowed. It speaks of arguments, not of fields of a config.

  Example: told(['specdiff'], {'gamma': 4, 'drafter': 'random'})
  """
  for name in names:
    if name not in options_lib.SYSTEMS:
      raise fields.unknown('There is no system', name, options_lib.SYSTEMS)
  kinds = [options_lib.SYSTEMS[name] for name in names]
  taken = {
    one.name
    for kind in (*kinds, groups.Sampling, groups.Decoding)
    for one in dataclasses.fields(kind)
  }
  who = f'The system {" or ".join(map(repr, names))}'
  if not names:
    who = 'This system'
  for given in values:
    if given not in taken:
      raise errors.InputError(
        f'{who} takes no {given!r}; it takes {", ".join(sorted(taken))}.'
      )
  with fields.arguments():
    recipe = fields.typed({**values, **more}, who)
    check(recipe)
    return recipe


def _attending(
  decoding: groups.Decoding, checkpoint: weights.Checkpoint, platform: str
) -> weights.Checkpoint:
  """Returns a verifier that attends as asked for; one that does stays so.

  `system` asks before it makes a drafter of the verifier's sizes, and `session`
  for drafters that others have made.
  """
  form = decoding.attention
  if not form:
    return checkpoint
  platform = platform or jax.default_backend()
  if form == 'kernel':
    why = ''
    if platform not in ('gpu', 'cuda', 'rocm'):
      why = f'this is {platform}'
    elif math.prod(decoding.decode_mesh) > 1:
      why = f'config.decode_mesh={decoding.decode_mesh} has several devices'
    elif not isinstance(checkpoint.config, config_lib.TransformerConfig):
      why = f'the verifier is a {type(checkpoint.config).__name__}'
    if why:
      raise errors.InputError(
        "config.attention='kernel' is for one GPU and networks of the Llama "
        f"family and its kin, but {why}; leave it at '', which takes what is "
        'fastest here: dense attention, or chunks of a long cache.'
      )
  config = dataclasses.replace(checkpoint.config, attention=form)
  return dataclasses.replace(checkpoint, config=config)


@fields.rim()
def system(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  name: str = '',
  slots: int = 0,
  platform: str = '',
) -> session_lib.Session:
  """Returns the system `name` (else the recipe's) with the given verifier.

  `slots` pads plain AR to that many tokens per pass; see config.exact.
  `platform` is what it will be compiled for, by default where this runs.

  Example: system(recipe, verifier(recipe), 'lookup')
  """
  name = name or recipe.drafting.system
  options = recipe.systems[name]
  if slots:
    options = dataclasses.replace(
      options,
      exact=False,
      ar_slots=options_lib.SlotsByDtype(float32=slots, bfloat16=slots),
    )
  checkpoint = _attending(recipe.decoding, checkpoint, platform)
  parts = systems.parts(name, options, checkpoint, platform)
  systems.room(recipe, name, parts.drafter)
  systems.paired(options, name, lambda: accept.check(parts.drafter, parts.rule))
  if any(map(transformer_layer.is_merged, checkpoint.params.values())):
    params = transformer_layer.merged(parts.params, platform)
    parts = parts._replace(params=params)
  return session(recipe, checkpoint, name, parts, platform)


def session(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  name: str,
  parts: systems.Parts,
  platform: str = '',
) -> session_lib.Session:
  """Returns the session of a drafter and a rule, whatever made them.

  See `system`; InputError where the rule is not lossless for the drafts.
  """
  decoding, tokenizer = recipe.decoding, checkpoint.tokenizer
  mesh = systems.decode_mesh(decoding)
  config = _attending(decoding, checkpoint, platform).config
  engine = engine_lib.Engine(
    verifier=causal.CausalVerifier(
      networks.network(config),
      systems.cache_dtype(checkpoint, platform),
    ),
    drafter=parts.drafter,
    rule=parts.rule,
    max_new_tokens=recipe.sampling.max_new_tokens,
    cache_step=decoding.cache_step,
    mesh=mesh,
    round_slots=not systems.on_cpu(platform),
  )
  drafter_params = parts.params
  if systems.is_int8(recipe, 'drafter'):
    drafter_params = int8.quantise(drafter_params, tables.matrices())
  one = session_lib.Session(
    name=name,
    engine=engine,
    params=checkpoint.params,
    drafter_params=_placed(drafter_params, _split(mesh, tables.sharding())),
    settings=settings(recipe.sampling, ()),
    batch=decoding.batch,
    buckets=tuple(sorted(decoding.prompt_buckets)),
    cycles_per_call=decoding.cycles_per_call,
    decode_text=tokenizer.decode,
    settled_text=tokenizer.settled,
    size={
      'gamma': parts.drafter.max_depth,
      'drafts': parts.drafts,
      'verify_tokens': parts.drafter.buckets[-1],
    },
  )
  return under(one, recipe, checkpoint)


def under(
  one: session_lib.Session,
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
) -> session_lib.Session:
  """Returns a session with the sampling, limits and stops of another recipe."""
  tokenizer, stop = checkpoint.tokenizer, recipe.decoding.stop
  end_ids = *tokenizer.end_ids, *tokenizer.stop_ids(stop)
  return dataclasses.replace(
    one, settings=settings(recipe.sampling, end_ids), stop=stop
  )


def prompts(
  recipe: recipe_lib.Recipe, path: str | None, limit: int | None
) -> list[prompts_lib.Prompt]:
  """Reads `limit` prompts (0: all) of `path`, else of config.prompts.

  Without a limit it reads all of `path`, or config.limit of config.prompts.
  """
  if limit is None and not path:
    limit = recipe.bench.limit
  path = path or recipe.bench.prompts
  if not path:
    raise errors.InputError(
      'There are no prompts: give --prompts FILE.jsonl, or set '
      'config.prompts in the recipe.'
    )
  return prompts_lib.read(path, limit or None)


def tokens(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  prompt: prompts_lib.Prompt,
) -> list[int]:
  """Returns the tokens of a text, of messages, or of tokens.

  The arguments of the chat template are those of the recipe and, which go
  before them, of the prompt. Raises InputError, which names the prompt.
  """
  sampling = recipe.sampling
  arguments = {**json.loads(sampling.template), **prompt.template}
  try:
    if arguments and isinstance(prompt.text, str) and not sampling.chat:
      raise errors.InputError(
        f'there are arguments of the chat template ({", ".join(arguments)}), '
        'but config.chat is False; leave them out, or set it.'
      )
    return checkpoint.tokenizer.encode_prompt(
      prompt.text, sampling.chat, arguments
    )
  except errors.InputError as error:
    raise errors.InputError(f'The prompt {prompt.id!r}: {error}') from error


def requests(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  texts: Sequence[prompts_lib.Prompt],
) -> list[request_lib.Request]:
  """Returns the prompts in tokens; raises InputError where one is too long."""
  return [_request(recipe, checkpoint, one) for one in texts]


def _request(
  recipe, checkpoint, prompt: prompts_lib.Prompt
) -> request_lib.Request:
  longest = max(recipe.decoding.prompt_buckets)
  id, ids = prompt.id, tokens(recipe, checkpoint, prompt)
  if not 0 < len(ids) <= longest:
    raise errors.InputError(
      f'The prompt {id!r} has {len(ids)} tokens, but it needs 1 to '
      f'{longest} to fit the buffers. Raise '
      'config.prompt_buckets, or leave this prompt out.'
    )
  check_positions(recipe, checkpoint, id, len(ids))
  return request_lib.named(id, ids)


def check_positions(
  recipe: recipe_lib.Recipe, checkpoint: weights.Checkpoint, id: str, size: int
) -> None:
  """Raises InputError where the verifier has no positions for a prompt."""
  new, most = recipe.sampling.max_new_tokens, checkpoint.config.max_positions
  if size + new > most:
    raise errors.InputError(
      f'The prompt {id!r} has {size} tokens, which with {new} new ones are more '
      f'than the {most} positions that the verifier was trained for. Lower '
      'config.max_new_tokens, or leave this prompt out.'
    )


def identity(
  recipe: recipe_lib.Recipe, checkpoint: weights.Checkpoint
) -> dict[str, Any]:
  """Returns the fields that decide a completion, as JSON.

  What decides only the speed is left out, and the verifier stands there by its
  fingerprint.
  """
  decides = recipe.deciding('text') | {'verifier': checkpoint.fingerprint}
  # A rounded drafter changes no text.
  decides['int8'] = 'verifier' if systems.is_int8(recipe, 'verifier') else ''
  if recipe.sampling.temperature:  # else there is none
    decides |= {'noise': sampling_lib.KEYED}
  return decides


def batches(
  recipe: recipe_lib.Recipe, requests: Sequence[Any]
) -> list[Sequence[Any]]:
  """Returns what each of several systems decodes before the next one does.

  One request after another; all of them where they are decoded together, so
  that places in the batch are refilled.
  """
  alone = recipe.decoding.batch == 1
  return [[one] for one in requests] if alone else [requests]
