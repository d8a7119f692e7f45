"""A rival on the same machine: Hugging Face transformers' greedy `generate`.

Optional: needs the extra [rival] (torch, transformers). It decodes with the
very same weights, one prompt at a time, so that `bench --rival` can say how
fast our plain decoding is beside a well-known one.
"""

from collections.abc import Sequence
import dataclasses
import time
from typing import Any

import numpy as np

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import weights
from specdiff_jax.checkpoints.hf import families
from specdiff_jax.checkpoints.hf import names as hf_names
from specdiff_jax.core import errors
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.models import int8
from specdiff_jax.models import transformer_layer


def to_transformers(config, params: dict[str, Any]) -> Any:
  """Returns the model of `transformers` with these params and their dtype.

  It computes in eval mode, with the plain form of attention. params: numpy (or
  jax) arrays, float32 or bfloat16, unrolled layers, of any family that
  `hf.families` can write; InputError otherwise.
  """
  try:
    import torch
    import transformers
  except ImportError as error:
    raise errors.InputError(
      f'The rival is not installed ({error}). Install torch and '
      "transformers (pip install 'specdiff_jax[rival]'), or leave out "
      '--rival.'
    ) from error

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


@dataclasses.dataclass(frozen=True, eq=False)
class Transformers:
  """`generate` in the form that `timing.interleave` runs."""

  model: Any
  max_new_tokens: int
  end_ids: tuple[int, ...]

  def decode(
    self,
    requests: Sequence[request_lib.Request],
    *,
    clock: request_lib.Clock | None = None,
  ) -> list[request_lib.Completion]:
    """Decodes greedily, a prompt at a time; prefill is timed by itself."""
    clock = clock or request_lib.Clock()
    done = []
    for request in requests:
      begin = time.perf_counter()
      self._run(request.prompt, 1)
      prefill = time.perf_counter() - begin
      begin = time.perf_counter()
      tokens = self._run(request.prompt, self.max_new_tokens)
      clock.prefill += prefill
      clock.decode += time.perf_counter() - begin - prefill
      count = len(tokens) - 1
      done.append(
        request_lib.Completion(
          request.number, tokens, count, count, np.array([count])
        )
      )
    return done

  def calibrated(
    self, requests: Sequence[request_lib.Request]
  ) -> 'Transformers':
    """Returns itself: it has nothing to choose."""
    del requests
    return self

  def warm_up(self, requests: Sequence[request_lib.Request]) -> None:
    """Runs once: the first call allocates."""
    self._run(requests[0].prompt, 2)

  def _run(self, prompt, new_tokens: int) -> np.ndarray:
    import torch

    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
      out = self.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=list(self.end_ids) or None,
        pad_token_id=0,
      )
    return out[0, len(prompt) :].numpy().astype(np.int32)


def system(checkpoint: weights.Checkpoint, max_new_tokens: int) -> Transformers:
  """Returns the rival with the weights of `checkpoint`."""
  config = checkpoint.config
  params = transformer_layer.parted(config, int8.widen(checkpoint.params))
  model = to_transformers(config, params)
  return Transformers(model, max_new_tokens, checkpoint.tokenizer.end_ids)
