"""A system generates: prompts in, completions out, whole or in pieces."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from specdiff_jax.api import checks
from specdiff_jax.api import prompts as prompts_lib
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import recipe as recipe_lib


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
    if isinstance(stop := values.get('stop'), str):
      values['stop'] = (stop,)
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
    made, wanted = engine.max_new_tokens, session.settings.max_new_tokens
    # Few sizes of buffers are few programs.
    stepped = made if wanted <= made else 1 << (wanted - 1).bit_length()
    room = stepped if stepped <= most else wanted
    engine = dataclasses.replace(engine, max_new_tokens=room)
    return dataclasses.replace(session, engine=engine), requests


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
