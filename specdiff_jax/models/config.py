"""The sizes of a transformer, checked when they are made."""

import dataclasses

from specdiff_jax.core import errors

_MOST_LAYERS = 1024


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """A decoder of the Llama family; raises InputError on impossible sizes.

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

  def __post_init__(self):
    for field in dataclasses.fields(self):
      _check_type(field.name, field.type, getattr(self, field.name))
    if self.layers > _MOST_LAYERS:  # a damaged file must not make us count on
      raise errors.InputError(
          f'TransformerConfig: layers={self.layers} is more than '
          f'{_MOST_LAYERS}; the number is wrong, or the file that it was read '
          'from is damaged.'
      )
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


def _check_type(name: str, kind: type, value) -> None:
  """Raises InputError unless `value` is a positive number or a bool."""
  if kind is bool:
    good, wanted = isinstance(value, bool), 'True or False'
  elif kind is int:
    good = isinstance(value, int) and not isinstance(value, bool) and value > 0
    wanted = 'a positive integer'
  else:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    good = good and 0 < value < float('inf')
    wanted = 'a positive finite number'
  if not good:
    raise errors.InputError(
        f'TransformerConfig: {name}={value!r}, but it has to be {wanted}; '
        'correct it where the model is configured.'
    )
