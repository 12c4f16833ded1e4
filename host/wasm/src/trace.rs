//! What one run of a guest read, in order, and what that is for.

use http::HeaderName;

use crate::read::Read;

/// Why reads are recorded.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Purpose {
    #[default]
    None,
    /// To remember the answer by them.
    Memo,
    /// To show them to somebody, who remembers no answer by them.
    Show,
    /// To have what was called for come along with the next question.
    Prefetch,
}

/// What one run of a guest read, in order.
#[derive(Default)]
pub(crate) struct Trace {
    purpose: Purpose,
    reads: Vec<Read>,
    /// Something was read or done that no memo can stand for: load, time, chance, a log line.
    tainted: bool,
}

/// A guest that reads more than this in one question gains nothing from a tree.
const MAX_READS: usize = 32;

impl Trace {
    pub(crate) fn begin(&mut self, purpose: Purpose) {
        self.purpose = purpose;
        self.reads.clear();
        self.tainted = false;
    }

    pub(crate) fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// What was read, which the next run's take the place of.
    pub(crate) fn reads(&mut self) -> &mut Vec<Read> {
        &mut self.reads
    }

    /// What was read, if that is all that the answer came from.
    pub(crate) fn memorable(&self) -> Option<&[Read]> {
        (self.purpose == Purpose::Memo && !self.tainted).then_some(&self.reads)
    }

    /// Whether `note` would keep anything.
    fn records(&self) -> bool {
        match self.purpose {
            Purpose::None => false,
            Purpose::Memo => !self.tainted,
            Purpose::Show | Purpose::Prefetch => true,
        }
    }

    /// Made only when tracing: `read` may allocate.
    pub(crate) fn note(&mut self, read: impl FnOnce() -> Read) {
        if !self.records() {
            return;
        }
        let read = read();
        if !read.is_stable() {
            self.tainted = true;
            if self.purpose != Purpose::Prefetch {
                return;
            }
        }
        // A fact read twice is the same fact.
        if !self.reads.contains(&read) {
            self.tainted |= self.reads.len() >= MAX_READS;
            if self.reads.len() <= MAX_READS {
                self.reads.push(read);
            }
        }
    }

    /// What a field is noted by, where anything is. What is no name is absent whatever the request: there is nothing to know
    /// it by again.
    pub(crate) fn field(&self, name: &str) -> Option<HeaderName> {
        self.records().then(|| HeaderName::from_bytes(name.as_bytes()).ok()).flatten()
    }

    pub(crate) fn taint(&mut self) {
        self.tainted = true;
    }
}
