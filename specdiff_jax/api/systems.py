"""A verifier, a system that drafts for it, and their texts."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import os
from typing import Any

from specdiff_jax.api import checks
from specdiff_jax.api import prompts as prompts_lib
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import paths as paths_lib
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.models import int8 as int8_lib
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import drafters
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import options as options_lib
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.recipes import systems


@dataclasses.dataclass(frozen=True)
class Completion:
  """A text, and what decoding it took.

  Attributes:
    text: up to the first stop string.
    tokens: of the text, with the end token or those of the stop string.
    tau: tokens per call of the verifier, the bonus token included.
    accepted: drafted tokens that were accepted per call of the verifier.
    histogram: calls that accepted 0, 1, 2, ... drafted tokens.
    logprobs: log-probabilities of the tokens under the verifier, at
      temperature 1 without top-k and top-p; None unless they were asked for.
    trace: (cycle, depth) of each token: the call of the verifier that yielded
      it (0: prefill) and its depth in that call's draft (0: the verifier's
      own token); None unless it was asked for.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.Completion('Hi', [72, 105], 2.0, 1.0, [0, 1]).text
    'Hi'
  """

  text: str
  tokens: list[int]
  tau: float
  accepted: float
  histogram: list[int]
  logprobs: list[float] | None = None
  trace: list[tuple[int, int]] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class System:
  """A verifier with what drafts for it; `system` makes one.

  Attributes:
    session: requests in, tokens out.
    verifier: the loaded model.
    recipe: sampling, limits and sizes where a call gives none.
  """

  session: session_lib.Session
  verifier: weights.Checkpoint
  recipe: recipe_lib.Recipe

  def generate(
    self,
    prompt: Any,
    *,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    chat: bool | None = None,
    template: Mapping[str, Any] | None = None,
    logprobs: bool = False,
    trace: bool = False,
  ) -> Any:
    """Returns the `Completion` of a prompt, or a list of them for a list.

    The first prompt of each size of `prompt_buckets` leads to a compilation; of
    the arguments only `logprobs`, `trace` and a `max_new_tokens` beyond the
    system's do, the last with buffers of the next power of two.

    What is None is as the system was made.

    Args:
      prompt: a text, a list of messages (dicts of role and content), a list of
        token ids, or a list of such prompts.
      max_new_tokens: tokens after which a completion stops.
      temperature: of sampling; 0 is greedy.
      top_k: samples among the k most likely tokens; 0 switches it off.
      top_p: samples within this probability mass; 1 switches it off.
      seed: the same gives the same texts, whatever drafts.
      stop: strings that end the text, which is cut before them.
      chat: whether a text goes into the chat template; by default if the model
        has one. Messages always do.
      template: arguments of the chat template beside the messages, such as
        {'enable_thinking': False} or {'tools': [...]}.
      logprobs: whether the completion holds those of its tokens, from the pass
        that verifies them.
      trace: whether it says what proposed each token.

    Raises:
      InputError: which names the argument, what it was, what it may be.

    Example:
      >>> import specdiff_jax as sd
      >>> system = sd.system('lookup', sd.load_verifier('random:tiny'))
      >>> out = system.generate('one two one', max_new_tokens=4)
      >>> len(out.tokens), out.tau >= 1
      (4, True)
    """
    checks.flags(logprobs=logprobs, trace=trace)
    session, requests = self._asked(
      'generate', prompt, max_new_tokens=max_new_tokens,
      temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=stop,
      chat=chat, template=template,
    )  # fmt: skip
    session = session.keeping(logprobs=logprobs, trace=trace)
    with fields.arguments():
      found = session.decode(requests, on_tokens=session.watch())
    completions = [_completion(session, one) for one in found]
    return completions[0] if prompts_lib.is_single(prompt) else completions

  def stream(
    self,
    prompt: Any,
    *,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    chat: bool | None = None,
    template: Mapping[str, Any] | None = None,
  ) -> Iterator[str]:
    """Yields the text of one prompt in pieces; see `generate`.

    Example:
      >>> import specdiff_jax as sd
      >>> system = sd.system('lookup', sd.load_verifier('random:tiny'))
      >>> pieces = list(system.stream('one two one', max_new_tokens=4))
      >>> ''.join(pieces) == system.generate('one two one', max_new_tokens=4).text
      True
    """
    if not prompts_lib.is_single(prompt):
      prompts_lib.named(prompt, self.verifier.config.vocab_size)
      raise errors.InputError(
        f'prompt is a list of {len(prompt)} prompts, but a stream is of one; '
        'give one at a time.'
      )
    session, requests = self._asked(
      'stream', prompt, max_new_tokens=max_new_tokens, temperature=temperature,
      top_k=top_k, top_p=top_p, seed=seed, stop=stop, chat=chat,
      template=template,
    )  # fmt: skip
    return session.stream(requests[0])

  def _asked(
    self, where: str, prompt: Any, **changes: Any
  ) -> tuple[session_lib.Session, list[request_lib.Request]]:
    """Returns what decodes a call's prompts, and their requests."""
    values = {n: value for n, value in changes.items() if value is not None}
    if 'stop' in values:
      values['stop'] = _strings(values['stop'])
    named = prompts_lib.named(prompt, self.verifier.config.vocab_size)
    with fields.arguments():
      recipe = fields.typed(self.recipe.flat() | values, where)
      decoding.check(recipe)
      requests = decoding.requests(recipe, self.verifier, named)
      session = decoding.under(self.session, recipe, self.verifier)
    engine, longest = session.engine, max(len(r.prompt) for r in requests)
    most = engine.verifier.max_positions - longest
    # Published models that draft have positions of their own, maybe fewer.
    if drafts := getattr(engine.drafter, 'max_tokens', 0):
      bucket = request_lib.bucket_for(longest, session.buckets)
      most = min(most, drafts - bucket)
    room = _room(engine.max_new_tokens, session.settings.max_new_tokens, most)
    engine = dataclasses.replace(engine, max_new_tokens=room)
    return dataclasses.replace(session, engine=engine), requests


def _room(made: int, wanted: int, most: int) -> int:
  """Returns the tokens that buffers have room for: few sizes, few programs."""
  stepped = made if wanted <= made else 1 << (wanted - 1).bit_length()
  return stepped if stepped <= most else wanted


def _strings(stop: Any) -> Any:
  return (stop,) if isinstance(stop, str) else stop


def _completion(
  session: session_lib.Session, one: request_lib.Completion
) -> Completion:
  text, tokens = session.cut(one)
  histogram = one.accepted.tolist()
  accepted = sum(n * calls for n, calls in enumerate(histogram))
  kept, trace = one.logprobs, one.trace
  return Completion(
    text=text,
    tokens=tokens,
    tau=one.tau,
    accepted=accepted / max(one.cycles, 1),
    histogram=histogram,
    logprobs=None if kept is None else kept[: len(tokens)].tolist(),
    trace=None
    if trace is None
    else [*map(tuple, trace[: len(tokens)].tolist())],
  )


def load_verifier(
  name: str | os.PathLike[str],
  dtype: str = 'bfloat16',
  *,
  adapter: str | os.PathLike[str] = '',
  int8: bool = False,
  cache_dir: str | os.PathLike[str] = 'runs/verifier',
) -> weights.Checkpoint:
  """Loads a verifier: sizes, weights on the devices, tokenizer, fingerprint.

  The weights are as serving wants them: those that meet the same input are one
  (`query_key_value`, `gate_up`). On a TPU `gate` and `up` stay apart, and layers
  are stacked.

  Args:
    name: a directory, a .gguf file, a hub name (org/name), 'quickstart' or
      'random:tiny'.
    dtype: of weights and KV cache, 'float32' or 'bfloat16'.
    adapter: directory of a LoRA adapter, merged into the weights.
    int8: rounds the weights to int8: another verifier then.
    cache_dir: where the quickstart's weights are kept.

  Raises:
    InputError: for whatever is wrong with the files, named with its file.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.load_verifier('random:tiny').config.vocab_size
    320
  """
  checks.flags(int8=int8)
  values = {
    'verifier': name,
    'dtype': dtype,
    'adapter': adapter,
    'int8': 'verifier' if int8 else '',
    'cache_dir': cache_dir,
  }
  with fields.arguments():
    recipe = fields.typed(values, 'load_verifier')
    decoding.check(recipe)
    return decoding.verifier(recipe)


def system(
  name: str,
  verifier: weights.Checkpoint,
  *,
  drafter: Any = None,
  drafter_params: Any = None,
  **options: Any,
) -> System:
  """Returns the system `name` for a verifier.

  Args:
    name: 'ar', 'lookup', 'specdiff', 'specdiff2', 'tree', 'best_first',
      'lattice', 'diffuspec', 'adaptive', 'dflash', 'deer', 'd2sd', 'mixture',
      'sps', 'eagle' or 'early_exit'; a name of your own with a drafter of
      your own.
    verifier: of `load_verifier`.
    drafter: file of `distill`, directory or hub name of a published drafter,
      or 'random'; by default the one that was shipped for this verifier. Or a
      `Drafter`, whose rule is `rule`, a name or an `AcceptanceRule`.
    drafter_params: of a `Drafter`.
    **options: of the system (gamma, drafts, rule, ...), of sampling
      (temperature, max_new_tokens, ...) and of decoding (batch,
      prompt_buckets, ...), as recipes have them.

  Raises:
    InputError: which names the argument, what it was, what it may be.

  Example:
    >>> import specdiff_jax as sd
    >>> verifier = sd.load_verifier('random:tiny', dtype='float32')
    >>> system = sd.system('early_exit', verifier, gamma=4)
    >>> system.session.engine.drafter.max_depth
    4
  """
  if not isinstance(name, str):
    raise checks.wrong('name', name, "a text, such as 'lookup'")
  check_verifier(verifier)
  if drafter is None or isinstance(drafter, (str, os.PathLike, Mapping)):
    if drafter_params is not None:
      raise errors.InputError(
        'drafter_params is given, but it goes with a Drafter object as '
        f'drafter, which is {drafter!r}.'
      )
    if drafter is not None:
      options['drafter'] = drafter
    recipe = told([name], verifier, options)
    with fields.arguments():
      return System(decoding.system(recipe, verifier, name), verifier, recipe)
  checks.drafter(drafter, verifier.config.layers)
  rule = options.pop('rule', 'match')
  if isinstance(rule, str):
    if rule not in systems.RULES:
      raise fields.unknown('There is no rule', rule, systems.RULES)
    rule = systems.RULES[rule]
  checks.rule(rule)
  params = () if drafter_params is None else drafter_params
  recipe = told([], verifier, options)
  with fields.arguments():
    parts = systems.Parts(drafter, params, rule, drafts=1)
    session = decoding.session(recipe, verifier, name, parts)
  return System(session, verifier, recipe)


def told(
  names: Sequence[str],
  verifier: weights.Checkpoint,
  options: Mapping[str, Any],
  **more: Any,
) -> recipe_lib.Recipe:
  """Returns the recipe of systems for a loaded verifier, of keyword arguments.

  Systems that are given no drafter get the shipped one; by default no drafts are
  longer than a drafter makes.
  """
  given = dict(options)
  if 'stop' in given:
    given['stop'] = _strings(given['stop'])
  if given.get('chat') is None:
    given['chat'] = bool(verifier.tokenizer.chat_template)
  paths = paths_lib.each(
    given.pop('drafter', None), lambda path: paths_lib.expand(path, 'drafter')
  )
  if paths is None:
    paths = _shipped(names, verifier)
    more['drafters'] = paths
  elif isinstance(paths, Mapping):
    more['drafters'] = paths if len(names) > 1 else {names[0]: paths}
  else:
    given['drafter'] = paths
  files = paths.values() if isinstance(paths, Mapping) else [paths]
  longest = [drafters.longest(x) for x in files if isinstance(x, str)]
  if 'gamma' not in given and any(longest):
    given['gamma'] = min(options_lib.Gamma.gamma, *filter(None, longest))
  more |= {
    'dtype': verifier.dtype.name,
    'int8': 'verifier' if int8_lib.is_int8(verifier.params) else '',
  }
  return decoding.told(names, given, **more)


def _shipped(
  names: Sequence[str], verifier: weights.Checkpoint
) -> dict[str, str]:
  """Returns the shipped drafter of each system that has a trained one."""
  kinds = {name: options_lib.SYSTEMS.get(name, object) for name in names}
  found = {
    name: drafters.of_zoo(name, verifier)
    for name, kind in kinds.items()
    if issubclass(kind, options_lib.Trained)
  }
  for name in (name for name, path in found.items() if not path):
    raise errors.InputError(
      f'drafter is not given, but the system {name!r} needs one, and none '
      f'was shipped for the verifier {verifier.source} (fingerprint '
      f"{verifier.fingerprint}): give a file of `distill`, 'random', or a "
      'Drafter.'
    )
  return found


def check_verifier(verifier: Any) -> None:
  """Raises InputError unless this is what `load_verifier` returns."""
  if not isinstance(verifier, weights.Checkpoint):
    raise errors.InputError(
      f'verifier is of type {type(verifier).__name__}, but it has to be what '
      "load_verifier returns, such as load_verifier('quickstart')."
    )
