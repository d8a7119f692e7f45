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

from specdiff_jax.core import errors
from specdiff_jax.decoding import generate
from specdiff_jax.models import huggingface
from specdiff_jax.models import params as params_lib
from specdiff_jax.models import weights

_THEIRS = {ours: theirs for theirs, ours in huggingface.LAYER_NAMES.items()}
_OTHERS = {ours: theirs for theirs, ours in huggingface.OTHER_NAMES.items()}


def tensor_name(ours: str) -> str:
  """Returns 'model.layers.0.mlp.up_proj.weight' for 'layer_0.up'."""
  if ours in _OTHERS:
    return _OTHERS[ours]
  layer, part = ours.split('.')
  number = layer.removeprefix('layer_')
  return f'model.layers.{number}.{_THEIRS[part]}.weight'


def tensors(params: dict[str, Any]) -> dict[str, Any]:
  """Returns name -> array, as model.safetensors holds them."""
  return {tensor_name(n): x for n, x in params_lib.flatten(params)}


def config_json(config, current: bool = True) -> dict[str, Any]:
  """Returns config.json, in the current or the older spelling."""
  raw = {
      'architectures': ['LlamaForCausalLM'],
      'model_type': 'llama',
      'hidden_act': 'silu',
      'vocab_size': config.vocab_size,
      'hidden_size': config.width,
      'num_hidden_layers': config.layers,
      'num_attention_heads': config.heads,
      'num_key_value_heads': config.kv_heads,
      'head_dim': config.head_dim,
      'intermediate_size': config.mlp_width,
      'rms_norm_eps': config.norm_eps,
      'tie_word_embeddings': config.tied_head,
      'max_position_embeddings': config.max_positions,
  }
  rope = {'rope_theta': config.rope_base, 'rope_type': 'default'}
  if current:
    return raw | {'rope_parameters': rope, 'dtype': 'float32'}
  older = {'rope_theta': config.rope_base, 'rope_scaling': None}
  return raw | older | {'torch_dtype': 'float32'}


def to_transformers(config, params: dict[str, Any]) -> Any:
  """Returns a `LlamaForCausalLM` in eval mode with these params and dtype.

  params: numpy (or jax) arrays, float32 or bfloat16, unrolled layers.
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

  major = int(transformers.__version__.split('.')[0])
  raw = config_json(config, current=major >= 5)
  settings = transformers.LlamaConfig(
      **{k: v for k, v in raw.items() if 'dtype' not in k}
  )
  state = {n: _to_torch(torch, x) for n, x in tensors(params).items()}
  with torch.device('meta'):  # its own random weights would take seconds
    model = transformers.LlamaForCausalLM(settings)
  model.load_state_dict(state, assign=True, strict=False)
  model.tie_weights()
  # What is no parameter (the table of rotary frequencies) is made anew.
  model.model.rotary_emb = type(model.model.rotary_emb)(settings)
  left = [n for n, p in model.named_parameters() if p.is_meta]
  if left or model.get_input_embeddings().weight.shape[0] != config.vocab_size:
    raise ValueError(f'parameters without a value: {left}')
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

  def __call__(
      self,
      requests: Sequence[generate.Request],
      *,
      clock: generate.Clock | None = None,
  ) -> list[generate.Completion]:
    """Decodes greedily, a prompt at a time; prefill is timed by itself."""
    clock = clock or generate.Clock()
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
          generate.Completion(
              request.number, tokens, count, count, np.array([count])
          )
      )
    return done

  def calibrated(self, requests: Sequence[generate.Request]) -> 'Transformers':
    """Returns itself: it has nothing to choose."""
    del requests
    return self

  def warm_up(self, requests: Sequence[generate.Request]) -> None:
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


def system(
    checkpoint: weights.Checkpoint, max_new_tokens: int
) -> Transformers:
  """Returns the rival with the weights of `checkpoint`."""
  model = to_transformers(checkpoint.config, checkpoint.params)
  return Transformers(model, max_new_tokens, checkpoint.tokenizer.end_ids)
