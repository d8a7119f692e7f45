"""Keeps a run that saves thousands of times at the memory of its first ones.

Where tensorstore (0.1.74 to 0.1.86 at least) turns JSON into Python objects,
the strings and lists in it get a reference too many and are never freed. Orbax
asks for such objects in every save: twice for counters, to log a rate, and once
for each array to have the directory's spec written out. It has no option to do
without, and the objects belong to nobody, so that no collector finds them.

Beside that the threads of a save leave free pages all over glibc's heaps, one
for each thread unless MALLOC_ARENA_MAX=1 is in the environment.
"""

import ctypes
from typing import Any

import tensorstore

_KNOWN = 16  # specs whose JSON is remembered; a save has one or two


def stop_leaks() -> None:
  """Lets tensorstore answer less often; does nothing the second time.

  Counters are no longer collected, by anybody in this process, and the JSON of
  equal specs is made once.
  """
  spec = tensorstore.KvStore.Spec
  if not hasattr(spec.to_json, 'known'):
    tensorstore.experimental_collect_matching_metrics = lambda *_, **__: []
    spec.to_json = _remembered(spec.to_json)


def give_back() -> None:
  """Gives free pages of the heap back to the system, where it has a way."""
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc's alone
  if trim:
    trim(0)


def _remembered(to_json: Any) -> Any:
  """Returns the method, which is called once for equal specs."""
  known = {}

  def remembering(spec, *args, **kwargs):
    key = repr((spec, args, kwargs))  # a spec shows all that it has
    found = known.get(key)
    if found is None:
      found = to_json(spec, *args, **kwargs)
      if len(known) == _KNOWN:
        known.clear()
      known[key] = found
    return dict(found)

  remembering.known = known
  return remembering
