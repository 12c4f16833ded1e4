// Package runtime gives memory to generated bindings, and to the gateway while it hands over what was read.
package runtime

import (
	"runtime"
	"unsafe"
)

// Allocate gives zeroed memory that stays where it is until the pinner lets go of it.
func Allocate(pinner *runtime.Pinner, size, align uintptr) unsafe.Pointer {
	if size == 0 {
		return nil
	}
	var memory unsafe.Pointer
	// By words of its alignment: the allocator aligns by the type of what it makes.
	count := (size + align - 1) / align
	switch align {
	case 1:
		memory = unsafe.Pointer(unsafe.SliceData(make([]uint8, count)))
	case 2:
		memory = unsafe.Pointer(unsafe.SliceData(make([]uint16, count)))
	case 4:
		memory = unsafe.Pointer(unsafe.SliceData(make([]uint32, count)))
	case 8:
		memory = unsafe.Pointer(unsafe.SliceData(make([]uint64, count)))
	default:
		panic("no type has this alignment")
	}
	pinner.Pin(memory)
	return memory
}

// What the gateway wrote, until the bindings that read it say so.
var received runtime.Pinner

// Unpin lets go of what was handed over: it was read.
func Unpin() {
	received.Unpin()
}

//go:wasmexport cabi_realloc
func cabiRealloc(old unsafe.Pointer, oldSize, align, size uintptr) unsafe.Pointer {
	memory := Allocate(&received, size, align)
	if oldSize > 0 {
		copy(unsafe.Slice((*byte)(memory), size), unsafe.Slice((*byte)(old), oldSize))
	}
	return memory
}
