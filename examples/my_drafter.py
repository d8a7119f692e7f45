"""A drafter of one's own: it proposes the token that followed last time.

It remembers, for every row, which token came after each token of its text, and
drafts a chain of those. What it proposes cannot change the text, only the
speed; `sd.testing.check_drafter` proves that it keeps to the protocol.

  python examples/my_drafter.py
  python examples/my_drafter.py --verifier=quickstart
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp

import specdiff_jax as sd


@dataclasses.dataclass(frozen=True)
class Followers:
  """Drafts `gamma` tokens, each the one that followed the last one before."""

  gamma: int = 4

  proposal = 'deterministic'  # nothing is drawn
  chain = True  # slot i is the child of slot i - 1
  features = ()  # it reads no layers of the verifier

  @property
  def buckets(self):
    return (self.gamma + 1,)  # the last committed token is slot 0

  @property
  def max_depth(self):
    return self.gamma

  def init(self, params, context):
    return ()  # all that it needs is in the text

  def draft(self, params, state, context, sampling, noise, slots):
    def followers(tokens, length):  # of one row
      index = jnp.arange(tokens.size - 1)
      seen = jnp.where(index < length - 1, tokens[:-1], 0)
      table = jnp.full(context.verifier.vocab_size, -1)
      return table.at[seen].max(jnp.where(index < length - 1, tokens[1:], -1))

    table = jax.vmap(followers)(context.tokens, context.length)  # [B, V]
    rows, token = jnp.arange(context.length.size), [context.last]
    for _ in range(slots - 1):
      token.append(jnp.maximum(table[rows, token[-1]], 0))
    index = jnp.broadcast_to(jnp.arange(slots), (rows.size, slots))
    tree = sd.DraftTree(
      token=jnp.stack(token, axis=1).astype(jnp.int32),
      parent=jnp.maximum(index - 1, 0),
      depth=index,
      valid=jnp.ones_like(index, bool),
    )
    return tree, state

  def observe(self, params, state, context, verdict, features, slots):
    return state


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--verifier', default='random:tiny')
  parser.add_argument('--prompt', default='one two three one two')
  args = parser.parse_args(argv)

  print('Checking the contract (a minute of compilation) ...', flush=True)
  sd.testing.check_drafter(Followers())
  print('Followers keeps the contract.')
  verifier = sd.load_verifier(args.verifier, dtype='float32')
  system = sd.system('followers', verifier, drafter=Followers())
  out = system.generate(args.prompt, max_new_tokens=16)
  print(f'{out.text!r}\n{out.tau:.2f} tokens per call of the verifier')


if __name__ == '__main__':
  main()
