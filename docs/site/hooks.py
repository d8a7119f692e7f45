"""What mkdocs asks while it builds: figures that lie beside their recipes."""

import pathlib

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# As pages link to them, so that they show in the repository as well.
FIGURES = ('configs/ablations/losses_smollm2.png',)


def on_files(files, config):
  """Adds the figures to the site."""
  for figure in FIGURES:
    name = pathlib.PurePosixPath(figure).name
    path = str(ROOT / figure)
    files.append(File.generated(config, name, abs_src_path=path))
  return files


def on_page_markdown(markdown, **_):
  """Points links out of docs/ at where the figures are in the site."""
  for figure in FIGURES:
    name = pathlib.PurePosixPath(figure).name
    markdown = markdown.replace(f'](../{figure})', f']({name})')
  return markdown
