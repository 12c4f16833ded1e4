//! Facts that come along with a question: what the guest called for when it was asked before.
//!
//! A call into the host for one fact takes longer than to copy that fact: some 70 ns and, where it gives a string, as much
//! again for the guest's allocator. A guest reads nearly the same of every request. So what it called for once comes along
//! as bytes the next time, in one copy; what it reads beyond that it calls for, and that comes along from then on. A few
//! facts are as many bytes as a call has plain parameters for, and then the guest's allocator is not called either.

use std::sync::Arc;

use wasmtime::component::{ComponentType, Lower};

use crate::read::{Read, value};
use crate::state::State;

/// The facts of a question as they come along.
#[derive(ComponentType, Lower)]
#[component(variant)]
pub(crate) enum Packet {
    #[component(name = "words")]
    Words(Words),
    /// Shared with the call for its time only.
    #[component(name = "bytes")]
    Bytes(Arc<Vec<u8>>),
}

/// With which of both it is, most of the sixteen parameters that a call has without the guest's memory.
type Words = (u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64);

/// The same bytes as words, if they fit.
fn words(bytes: &[u8]) -> Option<Words> {
    let mut words = [[0; size_of::<u64>()]; 12];
    words.as_flattened_mut().get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(words.map(u64::from_le_bytes).into())
}

/// Most facts that come along.
const MAX_FACTS: usize = 16;
/// Longest value that does.
const MAX_VALUE: usize = 1024;
/// Questions until it is seen anew what a guest reads: what it has no use for any more is left out.
const ANEW: u32 = 64 * 1024;

/// A fact, and what comes before its value in a packet: its kind, its name, and room for the value's length.
struct Fact {
    read: Read,
    head: Box<[u8]>,
}

impl Fact {
    /// Nothing for one that does not come along.
    fn of(read: Read) -> Option<Self> {
        let (kind, name) = read.kind()?;
        let length = u8::try_from(name.len()).ok()?;
        let head = [&[kind, length], name.as_bytes(), &[0, 0]].concat().into();
        Some(Self { read, head })
    }
}

/// What comes along with one question of a plugin.
#[derive(Default)]
pub(crate) struct Prefetch {
    facts: Vec<Fact>,
    bytes: Arc<Vec<u8>>,
    asked: u32,
}

impl Prefetch {
    /// What the guest called for comes along with the next question.
    pub(crate) fn learn(&mut self, called_for: &mut Vec<Read>) {
        if called_for.is_empty() {
            return;
        }
        for read in called_for.drain(..) {
            if self.facts.len() < MAX_FACTS && !self.facts.iter().any(|fact| fact.read == read) {
                self.facts.extend(Fact::of(read));
            }
        }
    }

    /// The packet of the question that `state` has at hand; `None` where nothing comes along.
    pub(crate) fn pack(&mut self, state: &mut State) -> Option<Packet> {
        self.asked += 1;
        if self.asked >= ANEW {
            self.asked = 0;
            self.facts.clear();
        }
        if self.facts.is_empty() {
            return None;
        }
        // The call before has let go of it.
        let packet = Arc::make_mut(&mut self.bytes);
        packet.clear();
        for Fact { read, head } in &self.facts {
            let start = packet.len();
            packet.extend_from_slice(head);
            let begins = packet.len();
            let there = if matches!(read, Read::Random) {
                packet.extend_from_slice(&state.random.u64(..).to_le_bytes());
                true
            } else {
                value(read, &state.facts, |name| state.core.grants.field(name), packet)
            };
            let length = packet.len() - begins;
            if there && length <= MAX_VALUE {
                packet[begins - 2..begins].copy_from_slice(&(length as u16).to_le_bytes());
            } else {
                packet.truncate(start);
            }
        }
        Some(words(packet).map_or_else(|| Packet::Bytes(self.bytes.clone()), Packet::Words))
    }
}
