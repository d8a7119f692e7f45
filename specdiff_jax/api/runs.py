"""Whole programs as functions: verify, bench, distill."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import numbers
import os
from typing import Any

from specdiff_jax.api import checks
from specdiff_jax.api import prompts as prompts_lib
from specdiff_jax.api import systems as systems_lib
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import paths
from specdiff_jax.models import int8
from specdiff_jax.models import transformer_layer
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.recipes import runs
from specdiff_jax.recipes import training
from specdiff_jax.tools.bench import result as bench_result
from specdiff_jax.tools.bench import runner
from specdiff_jax.tools.exactness import certificate
from specdiff_jax.tools.exactness import plan as plan_lib


def verify(
  verifier: weights.Checkpoint,
  systems: Sequence[str] | str,
  prompts: Any,
  *,
  fast: bool = False,
  **options: Any,
) -> certificate.Certificate:
  """Returns the certificate that drafting leaves every token as it is.

  Every system decodes the prompts at temperature 0 and at `temperature` (1.0 if
  that is 0), one at a time and in batches of `batch`, and is compared with
  plain decoding through the same shapes.

  Args:
    verifier: of `load_verifier`, in float32 unless `fast`.
    systems: names of systems, or one.
    prompts: as `System.generate` takes them.
    fast: in the verifier's dtype, plain decoding through its fastest shape;
      a difference passes where rounding explains it.
    **options: as those of `system`; `drafter` may map a system to its drafter.

  Raises:
    InputError: which names the argument, what it was, what it may be.

  Example:
    >>> import specdiff_jax as sd
    >>> verifier = sd.load_verifier('random:tiny', dtype='float32')
    >>> sd.verify(verifier, 'lookup', 'one two', max_new_tokens=4).passed
    True
  """
  checks.flags(fast=fast)
  names, named = _told(verifier, systems, prompts)
  recipe = systems_lib.told([*names, 'ar'], verifier, options)
  if not fast and recipe.model.dtype != 'float32':
    raise errors.InputError(
      f'verifier is in {recipe.model.dtype}, but verify runs in float32, where '
      "no token may differ: load it with dtype='float32', or give fast=True."
    )
  with fields.arguments():
    recipe = plan_lib.settle(recipe, fast)
    return certificate.verify(recipe, verifier, named, names)


def bench(
  verifier: weights.Checkpoint,
  systems: Sequence[str] | str,
  prompts: Any,
  *,
  rounds: int = 3,
  costs: bool = False,
  trace: bool = False,
  simulate: float | None = None,
  **options: Any,
) -> bench_result.BenchResult:
  """Returns speeds, acceptance and exactness of systems, side by side.

  They decode the prompts in turns, after a warm-up on the same shapes, beside
  plain decoding in the verifier's dtype; `bench` also times `config.ar_dtypes`.

  Args:
    verifier: of `load_verifier`.
    systems: names of systems, or one.
    prompts: as `System.generate` takes them.
    rounds: interleaved repetitions, whose median is reported.
    costs: whether the parts of each cycle are timed alone too.
    trace: whether the first prompt is decoded once more by each system, which
      tells what proposed each token (`example` of the result).
    simulate: a rate at which drafted tokens are right, in place of what the
      drafters with networks would reach: tau is made up then, times and texts
      are not.
    **options: as those of `system`; `drafter` may map a system to its drafter.

  Raises:
    InputError: which names the argument, what it was, what it may be.

  Example:
    >>> import specdiff_jax as sd
    >>> verifier = sd.load_verifier('random:tiny', dtype='float32')
    >>> found = sd.bench(verifier, ['lookup'], 'one', rounds=1, max_new_tokens=4)
    >>> [(row.system, row.exact) for row in found.rows]
    [('lookup', True)]
  """
  checks.flags(costs=costs, trace=trace)
  if simulate is not None and (
    isinstance(simulate, bool) or not isinstance(simulate, numbers.Real)
  ):
    raise checks.wrong('simulate', simulate, 'None or a number, 0 to 1')
  names, named = _told(verifier, systems, prompts)
  own = verifier.dtype.name
  recipe = systems_lib.told(
    list(dict.fromkeys([*names, 'ar'])),
    verifier,
    options,
    rounds=rounds,
    ar_dtypes=(own,),
  )
  with fields.arguments():
    return runner.run(
      recipe,
      verifier,
      named,
      names,
      costs=costs,
      trace=trace,
      simulate=simulate,
    )


@dataclasses.dataclass(frozen=True)
class Distilled:
  """What a training run yields.

  Attributes:
    drafter: its file, for `system`; '' where the run was interrupted, which
      goes on when it is called again.
    steps: batches seen.
    loss: the last one logged.
    tau: tokens per call of the verifier on held-out trajectories, simulated.
    figures: these and others, as the command's JSON line has them.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.Distilled('d.safetensors', 3, 0.5, 1.2).drafter
    'd.safetensors'
  """

  drafter: str
  steps: int
  loss: float | None
  tau: float | None
  figures: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, repr=False
  )


def distill(
  recipe: recipe_lib.Recipe | Mapping[str, Any],
  workdir: str | os.PathLike[str] = 'runs/distill',
  verifier: weights.Checkpoint | None = None,
) -> Distilled:
  """Trains a drafter on its verifier's own completions.

  Args:
    recipe: of `load_recipe`, or its fields by name. `data` says on what.
    workdir: where checkpoints, metrics and the drafter go; a run that is there
      goes on, to the same bits.
    verifier: by default the recipe's is loaded.

  Raises:
    InputError: which names the argument, what it was, what it may be.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.distill({'verifier': 'random:tiny', 'steps': 0})
    Traceback (most recent call last):
    ...
    specdiff_jax.core.errors.InputError: steps is 0, but it has to be at least 1.
  """
  workdir = paths.given(workdir, 'workdir')
  if not workdir:
    raise errors.InputError(
      "workdir is empty; give a folder, or '.' for the one that this runs in."
    )
  with fields.arguments():
    if isinstance(recipe, recipe_lib.Recipe):
      recipe = recipe.flat()  # which `Recipe.change` leaves unchecked
    elif not isinstance(recipe, Mapping):
      raise errors.InputError(
        f'recipe is of type {type(recipe).__name__}, but it has to be what '
        'load_recipe returns, or a dict of fields.'
      )
    recipe = fields.typed(recipe, 'recipe')
    training.check(recipe)
    training.start(recipe)
    if verifier is None:
      verifier = decoding.verifier(recipe, split=training.placement(recipe))
    else:
      checks.verifier(verifier)
      if int8.is_int8(verifier.params):
        raise errors.InputError(
          'verifier has weights of int8, but drafters are trained with weights '
          'that are not rounded; load it without int8=True.'
        )
      # As `decoding.verifier` has it for training.
      params = transformer_layer.parted(verifier.config, verifier.params)
      verifier = dataclasses.replace(verifier, params=params)
    result, path = runs.train(recipe, verifier, workdir)
  return Distilled(
    drafter='' if result.interrupted else path,
    steps=result.steps,
    loss=result.loss,
    tau=result.evaluation.get('tau'),
    figures=runs.figures(result),
  )


def _told(
  verifier: weights.Checkpoint, systems: Sequence[str] | str, prompts: Any
) -> tuple[list[str], list[Any]]:
  """Returns the names of systems and the prompts with their ids, checked."""
  checks.verifier(verifier)
  if isinstance(systems, str):
    systems = [systems]
  names = list(systems) if isinstance(systems, Iterable) else []
  if not names or not all(isinstance(name, str) for name in names):
    raise errors.InputError(
      f"systems is {systems!r}, but it has to be a list such as ['lookup']."
    )
  return names, prompts_lib.named(prompts, verifier.config.vocab_size)
