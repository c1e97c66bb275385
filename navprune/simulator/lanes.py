"""Eight numbers that compiled code handles at once.

numba's own vectorisation of loops depends on what it can prove about arrays, so kernels that rely on it say what they
mean: a value of these types is a vector of LLVM's, which becomes the vector instructions of the machine at hand (AVX,
SSE, NEON). +, -, *, / and comparisons work lane by lane; a single number beside lanes counts for every lane.
Additions and multiplications are never fused.

    F32, F64: eight floats. I32: eight integers. BOOL: eight truth values, combined by & and |.
"""

import operator
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import lower_cast, models, register_model
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from navprune.kernels import intrinsic

WIDTH = 8


class Lanes(types.Type):
    """The type of WIDTH numbers."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")

    @property
    def key(self) -> Any:
        """What tells such types apart."""
        return self.dtype


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Any) -> None:
        super().__init__(manager, lanes, _vector(lanes.dtype))


F32, F64, I32, BOOL = (Lanes(each) for each in (types.float32, types.float64, types.int32, types.boolean))
_ELEMENTS = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int32: ir.IntType(32),
    types.boolean: ir.IntType(1),
}


def _vector(dtype: Any) -> Any:
    return ir.VectorType(_ELEMENTS[dtype], WIDTH)


def _spread(builder: Any, value: Any, vector: Any) -> Any:
    """A vector of one value."""
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


@lower_cast(types.Number, Lanes)
def _cast_number(context: Any, builder: Any, from_type: Any, to_type: Any, value: Any) -> Any:
    return _spread(builder, context.cast(builder, value, from_type, to_type.dtype), _vector(to_type.dtype))


def _operator(function: Any, emit: Any, result: Any = None) -> Any:
    """Teach numba a binary operator between lanes, or lanes and a number."""

    @infer_global(function)
    class Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            lanes = [each for each in args if isinstance(each, Lanes)]
            others = [each for each in args if not isinstance(each, Lanes)]
            if len(args) == 2 and lanes and len(set(lanes)) == 1 and all(isinstance(o, types.Number) for o in others):
                return signature(result or lanes[0], lanes[0], lanes[0])

    @lower_builtin(function, Lanes, Lanes)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, sig.args[0].dtype, *args)


def _arithmetic(name: Any) -> Any:
    def emit(builder: Any, dtype: Any, a: Any, b: Any) -> Any:
        return getattr(builder, f"f{name}" if isinstance(dtype, types.Float) else name)(a, b)

    return emit


def _comparison(sign: Any) -> Any:
    def emit(builder: Any, dtype: Any, a: Any, b: Any) -> Any:
        compare = builder.fcmp_ordered if isinstance(dtype, types.Float) else builder.icmp_signed
        return compare(sign, a, b)

    return emit


for _function, _name in ((operator.add, "add"), (operator.sub, "sub"), (operator.mul, "mul")):
    _operator(_function, _arithmetic(_name))
_operator(operator.truediv, _arithmetic("div"))
for _function, _sign in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
):
    _operator(_function, _comparison(_sign), BOOL)
_operator(operator.and_, lambda builder, dtype, a, b: builder.and_(a, b))
_operator(operator.or_, lambda builder, dtype, a, b: builder.or_(a, b))


@infer_global(operator.neg)
class _Negation(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if isinstance(args[0], Lanes):
            return signature(args[0], args[0])


@lower_builtin(operator.neg, Lanes)
def _negate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fneg(args[0])


@intrinsic
def minimum(typing: Any, a: Any, b: Any) -> Any:
    """The lesser of each pair."""
    return a(a, a), lambda context, builder, sig, args: builder.select(builder.fcmp_ordered("<", *args), *args)


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """The greater of each pair."""
    return a(a, a), lambda context, builder, sig, args: builder.select(builder.fcmp_ordered(">", *args), *args)


@intrinsic
def choose(typing: Any, which: Any, a: Any, b: Any) -> Any:
    """Lanes of a where which holds, of b elsewhere."""
    return a(which, a, a), lambda context, builder, sig, args: builder.select(*args)


def _unary(name: Any) -> Any:
    @intrinsic
    def function(typing: Any, a: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            vector = _vector(a.dtype)
            suffix = "f32" if a.dtype == types.float32 else "f64"
            declared = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector]), f"llvm.{name}.v{WIDTH}{suffix}"
            )
            return builder.call(declared, args)

        return a(a), emit

    return function


floor, ceil, absolute, root = (_unary(name) for name in ("floor", "ceil", "fabs", "sqrt"))


def _swapped(distance: Any) -> Any:
    """A function that exchanges the lanes that lie as far apart, a power of two."""

    @intrinsic
    def function(typing: Any, a: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            places = [lane ^ distance for lane in range(WIDTH)]
            indices = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), places)
            return builder.shuffle_vector(args[0], args[0], indices)

        return a(a), emit

    return function


swapped_1, swapped_2, swapped_4 = _swapped(1), _swapped(2), _swapped(4)


@intrinsic
def to_f64(typing: Any, a: Any) -> Any:
    """Float64 lanes of float32 ones."""
    return F64(F32), lambda context, builder, sig, args: builder.fpext(args[0], _vector(types.float64))


@intrinsic
def to_f32(typing: Any, a: Any) -> Any:
    """Float32 lanes of float64 ones, rounded."""
    return F32(F64), lambda context, builder, sig, args: builder.fptrunc(args[0], _vector(types.float32))


@intrinsic
def bits(typing: Any, which: Any) -> Any:
    """The truth values as the lowest bits of an integer."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.zext(builder.bitcast(args[0], ir.IntType(WIDTH)), ir.IntType(64))

    return types.int64(BOOL), emit


@intrinsic
def lowest(typing: Any, number: Any) -> Any:
    """The place of the lowest bit that is set; 64 for none."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), emit


@intrinsic
def highest(typing: Any, number: Any) -> Any:
    """The place of the highest bit that is set; -1 for none."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zeros = builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))
        return builder.sub(ir.Constant(ir.IntType(64), 63), zeros)

    return types.int64(types.int64), emit


@intrinsic
def get(typing: Any, a: Any, index: Any) -> Any:
    """One lane."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_element(*args)

    return a.dtype(a, types.int64), emit


@intrinsic
def first(typing: Any, count: Any) -> Any:
    """The truth values of the first count lanes."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        integers = ir.VectorType(ir.IntType(32), WIDTH)
        limit = _spread(builder, builder.trunc(args[0], ir.IntType(32)), integers)
        return builder.icmp_signed("<", ir.Constant(integers, list(range(WIDTH))), limit)

    return BOOL(types.int64), emit


@intrinsic
def greatest(typing: Any, a: Any) -> Any:
    """The greatest of all lanes."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (value,) = args
        integer = ir.IntType(32)
        for step in (4, 2, 1):
            places = [(lane ^ step) for lane in range(WIDTH)]
            other = builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(integer, WIDTH), places))
            value = builder.select(builder.fcmp_ordered(">", value, other), value, other)
        return builder.extract_element(value, ir.Constant(integer, 0))

    return a.dtype(a), emit


def _address(context: Any, builder: Any, array: Any, value: Any, offset: Any) -> Any:
    """A pointer to a vector in a contiguous array, from an element on."""
    data = context.make_array(array)(context, builder, value).data
    return builder.bitcast(builder.gep(data, [offset]), _vector(array.dtype).as_pointer())


@intrinsic
def load(typing: Any, array: Any, offset: Any) -> Any:
    """Eight elements of a contiguous array, from an offset on, all dimensions counted as one."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _address(context, builder, array, *args)
        return builder.load(pointer, align=4)

    return Lanes(array.dtype)(array, types.int64), emit


@intrinsic
def load_i32(typing: Any, array: Any, offset: Any) -> Any:
    """As load, of an array of float32 that holds the bits of integers."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _address(context, builder, array, *args)
        return builder.load(builder.bitcast(pointer, _vector(types.int32).as_pointer()), align=4)

    return I32(array, types.int64), emit


@intrinsic
def store(typing: Any, array: Any, offset: Any, a: Any) -> Any:
    """Write eight elements, as load reads them."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _address(context, builder, array, *args[:2])
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, a), emit


def _masked(builder: Any, name: Any, result: Any, arguments: Any, suffix: Any) -> Any:
    kinds = [each.type for each in arguments]
    declared = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, kinds), f"llvm.masked.{name}.v{WIDTH}{suffix}.p0"
    )
    return builder.call(declared, arguments)


@intrinsic
def load_where(typing: Any, array: Any, offset: Any, which: Any) -> Any:
    """As load, but reads only where which holds, and is 0 elsewhere."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = _vector(array.dtype)
        suffix = {types.float32: "f32", types.int32: "i32"}[array.dtype]
        pointer = _address(context, builder, array, *args[:2])
        align = ir.Constant(ir.IntType(32), 4)
        return _masked(builder, "load", vector, [pointer, align, args[2], ir.Constant(vector, None)], suffix)

    return Lanes(array.dtype)(array, types.int64, which), emit


@intrinsic
def store_where(typing: Any, array: Any, offset: Any, which: Any, a: Any) -> Any:
    """Write elements where which holds."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        suffix = {types.float32: "f32", types.int32: "i32"}[array.dtype]
        pointer = _address(context, builder, array, *args[:2])
        align = ir.Constant(ir.IntType(32), 4)
        _masked(builder, "store", ir.VoidType(), [args[3], pointer, align, args[2]], suffix)
        return context.get_dummy_value()

    return types.void(array, types.int64, which, a), emit


@intrinsic
def fetch(typing: Any, array: Any, offset: Any) -> Any:
    """Ask for a place of a contiguous array ahead of its use."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        byte = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer())
        integer = ir.IntType(32)
        declared = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte.type, integer, integer, integer]),
            "llvm.prefetch.p0",
        )
        builder.call(declared, [byte, integer(0), integer(3), integer(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), emit


def _constant(lanes: Any) -> Any:
    """A function that makes lanes of one number."""

    @intrinsic
    def function(typing: Any, number: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _spread(builder, context.cast(builder, args[0], number, lanes.dtype), _vector(lanes.dtype))

        return lanes(number), emit

    return function


f32, f64, i32 = _constant(F32), _constant(F64), _constant(I32)


@intrinsic
def count_f64(typing: Any) -> Any:
    """0, 1, 2, ..."""
    return F64(), lambda context, builder, sig, args: ir.Constant(
        _vector(types.float64), [float(i) for i in range(WIDTH)]
    )


@intrinsic
def put(typing: Any, a: Any, lane: Any, value: Any) -> Any:
    """Lanes with one of them replaced."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = context.cast(builder, args[2], sig.args[2], a.dtype)
        if a.dtype == types.boolean:
            value = builder.trunc(value, ir.IntType(1)) if value.type != ir.IntType(1) else value
        return builder.insert_element(args[0], value, args[1])

    return a(a, types.int64, value), emit
