"""How a parameter lies in a file of PyTorch weights, and how a part of it is read or written."""

import math
from typing import Any, NamedTuple

import numpy as np


class Tensor(NamedTuple):
    """A tensor of a file and its relation to a parameter.

    A PyTorch `Linear` stores `[outputs, inputs]`. Our kernels are `[*inputs, *outputs]`, with heads and their channels
    as axes of their own. With `num_inputs` 0 the order is the same and only the shape may differ (biases by head).

    Attributes:
        name: in the file.
        shape: in the file.
        num_inputs: leading axes of the parameter that are inputs.
    """

    name: str
    shape: tuple[int, ...]
    num_inputs: int = 0


def read(stored: Any, tensor: Tensor, param_shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
    """The part `index` of a parameter; of a kernel no more is read than the rows and columns that hold it.

    Args:
        stored: the tensor as an array or a slice of safetensors, `[outputs, inputs]`.
        tensor: its description.
        param_shape: of the whole parameter.
        index: a slice of step 1 for each axis of the parameter, as shardings give them.
    """
    if not tensor.num_inputs:
        if tensor.shape == param_shape:
            return stored[index]
        return np.asarray(stored[:]).reshape(param_shape)[index]
    inputs, outputs = _split(param_shape, tensor.num_inputs)
    input_index, output_index = _split(index, tensor.num_inputs)
    (row_slice, rows), (column_slice, columns) = _leading(outputs, output_index), _leading(inputs, input_index)
    part = np.asarray(stored[row_slice, column_slice]).T.reshape(columns + rows)
    # The leading axis of inputs and of outputs is cut already.
    rest = lambda one: (slice(None), *one[1:])
    return part[rest(input_index) + rest(output_index)]


def to_file(param: np.ndarray, tensor: Tensor) -> np.ndarray:
    """A whole parameter as its tensor, the inverse of `read`."""
    if not tensor.num_inputs:
        return np.ascontiguousarray(param.reshape(tensor.shape))
    inputs, _ = _split(param.shape, tensor.num_inputs)
    return np.ascontiguousarray(param.reshape(math.prod(inputs), -1).T)


def _split(entries: tuple, count: int) -> tuple[tuple, tuple]:
    return tuple(entries[:count]), tuple(entries[count:])


def _leading(shape: tuple[int, ...], index: tuple[slice, ...]) -> tuple[slice, tuple[int, ...]]:
    """The range of the flattened axes that the leading axis' slice spans, and their shape within it."""
    start, stop, _ = index[0].indices(shape[0])
    rest = math.prod(shape[1:])
    return slice(start * rest, stop * rest), (stop - start, *shape[1:])
