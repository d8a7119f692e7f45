"""A report as one HTML page that needs nothing else, not even a network."""

import base64
import html
import os
import tempfile
from typing import Any

from specdiff_jax.core import files
from specdiff_jax.tools.bench import metrics
from specdiff_jax.tools.report import figures as figures_lib
from specdiff_jax.tools.report import results as results_lib
from specdiff_jax.tools.report import trace

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --page: #fff; --line: #d9d9de;
  --soft: #6a6a72; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf0; --page: #161618; --line: #3a3a40; --soft: #a0a0a8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem;
  font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--page); }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .3rem; }
p, figcaption, dd { color: var(--soft); margin: 0 0 .8rem; max-width: 46rem; }
p.first { color: var(--ink); font-size: 1.05rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
tr.best td { font-weight: 600; }
figure { margin: 0; }
figure .wide img { max-width: 100%; height: auto;
  display: block; }
.no { color: #d55e00; font-weight: 600; }
"""


def write(results: results_lib.Results, path: str, figures: str = '') -> None:
  """Writes a report.

  Args:
    results: what it shows.
    path: of the page.
    figures: a folder for each figure as .png and .svg too; '' for none.
  """
  drawn = []
  for one in figures_lib.of(results):
    for ending in ('.png', '.svg') if figures else ():
      one.save(os.path.join(figures, one.name + ending))
    drawn.append((one, _svg(one)))
  with files.whole(path) as file:
    file.write(_page(results, drawn).encode())


def _svg(figure: figures_lib.Figure) -> bytes:
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'figure.svg')
    figure.save(path)
    with open(path, 'rb') as file:
      return file.read()


def _page(results, drawn) -> str:
  benches = results.benches
  title = 'Speculative decoding with diffusion drafters'
  parts = [
    '<!doctype html><html lang="en"><head><meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    f'<title>{title}</title><style>{_STYLE}{trace.STYLE}</style></head>',
    f'<body><main><h1>{title}</h1>',
  ]
  if benches:
    parts.append(f'<p class="first">{_headline(results)}</p>')
  before = ''
  for bench in benches:
    facts = _facts(bench)  # where they are not those of the one before
    parts.append(
      f'<h2>{html.escape(bench.name)}</h2>{facts * (facts != before)}'
    )
    parts.append(_table(bench))
    before = facts
  parts.append(trace.section(results))
  for figure, svg in drawn:
    data = base64.b64encode(svg).decode()
    least = min(5 * figure.wide, 42)  # narrower, letters were too small
    parts.append(
      f'<h2>{html.escape(figure.title)}</h2><figure>'
      f'<figcaption>{html.escape(figure.caption)}</figcaption>'
      f'<div class="wide"><img alt="{html.escape(figure.title)}" '
      f'style="min-width:{least:.0f}rem" '
      f'src="data:image/svg+xml;base64,{data}"></div></figure>'
    )
  return ''.join([*parts, '</main></body></html>\n'])


def _best(bench: results_lib.Bench) -> Any:
  return max(bench.systems, key=lambda row: row['speedup'])


def _headline(results) -> str:
  """Returns what a reader should know who reads one line."""
  told = [
    f'{html.escape(bench.name)} {_best(bench)["speedup"]:.2f}&times; '
    f'({html.escape(_best(bench)["system"])})'
    for bench in results.benches
  ]
  wrong = [
    row['system']
    for bench in results.benches
    for row in bench.systems
    if _wrong(row)
  ]
  sure = (
    f'<span class="no">Not exact: {html.escape(", ".join(wrong))}.</span>'
    if wrong
    else "Every output that has to equal plain decoding's does, up to rounding."
  )
  made_up = ''
  if any('simulated_acceptance' in one.told for one in results.benches):
    made_up = '<span class="no">Simulated acceptance: tau is made up.</span> '
  return f'{made_up}Fastest over plain decoding: {", ".join(told)}. {sure}'


def _facts(bench: results_lib.Bench) -> str:
  told = bench.told
  rounded = ', weights of the verifier rounded to int8' * bench.int8
  facts = (
    f'{told.get("verifier")}, {told.get("dtype")}{rounded}, on '
    f'{told.get("device")}; {_rounds(told.get("rounds"))}.'
  )
  return f'<p>{html.escape(facts)}</p>'


def _rounds(count: Any) -> str:
  return 'one round' if count == 1 else f'median of {count} interleaved rounds'


def _fastest(row) -> str:
  """Returns the speed-up over the fastest plain decoding, with its interval."""
  if (speed := row.get('speedup_over_fastest_ar')) is None:
    return ''
  low_high = row.get('interval')
  spread = ' ({:.2f}&ndash;{:.2f})'.format(*low_high) if low_high else ''
  return f'{speed:.2f}{spread}'


def _table(bench: results_lib.Bench) -> str:
  names = ['system', 'tokens/s', 'speed-up', 'over fastest AR', 'tau']
  names += ['break-even tau', 'exact']
  graded = any('correct' in row for row in bench.systems)
  names += ['correct'] * graded
  best, lines = _best(bench), []
  for row in bench.systems:
    even = row.get('break_even_tau')
    cells = (
      html.escape(row['system']),
      f'{row["tokens_per_s"]:.1f}',
      f'{row["speedup"]:.2f}',
      _fastest(row),
      f'{row["tau"]:.2f}',
      f'{even:.2f}' if even else '',
      _exact(row),
      *(
        [f'{row["correct"]:.1%}' if 'correct' in row else ''] if graded else []
      ),
    )
    mark = ' class="best"' if row is best else ''
    lines.append(f'<tr{mark}>{"".join(f"<td>{c}</td>" for c in cells)}</tr>')
  head = ''.join(f'<th>{name}</th>' for name in names)
  some = bench.systems[0]
  count = f'{some.get("prompts", "?")} prompts'
  heat = f'temperature {bench.told.get("temperature", 0):g}'
  made_up = bench.told.get('simulated_acceptance')
  if made_up is not None:
    heat += f'; <strong>simulated acceptance, rate {made_up:g}</strong>'
  return (
    f'<p>{count}, {heat}</p><div class="wide"><table><thead><tr>{head}</tr>'
    f'</thead><tbody>{"".join(lines)}</tbody></table></div>'
  )


def _wrong(row) -> int:
  """Returns how many outputs differ where rounding does not explain it."""
  return metrics.wrong(
    row['exact'], row.get('mismatched_rows', 1), row.get('excused_rows', 0)
  )


def _exact(row) -> str:
  if row['exact'] is None:
    return 'in distribution'
  if row['exact']:
    return 'yes'
  if wrong := _wrong(row):
    return f'<span class="no">NO ({wrong} prompts)</span>'
  ties = row['excused_rows']
  return f'{ties} near-tie{"s" * (ties != 1)}'
