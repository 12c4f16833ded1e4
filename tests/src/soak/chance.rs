//! Chance that can be had again: everything random in a run follows from its seed.

use std::time::Duration;

use bytes::Bytes;

/// xorshift64*, one for each task.
#[derive(Clone)]
pub(super) struct Chance(u64);

impl Chance {
    /// The `number`th of those that follow from `seed`.
    pub(super) fn new(seed: u64, number: u64) -> Self {
        let mut chance = Self((seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
        for _ in 0..8 {
            chance.next();
        }
        chance
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 16) as usize % bound.max(1)
    }

    pub(super) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(super) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    pub(super) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below((to - from) as usize) as u64)
    }

    /// Mostly small, now and then large, up to `most` bytes.
    pub(super) fn size(&mut self, most: usize) -> usize {
        match self.below(10) {
            0 => 0,
            1..=5 => self.below(2_000.min(most)),
            6..=8 => self.below(20_000.min(most)),
            _ => self.below(most),
        }
    }
}

/// So many bytes that follow from `seed`: each place of each is told from its neighbours.
pub(super) fn pattern(seed: usize, length: usize) -> Bytes {
    (0..length).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ seed.wrapping_mul(131)) as u8).collect::<Vec<u8>>().into()
}
