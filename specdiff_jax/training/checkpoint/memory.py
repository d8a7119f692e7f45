"""Keeps a run that saves thousands of times at the memory of its first ones.

Where tensorstore (0.1.74 to 0.1.86 at least) turns JSON into Python objects,
the strings and lists in it get a reference too many and are never freed. Orbax
asks for such objects in every save: twice for counters, to log a rate, and once
for each array to have the directory's spec written out. No option of it
prevents that, and the objects belong to nobody, so that no collector finds
them. No thread upstream tells of it yet (28 November 2026; google/orbax#1713
has the symptom, and was closed unexplained), so that versions after _LAST are
left as they are until `tests/training/test_memory.py` has shown that they leak too.

Beside that the threads of a save leave free pages all over glibc's heaps, one
for each thread unless MALLOC_ARENA_MAX=1 is in the environment.
"""

import ctypes
import importlib.metadata
from typing import Any

import tensorstore

_LAST = (0, 1, 86)  # the last version of tensorstore seen to leak
_REMEMBERED = 16  # specs whose JSON is kept; a save has one or two


def stop_leaks() -> None:
  """Lets a tensorstore that leaks answer less often; once is enough.

  Counters are no longer collected, by anybody in this process, and the JSON of
  equal specs is made once.
  """
  spec = tensorstore.KvStore.Spec
  if leaks() and not hasattr(spec.to_json, 'made'):
    tensorstore.experimental_collect_matching_metrics = lambda *_, **__: []
    spec.to_json = _remembered(spec.to_json)


def leaks() -> bool:
  """Whether the version of tensorstore that is here leaks."""
  numbers = importlib.metadata.version('tensorstore').split('.')[:3]
  return tuple(int(x) if x.isdigit() else 0 for x in numbers) <= _LAST


def give_back() -> None:
  """Gives free pages of the heap back to the system, where it has a way."""
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc's alone
  if trim:
    trim(0)


def _remembered(to_json: Any) -> Any:
  """Returns the method, which is called once for equal specs."""
  made = {}

  def remembering(spec, *args, **kwargs):
    key = repr((spec, args, kwargs))  # a spec shows all that it has
    found = made.get(key)
    if found is None:
      found = to_json(spec, *args, **kwargs)
      if len(made) == _REMEMBERED:
        made.clear()
      made[key] = found
    return dict(found)

  remembering.made = made
  return remembering
