"""What a family of trained drafters is: the nouns of `registry`.

A family is one folder. Its module `family` says here what other rooms ask of
it: sizes and options of the networks that are trained, the drafter that they
make, published forms, and names of parameters for sharding and int8.
"""

from collections.abc import Callable, Mapping
import dataclasses
import importlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.checkpoints import sources
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import protocols
from specdiff_jax.drafters import denoising as denoising_lib
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import marginals
from specdiff_jax.drafters import scores
from specdiff_jax.drafters import told as told_lib
from specdiff_jax.models import head as head_lib
from specdiff_jax.parallel import rules


@dataclasses.dataclass(frozen=True)
class Network:
  """A network that is trained here and lies in a file of ours.

  Attributes:
    sizes: (options, gamma, sizes of the verifier) -> sizes of a new one;
      InputError, which begins with the argument's name, where they do not go
      together.
    config: class of its sizes, with the kind that its files have.
    initial: (config, key) -> random params.
    from_verifier: (config, key, verifier's params) -> first params of a run.
    training: name of the module with its training forward, `score_of(config)`,
      which may have `whole_elbo` too: imported only where there is training.
    remat: `score_of` takes `remat`, which computes layers again.
  """

  sizes: Callable[..., drafter_file.Config]
  config: type[drafter_file.Config]
  initial: Callable[..., Any]
  from_verifier: Callable[..., Any]
  training: str
  remat: bool = False

  def score(self, config: drafter_file.Config, **more: Any) -> scores.Score:
    """Returns what windows predict, of a network of these sizes."""
    return importlib.import_module(self.training).score_of(config, **more)

  @property
  def whole_elbo(self) -> Callable[..., Any] | None:
    """The ELBO of whole texts, where the family has one."""
    module = importlib.import_module(self.training)
    return getattr(module, 'whole_elbo', None)


@dataclasses.dataclass(frozen=True)
class Trained:
  """A network that was loaded, or drawn at random, with its draft vocabulary.

  Attributes:
    config: its sizes.
    params: its parameters.
    vocab: [vocab] ids that it can draft.
    source: where it is from, for messages.
  """

  config: Any
  params: Any
  vocab: np.ndarray
  source: str


@dataclasses.dataclass(frozen=True)
class Serving:
  """How a drafter is to draft.

  Attributes:
    gamma: tokens of a draft.
    strategy: what is verified of the marginals.
    denoising: how a window is filled.
    context_window: last verified tokens that a window sees; 0 for all.
    told: what the user says of a published drafter.
  """

  gamma: int
  strategy: marginals.Strategy
  denoising: denoising_lib.Denoising = denoising_lib.Denoising()
  context_window: int = 0
  told: told_lib.Told = told_lib.Told()

  @property
  def window(self) -> dict[str, Any]:
    """What every drafter that fills windows is constructed with."""
    return {
      'gamma': self.gamma,
      'strategy': self.strategy,
      'denoising': self.denoising,
    }


Made = tuple[protocols.Drafter, Any]  # a drafter, and its params


@dataclasses.dataclass(frozen=True)
class Family:
  """What the drafters of one architecture have in common.

  Attributes:
    networks: those that are trained here, by part; none where all drafters
      are published ones.
    drafter: (networks by part, verifier, serving) -> drafter and params.
    readers: readers of published config.json, by the name of their form.
    architectures: what config.json calls a form -> its name.
    published: (folder, what its reader said, params, verifier, serving) ->
      drafter and params.
    shapes: names of drafters that are known by their shape alone.
    shape: (one of these, verifier, serving) -> drafter and params of zeros.
    describe: what is told of a published drafter, by `inspect`.
    source: (path of a file of ours, path of a head's or '') -> what is written
      in the forms of others.
    heads: whether its drafters take `heads`: their W tokens are those of the
      file, and the verifier's head reads their states.
    by_output: names of matrices [out, in] of dense layers that a mesh splits
      by their outputs, besides those of the verifier's networks.
    by_input: names of those that it splits by their inputs.
    sharding: rules of other parameters.
  """

  networks: Mapping[str, Network] = dataclasses.field(default_factory=dict)
  drafter: Callable[..., Made] | None = None
  readers: Mapping[str, Callable[..., Any]] = dataclasses.field(
    default_factory=dict
  )
  architectures: Mapping[str, str] = dataclasses.field(default_factory=dict)
  published: Callable[..., Made] | None = None
  shapes: tuple[str, ...] = ()
  shape: Callable[..., Made] | None = None
  describe: Callable[..., Mapping[str, Any]] | None = None
  source: Callable[[str, str], sources.Source] | None = None
  heads: bool = False
  by_output: tuple[str, ...] = ()
  by_input: tuple[str, ...] = ()
  sharding: tuple[rules.Rule, ...] = ()


@flax.struct.dataclass
class DrafterParams:
  """What drafting reads besides the verifier.

  `vocab` and `head` are None where all tokens can be drafted, with the
  verifier's whole head.
  """

  network: Any  # of the drafter's network
  # [vocab] int32 ids that can be drafted, most frequent first
  vocab: Any = None
  head: Any = None  # [vocab, E] their rows of the verifier's head
  edges: Any = None  # of a lattice's source


def cast(one: Trained, checkpoint: weights.Checkpoint) -> Any:
  """Returns a network's params in the verifier's dtype."""
  return jax.tree.map(lambda x: jnp.asarray(x, checkpoint.dtype), one.params)


def with_head(one: Trained, checkpoint: weights.Checkpoint) -> DrafterParams:
  """Returns params in the verifier's dtype, with its rows of the head."""
  head = head_lib.rows(checkpoint.params)  # or int8 with scales, row by row
  vocab = jnp.asarray(one.vocab, jnp.int32)
  return DrafterParams(
    network=cast(one, checkpoint),
    vocab=vocab,
    head=jax.tree.map(lambda x: jnp.take(x, vocab, axis=0), head),
  )


def same_verifier(
  drafter: str, sizes: Any, checkpoint: weights.Checkpoint
) -> None:
  """Raises InputError where a published drafter has another verifier's sizes."""
  for name in ('width', 'vocab_size'):
    theirs = getattr(sizes.network, name)
    wanted = getattr(checkpoint.config, name)
    if theirs != wanted:
      raise errors.InputError(
        f'{drafter} was made for a verifier with {name} {theirs}, but that of '
        f'{checkpoint.source} is {wanted}. Take the drafter of this verifier.'
      )


def read_layers(
  given: tuple[int, ...], usual: tuple[int, ...], layers: int
) -> tuple[int, ...]:
  """Returns the verifier's layers that a new network reads, given or usual."""
  features = tuple(given) or usual
  if not all(0 <= layer < layers for layer in features):
    raise errors.InputError(
      f'features is {features}, but the layers of the verifier are '
      f'0 to {layers - 1}.'
    )
  return features


def no_context_window(serving: Serving, drafter: str, why: str) -> None:
  """Raises InputError where a context window would gain nothing."""
  if serving.context_window:
    raise errors.InputError(
      f'context_window is {serving.context_window}, but with {drafter} '
      f'nothing is gained by it: {why}. Give 0.'
    )
