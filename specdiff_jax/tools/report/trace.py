"""One prompt as each system decoded it: text coloured by what proposed it."""

from collections.abc import Mapping, Sequence
import html
import itertools
from typing import Any

from specdiff_jax.tools.report import results as results_lib

# Of Okabe and Ito: orange, and blue that is the fuller the deeper the draft.
# Accepted drafts are underlined too, for whom colours tell nothing.
STYLE = """
.trace { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9;
  margin: .4rem 0 1.2rem; color: var(--ink); }
.trace u, .trace b { font-weight: inherit; padding: .12em 0; }
.trace b { background: rgb(230 159 0 / .38); text-decoration: none; }
.trace u { background: rgb(86 180 233 / calc(.1 + .45 * var(--deep)));
  text-decoration: underline; text-decoration-color: var(--soft);
  text-underline-offset: .2em; }
.trace > span { border-left: 1px solid var(--soft); padding-left: 2px;
  margin-left: 1px; }
.trace i { opacity: .5; font-style: normal; }
.trace i::before { content: "\\21b5"; }
.trace .end::after { content: "\\25a0"; opacity: .5; }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; }
summary { cursor: pointer; }
"""
_HOW = (
  '<p>Results of <code>specdiff bench --trace --out=FILE</code> show here the '
  'text of a prompt, coloured by what proposed each token.</p>'
)


def section(results: results_lib.Results) -> str:
  """Returns HTML: a key, and for each system a text that unfolds.

  That of the fewest calls is unfolded. Without a trace it says how to get one.
  """
  if not results.benches:
    return ''
  parts = ['<h2>What proposed each token</h2>']
  shown = [one for one in results.benches if one.told.get('example')]
  if not shown:
    return parts[0] + _HOW
  traces = [one for bench in shown for one in bench.told['example']]
  deepest = max(piece['depth'] for one in traces for piece in one['trace'])
  parts.append(_key(deepest))
  for bench in shown:
    example = bench.told['example']
    best = min(example, key=_calls)
    name = f'{bench.name}, prompt {example[0]["id"]}'
    parts.append(f'<h3>{html.escape(name)}</h3>')
    for one in example:
      told = f'{one["system"]}: {_calls(one)} calls of the verifier'
      mark = ' open' if one is best else ''
      parts.append(
        f'<details{mark}><summary>{html.escape(told)}</summary>'
        f'<div class="trace" dir="auto">{_text(one["trace"], deepest)}</div>'
        '</details>'
      )
  return ''.join(parts)


def _calls(one: Mapping[str, Any]) -> int:
  """Returns the calls of the verifier, that for the prompt included."""
  return one['trace'][-1]['cycle'] + 1


def _key(deepest: int) -> str:
  told = [_token("the verifier's own token", 0, 1)]
  if deepest:
    told = [
      _token('drafted first', 1, deepest),
      _token(f' … at depth {deepest}', deepest, deepest),
      _token(" the verifier's own", 0, 1),
    ]
  return (
    f'<p class="trace"><span>{"".join(told)}</span></p>'
    '<p>A line stands before what each call of the verifier yielded: drafted '
    'tokens that it accepted, underlined, the deeper in the draft the fuller '
    'their colour; then one of its own. The first call reads the prompt.</p>'
  )


def _text(pieces: Sequence[Mapping[str, Any]], deepest: int) -> str:
  """Returns the pieces, those of a cycle in one element."""
  told = []
  for cycle, some in itertools.groupby(pieces, lambda piece: piece['cycle']):
    call = f'call {cycle + 1}, '
    made = (_token(p['text'], p['depth'], deepest, call) for p in some)
    told.append(f'<span>{"".join(made)}</span>')
  return ''.join(told)


def _token(text: str, depth: int, deepest: int, call: str = '') -> str:
  # The end of a line shows no colour: a sign does. An end token has no text.
  text = html.escape(text).replace('\n', '<i></i>\n')
  mark = '' if text else ' class="end"'
  if depth:
    deep = f'--deep:{depth / deepest:.2f}'
    title = f'{call}drafted at depth {depth}'
    return f'<u{mark} style="{deep}" title="{title}">{text}</u>'
  return f'<b{mark} title="{call}the verifier\'s own">{text}</b>'
