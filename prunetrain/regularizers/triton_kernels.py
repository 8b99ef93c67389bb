"""Triton kernels over all layers of a group lasso at once; `fused_layers.py` describes their tables. Importing this imports Triton.

All sums are added in one order, so that equal weights give equal bits in every process. Loops are `while` loops, because the interpreter of
Triton 3.6 does not know `range` with an end that was read from memory.
"""

import triton
import triton.language as tl

ADDRESS = tl.constexpr(0)  # fields of the table of layers
FILTER_SIZE = tl.constexpr(1)
NUM_INPUTS = tl.constexpr(2)
INPUT_STEP = tl.constexpr(3)
FILTER_SUMS = tl.constexpr(4)
INPUT_SUMS = tl.constexpr(5)
NUM_FILTERS = tl.constexpr(6)
FIELDS = tl.constexpr(7)


@triton.jit
def sum_filters(layers, rows, sums, BLOCK: tl.constexpr):
    """Write the sum of squares of one filter per program, BLOCK weights at a time."""
    program = tl.program_id(0)
    layer = layers + tl.load(rows + 2 * program) * FIELDS
    row = tl.load(rows + 2 * program + 1).to(tl.int64)
    filters = tl.load(layer + FILTER_SUMS)
    if filters >= 0:
        size = tl.load(layer + FILTER_SIZE)
        weight = tl.load(layer + ADDRESS).to(tl.pointer_type(tl.float32)) + row * size
        total = tl.zeros([BLOCK], tl.float32)
        start = 0
        while start < size:
            places = start + tl.arange(0, BLOCK)
            values = tl.load(weight + places, mask=places < size, other=0.0)
            total += values * values
            start += BLOCK
        tl.store(sums + filters + row, tl.sum(total, 0))


@triton.jit
def sum_inputs(layers, columns, sums, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write the sums of squares of COLUMNS input slices per program, ROWS weights of each at a time."""
    program = tl.program_id(0)
    layer = layers + tl.load(columns + 2 * program) * FIELDS
    first = tl.load(columns + 2 * program + 1).to(tl.int64)
    weight = tl.load(layer + ADDRESS).to(tl.pointer_type(tl.float32))
    size, count, step = tl.load(layer + FILTER_SIZE), tl.load(layer + NUM_INPUTS), tl.load(layer + INPUT_STEP)
    inputs, height = tl.load(layer + INPUT_SUMS), tl.load(layer + NUM_FILTERS)
    window = size // count
    own = first + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    start = 0
    while start < height * window:
        weights = start + tl.arange(0, ROWS)
        in_window = (weights % window) * tl.where(step == 1, count, 1)
        places = (weights // window * size + in_window)[:, None] + (own * step)[None, :]
        known = (weights < height * window)[:, None] & (own < count)[None, :]
        values = tl.load(weight + places, mask=known, other=0.0)
        total += values * values
        start += ROWS
    tl.store(sums + inputs + own, tl.sum(total, 0), mask=own < count)


@triton.jit
def scale_filters(layers, rows, numbers, gradients, IN_PLACE: tl.constexpr, BLOCK: tl.constexpr):  # noqa: PLR0917
    """Scale one filter per program, BLOCK weights at a time.

    IN_PLACE: multiply it by its number and those of its input slices, which are 1 where a layer has none. Otherwise: add its product with
    the sum of these numbers to its gradient, whose address is in `gradients` by layer, 0 if there is none.
    """
    program = tl.program_id(0)
    number = tl.load(rows + 2 * program)
    layer = layers + number * FIELDS
    row = tl.load(rows + 2 * program + 1).to(tl.int64)
    size, count, step = tl.load(layer + FILTER_SIZE), tl.load(layer + NUM_INPUTS), tl.load(layer + INPUT_STEP)
    filters, inputs = tl.load(layer + FILTER_SUMS), tl.load(layer + INPUT_SUMS)
    address = tl.load(layer + ADDRESS)
    result_address = address if IN_PLACE else tl.load(gradients + number)
    if result_address != 0:
        weight = address.to(tl.pointer_type(tl.float32)) + row * size
        result = result_address.to(tl.pointer_type(tl.float32)) + row * size
        own = 1.0 if IN_PLACE else 0.0
        if filters >= 0:
            own = tl.load(numbers + filters + row)
        start = 0
        while start < size:
            places = start + tl.arange(0, BLOCK)
            known = places < size
            factors = tl.zeros([BLOCK], tl.float32) + own
            if inputs >= 0:
                others = tl.load(numbers + inputs + places // step % count, mask=known, other=0.0)
                factors = factors * others if IN_PLACE else factors + others
            products = tl.load(weight + places, mask=known, other=0.0) * factors
            if not IN_PLACE:
                products += tl.load(result + places, mask=known, other=0.0)
            tl.store(result + places, products, mask=known)
            start += BLOCK
