"""How often a program's loops run."""

import dataclasses
import math
import re

from dynamicrafter_jax.planning.text import Computation, Instruction, Program

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SAME = {"copy", "bitcast", "convert", "reshape"}


@dataclasses.dataclass(frozen=True)
class _Carry:
    """An element of what a loop carries, plus a number."""

    index: int
    plus: int = 0


_Value = int | _Carry | None


class Trips:
    """Finds trip counts: as the compiler states them, else from the loop's counter.

    The TPU compiler states none. There, as JAX writes loops, the condition compares an element of
    the carry with a constant, or with one that never changes, and the body adds a constant to it.
    """

    def __init__(self, program: Program) -> None:
        """Takes a program whose loops will be asked for."""
        self._program = program
        self._loops: dict[str, tuple[Computation, Instruction]] = {}
        for computation in program.computations.values():
            for instruction in computation.instructions.values():
                if instruction.opcode == "while":
                    for part in ("condition", "body"):
                        if name := instruction.called(part):
                            self._loops[name] = (computation, instruction)

    def count(self, computation: Computation, loop: Instruction) -> int | None:
        """Returns how often a `while` of a computation runs; None where data decides."""
        if known := _KNOWN.search(loop.attributes):
            return int(known.group(1))
        condition = self._program.computations[loop.called("condition") or ""]
        found = self._comparison(condition, condition.root, [])
        if found is None:
            return None
        direction, left, right = found
        if isinstance(right, _Carry) and self._step(loop, right.index) != 0:
            direction = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
            left, right = right, left
        if not isinstance(left, _Carry):
            return None
        step = self._step(loop, left.index)
        start = self._start(computation, loop, left.index)
        if isinstance(right, _Carry):
            stays = self._step(loop, right.index) == 0
            end = self._start(computation, loop, right.index) if stays else None
            right = None if end is None else end + right.plus
        if not step or start is None or right is None:
            return None
        span = right - start - left.plus
        if direction in ("LE", "GE"):
            span += 1 if step > 0 else -1
        return max(0, math.ceil(span / step))

    def _comparison(
        self, computation: Computation, name: str, arguments: list[_Value]
    ) -> tuple[str, _Value, _Value] | None:
        """Follows a condition's root to what it compares."""
        instruction = computation.instructions[name]
        if instruction.opcode in _SAME:
            return self._comparison(computation, instruction.operands[0], arguments)
        values = [self._value(computation, operand, arguments) for operand in instruction.operands]
        if instruction.opcode == "fusion":
            inner = self._program.computations[instruction.called("calls") or ""]
            return self._comparison(inner, inner.root, values)
        direction = re.search(r"\bdirection=(\w+)", instruction.attributes)
        if instruction.opcode != "compare" or not direction or len(values) != 2:
            return None
        return direction.group(1), values[0], values[1]

    def _step(self, loop: Instruction, index: int) -> int | None:
        """Returns what each turn adds to an element of the carry."""
        body = self._program.computations[loop.called("body") or ""]
        root = body.instructions[body.root]
        if root.opcode != "tuple":
            return None
        value = self._value(body, root.operands[index], [])
        return value.plus if isinstance(value, _Carry) and value.index == index else None

    def _start(self, computation: Computation, loop: Instruction, index: int) -> int | None:
        """Returns the number that an element of the carry starts with."""
        carried = computation.instructions.get(loop.operands[0])
        if carried is None or carried.opcode != "tuple":
            return None
        value = self._value(computation, carried.operands[index], [])
        if not isinstance(value, _Carry):
            return value
        if computation.name not in self._loops:
            return None
        around, outer = self._loops[computation.name]
        if self._step(outer, value.index) != 0:
            return None
        start = self._start(around, outer, value.index)
        return None if start is None else start + value.plus

    def _value(self, computation: Computation, name: str, arguments: list[_Value]) -> _Value:
        """Returns a scalar as a number, or in terms of the carry."""
        instruction = computation.instructions.get(name)
        if instruction is None:
            return None
        operands = instruction.operands
        match instruction.opcode:
            case "constant":
                return int(instruction.literal) if _is_int(instruction.literal) else None
            case "parameter":
                index = int(instruction.literal)
                return arguments[index] if index < len(arguments) else None
            case "get-tuple-element":
                source = computation.instructions[operands[0]]
                found = re.search(r"\bindex=(\d+)", instruction.attributes)
                is_carry = source.opcode == "parameter" and not arguments
                return _Carry(int(found.group(1))) if found and is_carry else None
            case "fusion":
                inner = self._program.computations[instruction.called("calls") or ""]
                values = [self._value(computation, operand, arguments) for operand in operands]
                return self._value(inner, inner.root, values)
            case "add":
                left, right = (self._value(computation, name, arguments) for name in operands)
                if isinstance(left, int) and isinstance(right, int):
                    return left + right
                if isinstance(left, int):
                    left, right = right, left
                if isinstance(left, _Carry) and isinstance(right, int):
                    return _Carry(left.index, left.plus + right)
                return None
            case opcode if opcode in _SAME:
                return self._value(computation, operands[0], arguments)
        return None


def _is_int(text: str) -> bool:
    return bool(re.fullmatch(r"-?\d+", text))
