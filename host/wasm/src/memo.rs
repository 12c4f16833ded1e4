//! Memoisation: the decision tree of what a pure policy reads.
//!
//! A guest that is a function of what it reads reads first always the same fact, and what it reads next follows from the
//! values read before. So its reads form a tree: a node is a read, its branches are the values seen, a leaf is an
//! answer. A question walks the tree natively, and only where no branch fits does the guest run, whose trace then
//! grows the tree. Exact, because equal values of all that was read give an equal answer.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use tidegate_policy::{self as policy, HeaderEdit, HeaderEdits, RequestEdits};

use crate::read::{Read, value};
use crate::state::{Facts, IdentityEdits};
use crate::trace::Trace;
use crate::types::{Choice, Response, Verdict};

/// A router's answer, its name of a cluster made once for all who are told it.
#[derive(Clone)]
pub(crate) enum Going {
    Nowhere,
    To(Arc<str>),
    Back(Response),
}

/// An answer with all that was decided beside it.
pub(crate) enum Remembered {
    Route(Box<(Going, RequestEdits)>),
    Pick(Choice),
    /// What the guest set of the identity.
    Identify(Box<IdentityEdits>),
    Decide(Verdict),
    Tunnel(policy::TunnelAnswer),
}

impl Remembered {
    /// About what it takes to keep.
    fn size(&self) -> usize {
        const EACH: usize = 64;
        let fields = |edits: &HeaderEdits| -> usize {
            let value = |edit: &HeaderEdit| match edit {
                HeaderEdit::Set(_, value) | HeaderEdit::Append(_, value) => value.len(),
                HeaderEdit::Remove(_) => 0,
            };
            edits.iter().map(|edit| edit.name().as_str().len() + value(edit) + EACH).sum()
        };
        match self {
            Self::Route(route) => {
                let (going, edits) = &**route;
                let answer = match going {
                    Going::Nowhere => 0,
                    Going::To(cluster) => cluster.len(),
                    Going::Back(response) => {
                        let fields = response.headers.iter().map(|field| field.name.len() + field.value.len() + EACH);
                        response.body.len() + fields.sum::<usize>()
                    }
                };
                let texts =
                    [edits.path.as_ref(), edits.query.as_ref().and_then(Option::as_ref), edits.authority.as_ref()];
                let texts: usize = texts.into_iter().flatten().map(|text| text.len()).sum();
                let notes: usize = edits.notes.iter().map(|(name, value)| name.len() + value.len() + EACH).sum();
                answer + texts + notes + fields(&edits.headers) + fields(&edits.response_headers) + EACH
            }
            Self::Identify(edits) => {
                edits
                    .elements
                    .iter()
                    .flatten()
                    .map(|element| {
                        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
                        text(&element.host) + text(&element.proto) + 3 * EACH
                    })
                    .sum::<usize>()
                    + EACH
            }
            Self::Tunnel(policy::TunnelAnswer::Forward(cluster)) => cluster.len() + EACH,
            Self::Pick(_) | Self::Decide(_) | Self::Tunnel(_) => EACH,
        }
    }
}

#[derive(Clone, Copy)]
enum Next {
    Node(u32),
    Leaf(u32),
}

struct Node {
    read: Read,
    branches: FxHashMap<Box<[u8]>, Next>,
}

/// The tree of one question of one instance.
#[derive(Default)]
pub(crate) struct Memo {
    root: Option<Next>,
    nodes: Vec<Node>,
    leaves: Vec<Remembered>,
    /// Of the keys and answers kept.
    bytes: usize,
    /// For the value of one read at a time.
    scratch: Vec<u8>,
    looked: u32,
    found: u32,
    state: Use,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Use {
    #[default]
    Grows,
    /// It did not pay: not looked at for this many questions more.
    Rests(u32),
    /// The guest is no function of what it reads.
    Never,
}

/// Leaves a tree may have, and bytes; a full one begins anew.
const MAX_LEAVES: usize = 4096;
const MAX_BYTES: usize = 4 << 20;
/// Values and answers larger than this are not kept: a few of them would drive everything else out.
const MAX_KEPT: usize = 16 << 10;
/// After this many questions the tree must have known one in ten, or it rests.
const JUDGE_AFTER: u32 = 4096;
/// A branch, beside the value on it.
const KEY: usize = 64;
/// For so many questions: whoever scans with requests that are all new turns it off for a while, not for good.
const REST: u32 = 64 * 1024;

impl Memo {
    pub(crate) fn in_use(&self) -> bool {
        self.state == Use::Grows
    }

    /// The remembered answer to a question with these facts.
    pub(crate) fn find(&mut self, facts: &Facts, granted: impl Fn(&str) -> bool) -> Option<&Remembered> {
        match self.state {
            Use::Grows => {}
            Use::Never => return None,
            Use::Rests(1) => *self = Self::default(),
            Use::Rests(left) => {
                self.state = Use::Rests(left - 1);
                return None;
            }
        }
        self.looked += 1;
        if self.looked >= JUDGE_AFTER {
            if self.found < JUDGE_AFTER / 10 {
                *self = Self { state: Use::Rests(REST), ..Self::default() };
                return None;
            }
            (self.looked, self.found) = (0, 0);
        }
        let mut next = self.root?;
        loop {
            match next {
                Next::Leaf(leaf) => {
                    self.found += 1;
                    return self.leaves.get(leaf as usize);
                }
                Next::Node(node) => {
                    let node = self.nodes.get(node as usize)?;
                    self.scratch.clear();
                    value(&node.read, facts, &granted, &mut self.scratch);
                    next = *node.branches.get(&self.scratch[..])?;
                }
            }
        }
    }

    /// Grows the tree by what a run read and answered.
    pub(crate) fn learn(&mut self, trace: &Trace, facts: &Facts, granted: impl Fn(&str) -> bool, answer: Remembered) {
        let size = answer.size();
        let Some(reads) = trace.memorable().filter(|_| self.in_use() && size <= MAX_KEPT) else { return };
        let mut keys = 0;
        for read in reads {
            self.scratch.clear();
            value(read, facts, &granted, &mut self.scratch);
            if self.scratch.len() > MAX_KEPT {
                return;
            }
            keys += self.scratch.len() + KEY;
        }
        if self.leaves.len() >= MAX_LEAVES || self.bytes + size + keys > MAX_BYTES {
            (self.root, self.nodes, self.leaves, self.bytes) = (None, Vec::new(), Vec::new(), 0);
        }
        self.bytes += size + keys;
        let leaf = Next::Leaf(self.leaves.len() as u32);
        // Where the next step is hung: the root, or a branch of a node.
        let mut place: Option<(u32, Box<[u8]>)> = None;
        for read in reads {
            let existing = match &place {
                None => self.root,
                Some((node, value)) => self.nodes[*node as usize].branches.get(value).copied(),
            };
            let node = match existing {
                Some(Next::Node(node)) if self.nodes[node as usize].read == *read => node,
                // The guest read something else after the same values: it is no function of what it reads.
                Some(_) => {
                    *self = Self { state: Use::Never, ..Self::default() };
                    return;
                }
                None => {
                    let node = self.nodes.len() as u32;
                    self.nodes.push(Node { read: read.clone(), branches: FxHashMap::default() });
                    self.hang(place, Next::Node(node));
                    node
                }
            };
            self.scratch.clear();
            value(read, facts, &granted, &mut self.scratch);
            place = Some((node, self.scratch[..].into()));
        }
        self.leaves.push(answer);
        self.hang(place, leaf);
    }

    fn hang(&mut self, place: Option<(u32, Box<[u8]>)>, next: Next) {
        match place {
            None => self.root = Some(next),
            Some((node, value)) => {
                self.nodes[node as usize].branches.insert(value, next);
            }
        }
    }
}

#[cfg(test)]
fn facts(asked: std::rc::Rc<tidegate_policy::Asked>) -> Facts {
    Facts { asked: Some(asked), ..Facts::default() }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use tidegate_policy::contract::{asked, asked_with};

    use super::*;
    use crate::trace::Purpose;

    fn trace(reads: &[Read]) -> Trace {
        let mut trace = Trace::default();
        trace.begin(Purpose::Memo);
        reads.iter().for_each(|read| trace.note(|| read.clone()));
        trace
    }

    #[test]
    fn equal_reads_give_the_answer_and_others_do_not() {
        let mut memo = Memo::default();
        let all = |_: &str| true;
        let tenant = || Read::Header(HeaderName::from_static("x-tenant"));
        let a = facts(asked_with("GET", "/a", &[("x-tenant", "1"), ("x-other", "2")]));
        assert!(memo.find(&a, all).is_none());
        memo.learn(&trace(&[Read::Path, tenant()]), &a, all, Remembered::Pick(Choice::Endpoint(1)));
        let same = facts(asked_with("POST", "/a", &[("x-tenant", "1"), ("x-other", "3")]));
        assert!(matches!(memo.find(&same, all), Some(Remembered::Pick(Choice::Endpoint(1)))));
        for other in [
            asked_with("GET", "/a", &[("x-tenant", "2")]),
            asked("GET", "/a"),
            asked_with("GET", "/b", &[("x-tenant", "1")]),
        ] {
            assert!(memo.find(&facts(other), all).is_none());
        }
        // An absent field is not an empty one, and an ungranted one is absent.
        memo.learn(&trace(&[Read::Path, tenant()]), &facts(asked("GET", "/a")), all, Remembered::Pick(Choice::None));
        assert!(memo.find(&facts(asked_with("GET", "/a", &[("x-tenant", "")])), all).is_none());
        assert!(matches!(memo.find(&same, |_: &str| false), Some(Remembered::Pick(Choice::None))));
    }

    #[test]
    fn a_guest_that_is_no_function_of_its_reads_is_found_out() {
        let mut memo = Memo::default();
        let question = facts(asked("GET", "/a"));
        memo.learn(&trace(&[Read::Path]), &question, |_: &str| true, Remembered::Pick(Choice::Pass));
        memo.learn(&trace(&[Read::Method]), &question, |_: &str| true, Remembered::Pick(Choice::Pass));
        assert!(!memo.in_use());
    }

    #[test]
    fn a_tree_that_never_helps_rests_and_stays_bounded() {
        let mut memo = Memo::default();
        let all = |_: &str| true;
        let ask = |memo: &mut Memo, path: &str| {
            let question = facts(asked("GET", path));
            let found = memo.find(&question, all).is_some();
            if !found && memo.in_use() {
                memo.learn(&trace(&[Read::Path]), &question, all, Remembered::Pick(Choice::Pass));
            }
            found
        };
        for index in 0..=JUDGE_AFTER {
            ask(&mut memo, &format!("/{index}"));
            assert!(memo.leaves.len() <= MAX_LEAVES);
        }
        assert!(!memo.in_use());
        // A scanner does not turn it off for ever.
        let again = (0..=REST).find(|_| ask(&mut memo, "/usual"));
        assert!(again.is_some_and(|after| after >= REST - 2), "{again:?}");
    }

    #[test]
    fn what_it_holds_is_bounded_in_bytes() {
        let mut memo = Memo::default();
        let all = |_: &str| true;
        let respond = |bytes: usize| {
            let response = crate::types::Response { status: 200, headers: vec![], body: vec![0; bytes] };
            Remembered::Route(Box::new((Going::Back(response), RequestEdits::default())))
        };
        let question = facts(asked("GET", "/a"));
        memo.learn(&trace(&[Read::Path]), &question, all, respond(MAX_KEPT + 1));
        assert!(memo.find(&question, all).is_none(), "a large body is not kept");
        for index in 0..1000 {
            let question = facts(asked("GET", &format!("/{index}/{}", "x".repeat(8000))));
            memo.learn(&trace(&[Read::Path]), &question, all, respond(8000));
            assert!(memo.bytes <= MAX_BYTES && memo.leaves.len() * 16_000 <= MAX_BYTES);
        }
        let huge = facts(asked("GET", &format!("/{}", "x".repeat(MAX_KEPT))));
        let before = memo.leaves.len();
        memo.learn(&trace(&[Read::Path]), &huge, all, respond(1));
        assert_eq!(memo.leaves.len(), before, "nor is a long value");
    }
}
