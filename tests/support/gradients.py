"""Finite differences, for the tests of losses."""

import jax
import jax.numpy as jnp
import numpy as np


def finite_differences(function, x, h=1e-6):
  """Returns the derivative [..., *x.shape] of a function at x; wants float64.

  The function gives a scalar, or an array [...] of them.
  """
  function = jax.jit(function)
  columns = []
  for index in np.ndindex(x.shape):
    step = np.zeros_like(x)
    step[index] = h
    ends = [np.asarray(function(jnp.asarray(x + s * step))) for s in (1, -1)]
    columns.append((ends[0] - ends[1]) / (2 * h))
  columns = np.stack(columns, axis=-1)
  return columns.reshape(columns.shape[:-1] + x.shape)


def distance(gradient, expected):
  """Returns the error of a gradient, relative to the expected norm."""
  gradient = np.asarray(gradient)
  return np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
