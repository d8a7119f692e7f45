"""Settings of jax that would change results, or stop what is made for others.

Users may have set them for other programs, by JAX_... variables or by
`jax.config.update`. The programs set them back; the library says which one.
Noise does not depend on the default PRNG implementation at all: `key` names
its own.
"""

import jax

from specdiff_jax.core import errors

# What everything here is written for and tested with: jax's own defaults.
_WANTED = {
    'jax_enable_x64': False,  # counters are int32, noise is float32
    'jax_threefry_partitionable': True,  # else the draws of a key are others
    'jax_random_seed_offset': 0,  # is added to every seed
    'jax_high_dynamic_range_gumbel': False,  # draws Gumbel noise otherwise
    'jax_numpy_dtype_promotion': 'standard',
    'jax_numpy_rank_promotion': 'allow',
    'jax_debug_nans': False,  # distributions hold log 0
    'jax_debug_infs': False,
    'jax_disable_jit': False,  # loops on the device would be Python's
    'jax_debug_key_reuse': False,
    'jax_check_tracer_leaks': False,
    'jax_no_tracing': False,
    'jax_no_execution': False,
    'jax_error_checking_behavior_nan': 'ignore',
    'jax_error_checking_behavior_divide': 'ignore',
    'jax_error_checking_behavior_oob': 'ignore',
    'jax_transfer_guard': None,  # of all ways, and of each
    'jax_transfer_guard_host_to_device': None,
    'jax_transfer_guard_device_to_host': None,
    'jax_transfer_guard_device_to_device': None,
}  # fmt: skip
_CHANGING = (
    'jax_enable_x64', 'jax_threefry_partitionable', 'jax_random_seed_offset',
    'jax_high_dynamic_range_gumbel',
)  # fmt: skip


def key(seed: int) -> jax.Array:
  """Returns the key of a seed, whatever the default PRNG implementation is.

  Others than Threefry draw otherwise for a row of a batch than for it alone.
  """
  return jax.random.key(seed, impl='threefry2x32')


def settle() -> list[str]:
  """Gives all of them their values; returns those that had another one."""
  others = []
  for name, wanted in _WANTED.items():
    found = getattr(jax.config, name, wanted)  # a version may lack it
    if found != wanted:
      jax.config.update(name, wanted)
      others.append(f'{name}={found}')
  return others


def check() -> None:
  """Raises InputError where one of them would change results."""
  for name in _CHANGING:
    found = getattr(jax.config, name, _WANTED[name])
    if found != _WANTED[name]:
      raise errors.InputError(
        f'{name} is {found}, under which other text would come for the same '
        f'seed, or none. Set it to {_WANTED[name]}: '
        f'jax.config.update({name!r}, {_WANTED[name]!r}).'
      )
