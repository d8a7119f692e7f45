"""Rivals on the same machine: what people use in place of this.

Optional: `transformers` needs the extra [rival] (torch, transformers),
`llama_cpp` llama-cpp-python and a verifier that is a GGUF file. They decode
with the very same weights, one prompt at a time and greedily, plainly and with
prompt lookup; transformers' assisted generation with our autoregressive drafter.
"""

from collections.abc import Callable, Mapping, Sequence
import copy
import dataclasses
import functools
import importlib.metadata
import os
import time
from typing import Any, NamedTuple

import numpy as np

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import weights
from specdiff_jax.checkpoints.hf import families
from specdiff_jax.checkpoints.hf import names as hf_names
from specdiff_jax.core import errors
from specdiff_jax.core import types
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.drafters.autoregressive import network as autoregressive
from specdiff_jax.models import int8
from specdiff_jax.models import transformer
from specdiff_jax.models import transformer_layer

# Tokens that prompt lookup copies at most.
_COPIED = {'transformers': 4, 'llama_cpp': 2}
_GET = {
  'transformers': "pip install '.[rival]' in the clone",
  'llama_cpp': 'pip install llama-cpp-python',
}
_PACKAGE = {'transformers': 'transformers', 'llama_cpp': 'llama_cpp_python'}
NAMES = tuple(_GET)


def to_transformers(config, params: dict[str, Any]) -> Any:
  """Returns the model of `transformers` with these params and their dtype.

  It computes in eval mode, with the plain form of attention. params: numpy (or
  jax) arrays, float32 or bfloat16, unrolled layers, of any family that
  `hf.families` can write; InputError otherwise.
  """
  import torch
  import transformers

  try:
    from transformers import initialization  # of version 5
  except ImportError:
    from transformers import modeling_utils as initialization

  raw = families.hf_config(config)
  settings = transformers.AutoConfig.for_model(**raw)
  names = hf_names.names(config)
  state = {}
  for ours, array in params_lib.flatten(params):
    stored = hf_names.as_stored(config, ours, np.asarray(array))
    state[names[ours]] = _to_torch(torch, stored)
  # It would take seconds. Version 4 has it elsewhere.
  with initialization.no_init_weights():  # pyright: ignore[reportAttributeAccessIssue]
    model = transformers.AutoModelForCausalLM.from_config(settings)
  missing, left = model.load_state_dict(state, assign=True, strict=False)
  model.tie_weights()
  if left or set(missing) - {'lm_head.weight'}:
    raise ValueError(f'parameters without a value or a place: {missing, left}')
  return model.eval()


def _to_torch(torch, array):
  array = np.array(array)  # a copy: torch wants to own writable memory
  if array.dtype.name == 'bfloat16':
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
  return torch.from_numpy(array)


class Assistant(NamedTuple):
  """An autoregressive drafter of ours, for assisted generation."""

  config: autoregressive.CausalConfig
  params: types.Params
  gamma: int  # most tokens of a draft: transformers ends one that it doubts


def to_assistant(
  config, params: Mapping[str, Any], assistant: Assistant
) -> Any:
  """Returns an autoregressive drafter as a model of `transformers`.

  With the verifier's embedding and head, so that it scores every token. config,
  params: the verifier's, unrolled.
  """
  sizes = assistant.config
  if any(config.local_layers):
    raise errors.InputError(
      'assisted generation is not timed where layers of the verifier are local: '
      'leave sps out.'
    )
  config = dataclasses.replace(config, layers=sizes.layers, scan_layers=False)
  shared = {name: params[name] for name in ('embed', 'head') if name in params}
  own = transformer_layer.parted(config, int8.widen(assistant.params))
  model = to_transformers(config, {**shared, **own})
  model.generation_config.num_assistant_tokens = assistant.gamma
  model.generation_config.num_assistant_tokens_schedule = 'constant'
  return model


class Run(NamedTuple):
  """One prompt's completion."""

  tokens: Sequence[int]
  at_once: int  # of them, from the pass that read the prompt
  prefill: float  # seconds of that pass


@dataclasses.dataclass(frozen=True, eq=False)
class Rival:
  """Another program, in the form that `timing.interleave` runs.

  Attributes:
    run: takes a prompt and the number of new tokens.
    max_new_tokens: of each prompt.
  """

  run: Callable[[Sequence[int], int], Run]
  max_new_tokens: int

  def decode(
    self,
    requests: Sequence[request_lib.Request],
    *,
    clock: request_lib.Clock | None = None,
  ) -> list[request_lib.Completion]:
    """Decodes greedily, a prompt at a time."""
    clock = clock or request_lib.Clock()
    done = []
    for request in requests:
      begin = time.perf_counter()
      tokens, at_once, prefill = self.run(request.prompt, self.max_new_tokens)
      clock.prefill += prefill
      clock.decode += time.perf_counter() - begin - prefill
      count = len(tokens) - at_once
      done.append(
        request_lib.Completion(
          request.number,
          np.asarray(tokens, np.int32),
          count,
          count,
          np.array([count]),
        )
      )
    return done

  def calibrated(self, requests: Sequence[request_lib.Request]) -> 'Rival':
    """Returns itself: it has nothing to choose."""
    del requests
    return self

  def warm_up(self, requests: Sequence[request_lib.Request]) -> None:
    """Runs once: the first call allocates."""
    self.run(requests[0].prompt, 2)


def check(names: Sequence[str]) -> None:
  """Raises InputError unless all are known."""
  if unknown := [name for name in names if name not in NAMES]:
    raise errors.InputError(
      f'there is no rival {unknown[0]!r}; give one of {", ".join(NAMES)}.'
    )


def rivals(
  name: str,
  checkpoint: weights.Checkpoint,
  file: str,
  tokens: int,
  room: int,
  assistant: Assistant | None = None,
) -> tuple[dict[str, Rival], str]:
  """Returns the ways that a rival decodes in, by name, and its version.

  Args:
    name: one of NAMES.
    checkpoint: the verifier.
    file: the GGUF file that it came from; '' if it did not.
    tokens: new ones of each prompt.
    room: tokens of the longest prompt and completion.
    assistant: what drafts in assisted generation, if that is timed.

  Raises:
    InputError: it is not installed, or cannot read the verifier.
  """
  try:
    version = importlib.metadata.version(_PACKAGE[name])
    if name == 'transformers':
      runs = _transformers(checkpoint, assistant)
    else:
      runs = _llama_cpp(file, room, checkpoint.tokenizer.end_ids)
  except importlib.metadata.PackageNotFoundError:
    raise errors.InputError(f'{name} is not installed: {_GET[name]}') from None
  except ImportError as error:
    raise errors.InputError(
      f'{name} cannot be imported ({error}): {_GET[name]}'
    ) from error
  return {key: Rival(run, tokens) for key, run in runs.items()}, version


def _transformers(
  checkpoint: weights.Checkpoint, assistant: Assistant | None
) -> Mapping[str, Callable]:
  import torch

  params = int8.widen(checkpoint.params)
  if checkpoint.config.scan_layers:
    params = transformer.unrolled(checkpoint.config, params)
  params = transformer_layer.parted(checkpoint.config, params)
  model = to_transformers(checkpoint.config, params)
  others = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32}
  other = others[model.dtype]
  models = model, to_transformers(checkpoint.config, params).to(other)
  end_ids = list(checkpoint.tokenizer.end_ids) or None
  small = (
    to_assistant(checkpoint.config, params, assistant) if assistant else None
  )

  def run(model, more, prompt, new_tokens: int):
    ids = torch.tensor([list(prompt)])
    watch = _Watch()
    with torch.inference_mode():
      out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=end_ids,
        pad_token_id=0,
        streamer=watch,
        **more,
      )
    # Its first piece is the prompt.
    (start, _), (end, at_once) = watch.pieces[:2]
    return Run(out[0, len(prompt) :].tolist(), at_once, end - start)

  found = {}
  for one in models:
    ways = {
      '': {},
      ' lookup': {'prompt_lookup_num_tokens': _COPIED['transformers']},
    }
    if small is not None:
      ways[' assisted'] = {
        'assistant_model': copy.deepcopy(small).to(one.dtype)
      }
    dtype = str(one.dtype).split('.')[1]
    for text, more in ways.items():
      found[f'transformers {dtype}{text}'] = functools.partial(run, one, more)
  return found


class _Watch:
  """What `generate` streams to: when a piece came, and its tokens."""

  def __init__(self):
    self.pieces: list[tuple[float, int]] = []

  def put(self, value: Any) -> None:
    self.pieces.append((time.perf_counter(), value.numel()))

  def end(self) -> None:
    pass


def _llama_cpp(
  file: str, room: int, end_ids: Sequence[int]
) -> Mapping[str, Callable]:
  import llama_cpp  # pyright: ignore[reportMissingImports]
  from llama_cpp import llama_speculative  # pyright: ignore[reportMissingImports]

  if not file:
    raise errors.InputError(
      'llama_cpp reads GGUF files, and the verifier is none, or has an adapter: '
      'give a .gguf file.'
    )

  def run(model, prompt, new_tokens: int):
    model.reset()  # else it keeps what two prompts have in common
    found, begin, prefill = [], time.perf_counter(), 0.0
    for token in model.generate(list(prompt), temp=0.0):
      prefill = prefill or time.perf_counter() - begin
      found.append(token)
      if len(found) == new_tokens or token in end_ids:
        break
    return Run(found, 1, prefill)

  def model(**lookup):
    cores = os.cpu_count()
    try:
      return llama_cpp.Llama(
        file,
        n_ctx=room,
        n_threads=cores,
        n_threads_batch=cores,
        verbose=False,
        **lookup,
      )
    except ValueError as error:
      raise errors.InputError(f'llama_cpp cannot load it: {error}') from error

  lookup = llama_speculative.LlamaPromptLookupDecoding(
    num_pred_tokens=_COPIED['llama_cpp']
  )
  return {
    'llama_cpp': functools.partial(run, model()),
    'llama_cpp lookup': functools.partial(
      run, model(draft_model=lookup, logits_all=True)
    ),
  }
