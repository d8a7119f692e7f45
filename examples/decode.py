"""Decodes a prompt with a drafter, beside plain decoding: the same text, sooner.

  python examples/decode.py
  python examples/decode.py --verifier=quickstart --system=specdiff \
      --prompt="What is the capital of France?"
"""

import argparse
import time

import specdiff_jax as sd


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--verifier', default='random:tiny')
  parser.add_argument('--system', default='lookup')
  parser.add_argument('--drafter')
  parser.add_argument('--prompt', default='one two three one two')
  parser.add_argument('--tokens', type=int, default=16)
  args = parser.parse_args(argv)

  verifier = sd.load_verifier(args.verifier, dtype='float32')
  plain = sd.system('ar', verifier)
  drafted = sd.system(args.system, verifier, drafter=args.drafter)
  for system in (plain, drafted):
    system.generate(args.prompt, max_new_tokens=2)  # compiles
    begin = time.perf_counter()
    out = system.generate(args.prompt, max_new_tokens=args.tokens)
    seconds = time.perf_counter() - begin
    print(
      f'{system.session.name}: {len(out.tokens) / seconds:.1f} tokens/s, '
      f'{out.tau:.2f} tokens per call of the verifier'
    )
  for piece in drafted.stream(args.prompt, max_new_tokens=args.tokens):
    print(piece, end='', flush=True)
  print()


if __name__ == '__main__':
  main()
