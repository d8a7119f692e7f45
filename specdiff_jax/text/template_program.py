"""Renders chat templates for the process that starts it, within limits.

  python -I template_program.py FOLDER SECONDS

FOLDER is where jinja2 lies, SECONDS what a text may take of the processor. A
template is foreign code, so it runs here, in a process that may use little time
and memory, open few files and write none; and in jinja2's sandbox. It imports
nothing of this package: it starts fast.

On stdin come frames of JSON [template, variables], or [template, null], which
asks what variables it reads; to each a frame goes to stdout: '+' and the text or
that, or '-' and what is wrong. A frame is its length in 8 bytes, then UTF-8.
'.' on stdout says that it is ready.
"""

import datetime
import json
import os
import resource
import signal
import struct
import sys

sys.path.append(sys.argv[1])

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

MEMORY = 512 << 20
MOST = 1 << 20  # characters of a text, which is tokenised without a limit
_LONGEST = 300  # of what an error says
_ASKING = ('defined', 'undefined', 'default', 'd')  # tests and filters


class Generation(jinja2.ext.Extension):
  """The tag that marks what the assistant has written: here it does nothing."""

  tags = {'generation'}

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    call = self.call_method('_as_it_is')
    return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

  def _as_it_is(self, caller):
    return caller()


class Dict:
  """`dict` without the attributes of the type."""

  def __call__(self, *args, **more):
    return dict(*args, **more)

  def fromkeys(self, *args, **more):
    return dict.fromkeys(*args, **more)


class Namespace(jinja2.utils.Namespace):
  """`namespace` that takes no name with an underscore before it."""

  def __init__(*args, **more):  # any name may be that of an attribute
    self, *args = args
    values = dict(*args, **more)
    for name in values:
      _check(name)
    jinja2.utils.Namespace.__init__(self, values)

  def __setitem__(self, name, value):
    _check(name)
    super().__setitem__(name, value)


def _check(name):
  if isinstance(name, str) and name.startswith('_'):
    raise jinja2.exceptions.SecurityError(f'namespace takes no {name!r}')


def environment():
  """Returns the environment that transformers gives to a template."""
  result = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, jinja2.ext.loopcontrols],
  )
  result.filters['tojson'] = _tojson
  result.globals['raise_exception'] = _raise_exception
  result.globals['strftime_now'] = _strftime_now
  result.globals['dict'] = Dict()
  result.globals['namespace'] = Namespace
  return result


def _tojson(
  value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
):
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def _raise_exception(message):
  raise jinja2.TemplateError(message)


def _strftime_now(format):
  return datetime.datetime.now().strftime(format)


def limit():
  """Has the operating system bound what this process can take."""
  for name, most in (
    ('RLIMIT_AS', MEMORY),
    ('RLIMIT_FSIZE', 0),
    ('RLIMIT_NOFILE', 16),
    ('RLIMIT_CORE', 0),
  ):
    try:  # not every system has, and lets set, each of them
      resource.setrlimit(getattr(resource, name), (most, most))
    except (AttributeError, OSError, ValueError):
      pass


def reads(template):
  """Returns the variables that a template reads, as a JSON object.

  To each whether it is a likely argument: not one that the template sets
  itself, unless it asks before whether it was given.
  """
  tree = environment().parse(template)
  names = tree.find_all(jinja2.nodes.Name)
  own = {one.name for one in names if one.ctx == 'store'}
  asked = {
    one.node.name
    for one in tree.find_all((jinja2.nodes.Test, jinja2.nodes.Filter))
    if one.name in _ASKING and isinstance(one.node, jinja2.nodes.Name)
  }
  found = sorted(jinja2.meta.find_undeclared_variables(tree))
  return json.dumps({name: name not in own - asked for name in found})


def render(compiled, variables):
  """Returns what the template makes of the variables."""
  parts, size = [], 0
  for part in compiled.generate(**variables):
    parts.append(part)
    size += len(part)
    if size > MOST:
      raise ValueError(f'it writes more than {MOST >> 20} MiB')
  return ''.join(parts)


def reason(error):
  text = str(error) or type(error).__name__
  return text if len(text) <= _LONGEST else text[:_LONGEST] + '...'


def main():
  source, sink = os.fdopen(0, 'rb'), os.fdopen(1, 'wb')
  signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends it inside of C, too
  limit()
  last, compiled = None, None
  sink.write(b'.')
  sink.flush()
  while head := source.read(8):
    template, variables = json.loads(source.read(*struct.unpack('<Q', head)))
    signal.setitimer(signal.ITIMER_PROF, float(sys.argv[2]))
    try:
      if variables is None:
        sign, text = b'+', reads(template)
      else:
        if template != last:
          compiled, last = environment().from_string(template), template
        sign, text = b'+', render(compiled, variables)
    except MemoryError:
      sign, text = b'-', f'it needs more than {MEMORY >> 20} MiB of memory'
    except Exception as error:  # it may raise anything
      sign, text = b'-', reason(error)
    data = text.encode('utf-8', 'surrogatepass')
    signal.setitimer(signal.ITIMER_PROF, 0)
    sink.write(struct.pack('<Q', 1 + len(data)) + sign + data)
    sink.flush()


if __name__ == '__main__':
  main()
