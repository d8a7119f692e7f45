"""Prompts of several turns, as prompts of one reply each."""

from collections.abc import Sequence
import dataclasses

from specdiff_jax.checkpoints import weights
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import recipe as recipe_lib


def expanded(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  prompts: Sequence[prompts_lib.Prompt],
  plain: session_lib.Session,
) -> list[prompts_lib.Prompt]:
  """Returns the prompts with each further turn as a prompt of its own.

  A turn follows what plain decoding replied to those before it. Every system
  says the same (or draws from the same distribution), so that all of them can
  decode all turns in any order, and are compared on the same text.

  Args:
    recipe: with `chat`; without a template there is no second turn.
    checkpoint: the verifier.
    prompts: those with `turns` are expanded.
    plain: plain decoding.
  """
  found = list(prompts)
  if not recipe.sampling.chat:
    return found
  last = [one for one in prompts if len(one.about.get('turns', ())) > 1]
  turn = 1
  while last:
    requests = decoding.requests(recipe, checkpoint, last)
    plain.warm_up(requests)
    replies = plain.decode(requests)
    after = [
      _after(one, plain.cut(reply)[0], turn)
      for one, reply in zip(last, replies, strict=True)
    ]
    found += after
    turn += 1
    last = [one for one in after if len(one.about['turns']) > turn]
  return found


def _after(
  prompt: prompts_lib.Prompt, reply: str, turn: int
) -> prompts_lib.Prompt:
  """Returns the prompt of the next turn, after a reply to this one."""
  chat = prompt.text
  if isinstance(chat, str):
    chat = [{'role': 'user', 'content': chat}]
  turns = prompt.about['turns']
  return dataclasses.replace(
    prompt,
    id=f'{prompt.id.removesuffix(f"/turn-{turn}")}/turn-{turn + 1}',
    text=[
      *chat,
      {'role': 'assistant', 'content': reply},
      {'role': 'user', 'content': turns[turn]},
    ],
    # What is right is said of the first reply alone.
    about={'task': prompt.about.get('task', ''), 'turns': turns},
  )
