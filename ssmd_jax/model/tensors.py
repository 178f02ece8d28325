"""How parameters lie in files of PyTorch weights, and how a part of one is read or written."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Tensor(NamedTuple):
    """A tensor of a file and its relation to the parameter that it is, or is a part of.

    A PyTorch `Linear` stores `[outputs, inputs]`. Our kernels are `[*inputs, *outputs]`, with heads and their channels
    as axes of their own. With `num_inputs` 0 the order is the same and only the shape may differ (biases by head).

    Attributes:
        name: in the file.
        shape: in the file.
        num_inputs: leading axes of the parameter that are inputs.
        place: which part of the parameter it is, a slice for each of the leading axes; empty for all of it.
    """

    name: str
    shape: tuple[int, ...]
    num_inputs: int = 0
    place: tuple[slice, ...] = ()


def side_by_side(tensors: Sequence[Tensor], *, axis: int, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """The tensors of one parameter, in this order, each of so many entries along an axis of it."""
    place = lambda end, size: (*[slice(None)] * axis, slice(end - size, end))
    ends = itertools.accumulate(sizes)
    return tuple(one._replace(place=place(end, size)) for one, end, size in zip(tensors, ends, sizes, strict=True))


def read(
    stored: Mapping[str, Any],
    tensors: Sequence[Tensor],
    param_shape: tuple[int, ...],
    index: tuple[slice, ...],
    dtype: np.dtype,
) -> np.ndarray:
    """The part `index` of a parameter; of a kernel no more is read than the rows and columns that hold it.

    Args:
        stored: tensors by name, as arrays or slices of safetensors, kernels `[outputs, inputs]`.
        tensors: those that the parameter consists of.
        param_shape: of the whole parameter.
        index: a slice of step 1 for each axis of the parameter, as shardings give them.
        dtype: of the result. It and what is read of one tensor are in memory at once.
    """
    wanted = _ranges(index, param_shape)
    # In memory as in the files, outputs before inputs: so copies run along rows. Transposing is left to JAX, which is
    # four times faster at it than NumPy.
    inputs, outputs = _split(_sizes(wanted), tensors[0].num_inputs)
    axes = range(len(wanted))
    part = np.empty(outputs + inputs, dtype).transpose(*axes[len(outputs) :], *axes[: len(outputs)])
    for tensor in tensors:
        own = _ranges(tensor.place, param_shape)
        common = [range(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(wanted, own, strict=True)]
        if all(common):
            found = _read_one(stored[tensor.name], tensor, _sizes(own), _within(common, own))
            part[_within(common, wanted)] = found
    return part


def _ranges(index: tuple[slice, ...], shape: tuple[int, ...]) -> list[range]:
    """What a slice takes of each axis; an axis without one is whole."""
    slices = (*index, *[slice(None)] * (len(shape) - len(index)))
    return [range(*one.indices(size)) for one, size in zip(slices, shape, strict=True)]


def _sizes(ranges: Sequence[range]) -> tuple[int, ...]:
    return tuple(map(len, ranges))


def _within(inner: Sequence[range], outer: Sequence[range]) -> tuple[slice, ...]:
    """Slices that take the inner ranges out of an array of the outer ones."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer, strict=True))


def _read_one(stored: Any, tensor: Tensor, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
    """The part `index` of the part of a parameter that one tensor is, which has this shape."""
    if not tensor.num_inputs:
        if tensor.shape == shape:
            return stored[index]
        return np.asarray(stored[:]).reshape(shape)[index]
    inputs, outputs = _split(shape, tensor.num_inputs)
    input_index, output_index = _split(index, tensor.num_inputs)
    row_slice, rows, rest_of_rows = _leading(outputs, output_index)
    column_slice, columns, rest_of_columns = _leading(inputs, input_index)
    part = np.asarray(stored[row_slice, column_slice]).T.reshape(columns + rows)
    return part[rest_of_columns + rest_of_rows]


def to_file(param: np.ndarray, tensor: Tensor) -> np.ndarray:
    """One tensor of a whole parameter, the inverse of `read`."""
    param = param[tensor.place]
    if not tensor.num_inputs:
        return np.ascontiguousarray(param.reshape(tensor.shape))
    inputs, _ = _split(param.shape, tensor.num_inputs)
    return np.ascontiguousarray(param.reshape(math.prod(inputs), -1).T)


def _split(entries: tuple, count: int) -> tuple[tuple, tuple]:
    return tuple(entries[:count]), tuple(entries[count:])


def _leading(shape: tuple[int, ...], index: tuple[slice, ...]) -> tuple[slice, tuple[int, ...], tuple[slice, ...]]:
    """The range of the flattened axes that a slice of the first long one spans, their shape there, and what is left.

    Axes of size one in front are passed over: one half of an MLP's kernel is `[C, 1, F]`.
    """
    lead = next((axis for axis, size in enumerate(shape) if size > 1), 0)
    start, stop, _ = index[lead].indices(shape[lead])
    before, after = shape[:lead], shape[lead + 1 :]
    rest = math.prod(after)
    left = (*[slice(None)] * (lead + 1), *index[lead + 1 :])
    return slice(start * rest, stop * rest), (*before, stop - start, *after), left
