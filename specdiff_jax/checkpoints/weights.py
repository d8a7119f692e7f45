"""Pretrained weights: one `load` for GGUF files, directories and hub names."""

from collections.abc import Callable
import dataclasses
from typing import Any

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import sources
from specdiff_jax.models import networks
from specdiff_jax.text import tokenizer as tokenizer_lib


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A pretrained model: sizes, weights [out, in], tokenizer, identity."""

  config: networks.Config
  params: dict[str, Any]  # nested dict of arrays; see `networks.shapes`
  tokenizer: tokenizer_lib.Tokenizer
  fingerprint: str  # 16 hex digits, taken before any cast
  source: str

  @property
  def dtype(self) -> Any:
    """Dtype of the weights, or of what is beside those of int8."""
    return self.params['final_norm'].dtype


def load(
  path: str,
  dtype: Any,
  *,
  adapter: str = '',
  shardings: Callable[[Any], Any] | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
  """Loads a .gguf file, a directory or a hub name ('org/name').

  Tensors go one at a time from their file to where they belong. On the host
  lie at most one of them and what its devices hold; of a GGUF file, in which
  they are quantised, one in float32.

  Args:
    path: of the model; a directory has the form of Hugging Face, or our own.
    dtype: of the params, 'float32' or 'bfloat16'.
    adapter: directory of a LoRA adapter (PEFT), merged into the weights.
    shardings: from the tree of shapes to a tree of shardings; without it the
      params are numpy arrays.
    progress: called with (values read, values in all).

  Raises:
    InputError: for whatever is wrong with the files, named with its file.

  Example:
    load('runs/verifier/SmolLM2-135M-Instruct.Q4_1.gguf', 'float32')
    load('org/name', 'bfloat16', shardings=functools.partial(
        rules.shardings, rules=rules.TRANSFORMER, mesh=mesh))
  """
  source = sources.open_model(path, adapter)
  config = source.config
  tokenizer = source.tokenizer().within(config.vocab_size, path)
  params, digest = params_lib.gather(
    config, source.tensors(), dtype, source.name, shardings, progress
  )
  return Checkpoint(config, params, tokenizer, digest, source.name)
