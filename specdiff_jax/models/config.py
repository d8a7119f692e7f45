"""The sizes of a transformer, checked when they are made."""

import dataclasses
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.core import printing

ACTIVATIONS = ('silu', 'gelu_tanh')
ROPE_SCALINGS = ('linear', 'llama3')
# How keys of a cache are read; '' is what is fastest, of the others see `attention`
# and, for one GPU, `attention_kernel`.
ATTENTION = ('', 'dense', 'chunked', 'kernel')
# The most that files may ask for of each size: work is done for each layer, and
# products of the others have to stay within what arrays can have.
MOST_LAYERS, MOST_SIZE, MOST_POSITIONS = 1024, 1 << 24, (1 << 31) - 1
_POSITIONS = ('position', 'length', 'window', 'original')  # in their names
# Fields of TransformerConfig in which 0 means that there is no such thing.
_ZERO = (
    'norm_offset', 'query_scale', 'window', 'global_every', 'local_rope_base',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies f are changed to reach past the trained length.

  'linear' divides each by `factor`. 'llama3' (the Llama 3.1 models) keeps
  those that turn more than `high` times within `original` tokens, divides by
  `factor` those that turn less than `low` times, and goes over smoothly.
  """

  kind: str
  factor: float
  low: float = 1.0
  high: float = 4.0
  original: int = 8192

  def __post_init__(self):
    if self.kind not in ROPE_SCALINGS:
      raise errors.InputError(
        f'RopeScaling: kind={printing.short(self.kind)} is not known; it is '
        f'one of {", ".join(ROPE_SCALINGS)}.'
      )
    for field in dataclasses.fields(self)[1:]:
      value = getattr(self, field.name)
      check_type('RopeScaling', field.name, field.type, value)
    if self.high <= self.low:
      raise errors.InputError(
        f'RopeScaling: high={self.high} has to be more than low={self.low}; '
        'correct them where the model is configured.'
      )


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """A decoder of the Llama family and its kin: Mistral, Qwen, Gemma 3.

  Raises InputError on impossible sizes.

  Attributes:
    qkv_bias: queries, keys and values have biases (Qwen2).
    qk_norm: each head of Q and K is normed before RoPE (Qwen3, Gemma 3).
    norm_offset: norms scale by this plus their weight (Gemma 3: 1).
    post_norms: attention and MLP are normed behind as well (Gemma 3).
    activation: of the gated MLP, one of ACTIVATIONS.
    embed_scale: what embeddings are multiplied with (Gemma 3: sqrt(width)).
    query_scale: what scores are multiplied with; 0 for head_dim ** -0.5.
    window: keys less than so far away are seen by local layers; 0: no layer is
      local.
    global_every: every so many-th layer is global (Gemma 3: 6); 0: with a
      window all layers are local (Mistral).
    local_rope_base: RoPE base of local layers, which nothing scales; 0 for
      that of global ones, and their scaling.
    rope_scaling: of the RoPE with `rope_base`.
    attention: how keys of a cache are read: one of ATTENTION. No part of what a
      model computes.

  Example: TransformerConfig(vocab_size=257, width=32, layers=2, heads=4,
  kv_heads=2, head_dim=8, mlp_width=64)
  """

  vocab_size: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_width: int
  rope_base: float = 10000.0
  norm_eps: float = 1e-5
  tied_head: bool = True
  max_positions: int = 2048
  # False: params hold 'layer_0', 'layer_1', ...; True: one tree 'layers' whose
  # leaves are stacked [L, ...].
  scan_layers: bool = False
  attention: str = ''
  qkv_bias: bool = False
  qk_norm: bool = False
  norm_offset: float = 0.0
  post_norms: bool = False
  activation: str = 'silu'
  embed_scale: float = 1.0
  query_scale: float = 0.0
  window: int = 0
  global_every: int = 0
  local_rope_base: float = 0.0
  rope_scaling: RopeScaling | None = None

  def __post_init__(self):
    if isinstance(self.rope_scaling, dict):  # as JSON gives it back
      try:
        scaling = RopeScaling(**self.rope_scaling)
      except TypeError as e:  # a name that it has not
        raise errors.InputError(
          f'TransformerConfig: rope_scaling cannot be read ({e}).'
        ) from e
      object.__setattr__(self, 'rope_scaling', scaling)
    check_sizes(self, _ZERO)
    if not isinstance(self.rope_scaling, RopeScaling | None):
      raise errors.InputError(
        'TransformerConfig: rope_scaling='
        f'{printing.short(self.rope_scaling)} is neither a RopeScaling nor '
        'None; correct it where the model is configured.'
      )
    if self.activation not in ACTIVATIONS:
      raise errors.InputError(
        f'TransformerConfig: activation={printing.short(self.activation)} is '
        f'not known; it is one of {", ".join(ACTIVATIONS)}.'
      )
    check_attention(self, ATTENTION)
    if self.heads % self.kv_heads:
      raise errors.InputError(
        f'TransformerConfig: heads={self.heads} is not a multiple of '
        f'kv_heads={self.kv_heads}, so query heads cannot share key heads '
        'evenly; change one of the two.'
      )
    if self.head_dim % 2:
      raise errors.InputError(
        f'TransformerConfig: head_dim={self.head_dim} is odd, but rotary '
        'position embedding turns halves of a head; make it even.'
      )
    if not self.window and (self.global_every or self.local_rope_base):
      raise errors.InputError(
        f'TransformerConfig: global_every={self.global_every} and '
        f'local_rope_base={self.local_rope_base} say what local layers do, '
        'but without a window no layer is local; give window, or leave both '
        'at 0.'
      )

  @property
  def local_layers(self) -> tuple[bool, ...]:
    """Which layers see only `window` keys."""
    every = self.global_every
    return tuple(
      bool(self.window) and not (every and (i + 1) % every == 0)
      for i in range(self.layers)
    )

  @property
  def score_scale(self) -> float:
    """What a query's products with keys are multiplied with."""
    return self.query_scale or self.head_dim**-0.5


def require_transformer(config, wanted_by: str) -> None:
  """Raises InputError for a network that has no layers of `Transformer`."""
  if not isinstance(config, TransformerConfig):
    raise errors.InputError(
      f'{wanted_by} runs layers of the Llama family and its kin, but the '
      f'verifier is another network ({type(config).__name__}); take a system '
      'that does not look into the verifier (ar, lookup, or a drafter that '
      'is a model of its own), or another verifier.'
    )


def check_sizes(config, may_be_zero: tuple[str, ...] = ()) -> None:
  """Raises InputError where a number of a config is impossible."""
  kind = type(config).__name__
  for field in dataclasses.fields(config):
    if field.type in (bool, int, float):
      check_type(
          kind, field.name, field.type, getattr(config, field.name),
          field.name in may_be_zero,
      )  # fmt: skip


def check_attention(config: Any, known: tuple[str, ...]) -> None:
  """Raises InputError where a config names a form that is not known."""
  if config.attention not in known:
    raise errors.InputError(
      f'{type(config).__name__}: attention={printing.short(config.attention)} is '
      f'not known; it is one of {", ".join(map(repr, known))}.'
    )


def check_bound(owner: str, name: str, value: float) -> None:
  """Raises InputError where a size asks for more work than any model does.

  `name`, ours or that of a file's key, says what it is the size of.
  """
  most = MOST_SIZE
  if name.endswith(('layers', 'n_layer', 'n_blocks', 'block_count')):
    most = MOST_LAYERS
  elif any(word in name for word in _POSITIONS):
    most = MOST_POSITIONS
  if value > most:
    raise errors.InputError(
      f'{owner}: {name}={value} is more than {most}; the number is wrong, or '
      'the file that it was read from is damaged.'
    )


def check_type(
  owner: str, name: str, kind: Any, value: Any, may_be_zero: bool = False
) -> None:
  """Raises InputError unless `value` is a positive number (or 0) or a bool."""
  if kind is bool:
    good, wanted = isinstance(value, bool), 'True or False'
  else:
    types = int if kind is int else (int, float)
    good = isinstance(value, types) and not isinstance(value, bool)
    # Below what a float32 holds, which is all that arithmetic has.
    good = good and (0 < value < 1e38 or (may_be_zero and value == 0))
    wanted = 'a positive integer' if kind is int else 'a positive finite number'
    wanted += ', or 0' if may_be_zero else ''
  if not good:
    raise errors.InputError(
      f'{owner}: {name}={printing.short(value)}, but it has to be {wanted}; '
      'correct it where the model is configured.'
    )
  if kind is int:
    check_bound(owner, name, value)
