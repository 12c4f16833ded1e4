//! The allocator of a component: a question's memory is handed out from one piece, end to end, and is free again as a
//! whole once nothing of it is in use. A decision makes a few short strings; finding and joining free blocks for them would
//! cost more than they do, and an instance that is made for one question would have to ask for memory first.
//!
//! What does not fit, or comes while the piece is full, goes to the standard allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;

/// Bytes of the piece: settings of a usual size and what a question needs beside them.
const SIZE: usize = 64 * 1024;

#[repr(C, align(16))]
struct Piece([u8; SIZE]);

/// Where the next allocation goes, in bytes from the start of the piece.
#[derive(Debug, Default)]
struct Marks {
    next: usize,
    /// What was allocated below it belongs to the configured policy and stays.
    floor: usize,
    /// Allocations in use at or above `floor`.
    live: usize,
}

impl Marks {
    /// The offset of a new allocation, if it fits.
    fn take(&mut self, size: usize, align: usize) -> Option<usize> {
        // Offsets are aligned as addresses are, as far as the piece itself is.
        let start = (align <= align_of::<Piece>()).then(|| self.next.next_multiple_of(align))?;
        let end = start.checked_add(size).filter(|end| *end <= SIZE)?;
        self.next = end;
        self.live += 1;
        Some(start)
    }

    fn give_back(&mut self, start: usize, size: usize) {
        if start < self.floor {
            return;
        }
        self.live -= 1;
        if self.live == 0 {
            self.next = self.floor;
        } else if start + size == self.next {
            self.next = start;
        }
    }

    /// Whether the allocation, if it is the last one, could be made `size` long where it is; then it is.
    fn resize(&mut self, start: usize, old: usize, size: usize) -> bool {
        let fits = start >= self.floor && start + old == self.next && size <= SIZE - start;
        if fits {
            self.next = start + size;
        }
        fits
    }

    fn settle(&mut self) {
        self.floor = self.next;
        self.live = 0;
    }
}

pub(crate) struct Arena {
    piece: UnsafeCell<Piece>,
    marks: UnsafeCell<Marks>,
}

// SAFETY: a component has one thread.
#[cfg(target_arch = "wasm32")]
unsafe impl Sync for Arena {}

impl Arena {
    pub(crate) const fn new() -> Self {
        Self { piece: UnsafeCell::new(Piece([0; SIZE])), marks: UnsafeCell::new(Marks { next: 0, floor: 0, live: 0 }) }
    }

    /// What is allocated now stays: the policy is configured.
    pub(crate) fn settle(&self) {
        // SAFETY: as in `alloc`.
        unsafe { (*self.marks.get()).settle() }
    }

    fn offset(&self, place: *mut u8) -> Option<usize> {
        (place as usize).checked_sub(self.piece.get() as usize).filter(|offset| *offset < SIZE)
    }
}

// SAFETY: pieces handed out do not overlap while they are in use: `Marks` goes below one only when it was given back, or
// when nothing above the floor is in use. `Marks` is borrowed for no longer than one of its functions runs, none of which
// allocates.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one thread, see above; the offset lies within the piece. The rest is the caller's promise.
        unsafe {
            match (*self.marks.get()).take(layout.size(), layout.align()) {
                Some(start) => self.piece.get().cast::<u8>().add(start),
                None => System.alloc(layout),
            }
        }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        match self.offset(place) {
            // SAFETY: as in `alloc`.
            Some(start) => unsafe { (*self.marks.get()).give_back(start, layout.size()) },
            // SAFETY: what is not of the piece came from there.
            None => unsafe { System.dealloc(place, layout) },
        }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as in `alloc` and `dealloc`; a new place is as large as what is copied there.
        unsafe {
            let Some(start) = self.offset(place) else { return System.realloc(place, layout, size) };
            if (*self.marks.get()).resize(start, layout.size(), size) {
                return place;
            }
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                new.copy_from_nonoverlapping(place, layout.size().min(size));
                self.dealloc(place, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of many sizes come, grow and go in no order; what is in each stays as it was written.
    #[test]
    fn blocks_in_use_never_overlap() {
        let arena = Arena::new();
        let mut chance = 1_u64;
        let mut draw = |below: usize| {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (chance >> 33) as usize % below
        };
        let mut blocks: Vec<(*mut u8, Layout, u8)> = Vec::new();
        let intact = |(place, layout, mark): (*mut u8, Layout, u8)| {
            // SAFETY: it is in use, and that long.
            let bytes = unsafe { std::slice::from_raw_parts(place, layout.size()) };
            assert!(bytes.iter().all(|byte| *byte == mark));
            assert_eq!(place as usize % layout.align(), 0);
        };
        for round in 0..20_000 {
            match draw(4) {
                0 | 1 if blocks.len() < 200 => {
                    let layout = Layout::from_size_align(1 + draw(700), 1 << draw(6)).expect("a layout");
                    let mark = draw(256) as u8;
                    // SAFETY: it is not empty, and is written as far as it goes.
                    let place = unsafe { arena.alloc(layout) };
                    assert!(!place.is_null());
                    // SAFETY: as above.
                    unsafe { place.write_bytes(mark, layout.size()) };
                    blocks.push((place, layout, mark));
                }
                2 if !blocks.is_empty() => {
                    let index = draw(blocks.len());
                    let (place, layout, mark) = blocks[index];
                    let new = Layout::from_size_align(1 + draw(900), layout.align()).expect("a layout");
                    // SAFETY: it is in use, with this layout.
                    let place = unsafe { arena.realloc(place, layout, new.size()) };
                    let kept = Layout::from_size_align(layout.size().min(new.size()), new.align()).expect("a layout");
                    intact((place, kept, mark));
                    // SAFETY: it is that long.
                    unsafe { place.write_bytes(mark, new.size()) };
                    blocks[index] = (place, new, mark);
                }
                _ if !blocks.is_empty() => {
                    let (place, layout, mark) = blocks.swap_remove(draw(blocks.len()));
                    intact((place, layout, mark));
                    // SAFETY: it is in use, with this layout.
                    unsafe { arena.dealloc(place, layout) };
                }
                _ => {}
            }
            if round == 5_000 {
                arena.settle();
            }
        }
        blocks.iter().copied().for_each(intact);
        // SAFETY: each is in use, with its layout.
        blocks.drain(..).for_each(|(place, layout, _)| unsafe { arena.dealloc(place, layout) });
    }

    #[test]
    fn a_question_begins_where_the_configuration_ended() {
        let mut marks = Marks::default();
        assert_eq!(marks.take(100, 1), Some(0));
        marks.settle();
        assert_eq!((marks.take(8, 8), marks.take(50, 1)), (Some(104), Some(112)));
        marks.give_back(104, 8);
        assert_eq!(marks.take(1, 1), Some(162), "one in the middle leaves its place until all are gone");
        marks.give_back(162, 1);
        marks.give_back(112, 50);
        marks.give_back(0, 100);
        assert_eq!(marks.take(1, 1), Some(100), "what was configured keeps its place, even given back");
        assert_eq!(marks.take(SIZE, 1), None);
    }
}
