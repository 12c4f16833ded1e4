// Package wit_types has the types of the component model that Go lacks, by the names that generated bindings use.
package wit_types

// Unit is the payload of a result that has none.
type Unit struct{}

const (
	OptionNone = 0
	OptionSome = 1
)

// Option is a value that may be absent.
type Option[T any] struct {
	value   T
	present bool
}

func Some[T any](value T) Option[T] {
	return Option[T]{value: value, present: true}
}

func None[T any]() Option[T] {
	return Option[T]{}
}

func (option Option[T]) Tag() uint8 {
	if option.present {
		return OptionSome
	}
	return OptionNone
}

func (option Option[T]) IsSome() bool { return option.present }

func (option Option[T]) IsNone() bool { return !option.present }

// Some gives the value; it panics where there is none.
func (option Option[T]) Some() T {
	if !option.present {
		panic("the option has no value")
	}
	return option.value
}

// SomeOr gives the value, or another one where there is none.
func (option Option[T]) SomeOr(other T) T {
	if option.present {
		return option.value
	}
	return other
}

const (
	ResultOk  = 0
	ResultErr = 1
)

// Result is a value or an error.
type Result[T, E any] struct {
	ok     T
	err    E
	failed bool
}

func Ok[T, E any](value T) Result[T, E] {
	return Result[T, E]{ok: value}
}

func Err[T, E any](err E) Result[T, E] {
	return Result[T, E]{err: err, failed: true}
}

func (result Result[T, E]) Tag() uint8 {
	if result.failed {
		return ResultErr
	}
	return ResultOk
}

func (result Result[T, E]) IsOk() bool { return !result.failed }

func (result Result[T, E]) IsErr() bool { return result.failed }

// Ok gives the value; it panics for an error.
func (result Result[T, E]) Ok() T {
	if result.failed {
		panic("the result is an error")
	}
	return result.ok
}

// Err gives the error; it panics for a value.
func (result Result[T, E]) Err() E {
	if !result.failed {
		panic("the result is no error")
	}
	return result.err
}

// Tuple4 is an IPv4 address.
type Tuple4[T0, T1, T2, T3 any] struct {
	F0 T0
	F1 T1
	F2 T2
	F3 T3
}

// Tuple8 is an IPv6 address.
type Tuple8[T0, T1, T2, T3, T4, T5, T6, T7 any] struct {
	F0 T0
	F1 T1
	F2 T2
	F3 T3
	F4 T4
	F5 T5
	F6 T6
	F7 T7
}
