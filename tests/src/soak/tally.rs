//! What came of everything: counted by protocol and kind, and what cannot be explained in full.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;

/// So many are told in full.
const TOLD: usize = 40;

#[derive(Default)]
pub(super) struct Tally(Mutex<Counts>);

/// The time of day in UTC, as the gateway's log has it.
fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60, since.subsec_millis())
}

#[derive(Default)]
struct Counts {
    /// As they had to be, and not.
    by_kind: BTreeMap<(String, &'static str), (u64, u64)>,
    unexplained: u64,
    told: Vec<String>,
}

impl Tally {
    pub(super) fn note(&self, protocol: &str, kind: &'static str, outcome: Result<(), String>) {
        let mut counts = self.0.lock().expect("no panic");
        let count = counts.by_kind.entry((protocol.to_owned(), kind)).or_default();
        match outcome {
            Ok(()) => count.0 += 1,
            Err(what) => {
                count.1 += 1;
                counts.unexplained += 1;
                let line = format!("{} {protocol} {kind}: {what}", now());
                if counts.told.len() < TOLD {
                    eprintln!("UNEXPLAINED {line}");
                    counts.told.push(line);
                }
            }
        }
    }

    pub(super) fn unexplained(&self) -> u64 {
        self.0.lock().expect("no panic").unexplained
    }

    pub(super) fn told(&self) -> Vec<String> {
        self.0.lock().expect("no panic").told.clone()
    }

    /// Everything that ended.
    pub(super) fn total(&self) -> u64 {
        self.0.lock().expect("no panic").by_kind.values().map(|(fine, wrong)| fine + wrong).sum()
    }

    /// A row for each kind, a column for each protocol.
    pub(super) fn table(&self) -> String {
        let counts = self.0.lock().expect("no panic");
        let mut protocols: Vec<&String> = counts.by_kind.keys().map(|(protocol, _)| protocol).collect();
        protocols.sort();
        protocols.dedup();
        let mut kinds: Vec<&str> = counts.by_kind.keys().map(|(_, kind)| *kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let mut out = format!("{:24}", "as they had to be");
        for protocol in &protocols {
            let _ = write!(out, "{protocol:>10}");
        }
        out += &format!("{:>13}\n", "unexplained");
        for kind in kinds {
            let _ = write!(out, "{kind:24}");
            let mut wrong = 0;
            for protocol in &protocols {
                let count = counts.by_kind.get(&((*protocol).clone(), kind));
                let _ = write!(out, "{:>10}", count.map_or_else(String::new, |count| count.0.to_string()));
                wrong += count.map_or(0, |count| count.1);
            }
            let _ = writeln!(out, "{wrong:>13}");
        }
        out
    }
}
