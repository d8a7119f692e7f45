"""What griffe asks while it reads docstrings."""

import griffe


class Examples(griffe.Extension):
  """Takes the section `Example:` of our docstrings for one of examples."""

  def on_object(self, *, obj, **_):
    if obj.docstring:
      value = obj.docstring.value.replace('\nExample:\n', '\nExamples:\n')
      obj.docstring.value = value
