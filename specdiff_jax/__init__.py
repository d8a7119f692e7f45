"""Lossless speculative decoding with diffusion drafters, in JAX.

  import specdiff_jax as sd

  verifier = sd.load_verifier('quickstart', dtype='float32')
  system = sd.system('specdiff', verifier, gamma=4)
  out = system.generate('What is the capital of France?', max_new_tokens=32)
  out.text, out.tau  # what the verifier says, tokens per call of it

Nothing is imported before it is used, so that this is quick.
"""

import importlib
from typing import Any

__version__ = '0.1.0'  # setup.cfg reads it
_HERE = 'specdiff_jax'
# Each public name's module and, where it is another one there, its name.
_NAMES = {
  # What most programs need.
  'load_verifier': 'api.systems',
  'system': 'api.systems',
  'System': 'api.generation',
  'Completion': 'api.generation',
  'verify': 'api.runs',
  'bench': 'api.runs',
  'distill': 'api.runs',
  'Distilled': 'api.runs',
  'load_recipe': 'recipes.recipe_file',
  'load_config': 'recipes.recipe_file',
  'read_prompts': 'api.prompts',
  'read_suite': 'api.prompts',
  'InputError': 'core.errors',
  # The three strategies, and what they hand each other.
  'Drafter': 'core.protocols',
  'Verifier': 'core.protocols',
  'AcceptanceRule': 'core.protocols',
  'DraftTree': 'core.types',
  'Verdict': 'core.types',
  'Context': 'core.protocols',
  'Sampling': 'core.types',
  'Noise': 'core.types',
  'Prompt': 'core.types',
  'DecodeState': 'core.types',
  'Cache': 'models.cache',
  'Engine': 'decoding.engine',
  # Rules.
  'SampleAndMatch': 'decoding.rules.accept',
  'SelfSelection': 'decoding.rules.accept',
  'GreedyAcceptance': 'decoding.rules.rejection',
  'Rejection': 'decoding.rules.rejection',
  'RejectionWithoutReplacement': 'decoding.rules.rejection',
  'BlockVerification': 'decoding.rules.block_verification',
  # What is verified of a window.
  'Chain': 'drafters.strategies',
  'Drafts': 'drafters.strategies',
  'BestFirst': 'drafters.strategies',
  'Lattice': 'drafters.lattice',
  # Losses.
  'make_loss': 'losses.making:make',
  'register_loss': 'losses.registry:register',
}

# One list of names, not two: tools that read no program see none of them.
__all__ = tuple(_NAMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
  if name == 'testing':
    return importlib.import_module(f'{_HERE}.testing')
  if name not in _NAMES:
    raise AttributeError(f'module {_HERE!r} has no attribute {name!r}')
  module, _, other = _NAMES[name].partition(':')
  found = getattr(importlib.import_module(f'{_HERE}.{module}'), other or name)
  globals()[name] = found  # the next look-up is the usual one
  return found


def __dir__() -> list[str]:
  return sorted({*globals(), *_NAMES, 'testing'})
