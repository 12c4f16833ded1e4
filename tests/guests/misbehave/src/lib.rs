//! Fails in the way its settings say: what the fault tests load. Built once per question.

use serde::Deserialize;
use tidegate_sdk::{Balancer, Choice, Endpoints, Forward, Level, Policy, Request, Response, Route, Router, log};

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Behave {
    Well,
    Loop,
    Trap,
    Hog,
    UnknownCluster,
    BadStatus,
    BadField,
    OutOfRange,
    Unavailable,
    Count,
    RefuseSettings,
    /// Traps for paths that begin with `/trap`, and only for those.
    TrapOnPath,
    /// Takes its time, well within the limit.
    Slow,
    /// Writes what it can to `kv`.
    FloodKv,
    /// Counts in `kv`, and tells.
    CountKv,
    FloodLog,
    /// A response of a mebibyte.
    Huge,
    /// A response far beyond what is taken.
    Enormous,
    Recurse,
    /// About `work` additions.
    Work,
    /// Looks for what `secret` says in all of its memory, tells where, and leaves it there.
    Remember,
    /// To the cluster that `to` names.
    Forward,
}

#[derive(Deserialize)]
pub struct Settings {
    behave: Behave,
    #[serde(default)]
    work: u64,
    #[serde(default, alias = "cluster")]
    to: String,
}

pub struct Misbehave {
    behave: Behave,
    work: u64,
    to: String,
    asked: u64,
    kept: Vec<Vec<u8>>,
}

impl Policy for Misbehave {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if let Behave::RefuseSettings = settings.behave {
            return Err("these settings are refused on purpose".to_owned());
        }
        Ok(Self { behave: settings.behave, work: settings.work, to: settings.to, asked: 0, kept: Vec::new() })
    }
}

impl Misbehave {
    /// What every question can do wrong.
    fn fail(&mut self) {
        match self.behave {
            Behave::Loop => loop {
                std::hint::spin_loop();
            },
            Behave::Trap => panic!("a trap on purpose"),
            Behave::Hog => loop {
                self.kept.push(vec![1; 1 << 20]);
            },
            Behave::Slow => {
                for step in 0..1_000_000_u32 {
                    std::hint::black_box(step);
                }
            }
            #[cfg(feature = "kv")]
            Behave::FloodKv => {
                for index in 0..200_u64 {
                    let _ = tidegate_sdk::kv::set(&format!("{}-{index}", self.asked), &[7; 1000], None);
                }
            }
            Behave::FloodLog => {
                for index in 0..2000 {
                    log(Level::Error, &format!("a flood: {index}"));
                }
            }
            Behave::Recurse => {
                std::hint::black_box(recurse(self.asked));
            }
            Behave::Work => {
                let mut sum = self.asked;
                for index in 0..self.work {
                    sum = std::hint::black_box(sum.wrapping_add(index));
                }
            }
            _ => {}
        }
    }
}

/// Deeper than any stack.
#[inline(never)]
#[allow(unconditional_recursion, reason = "that is what it is for")]
fn recurse(depth: u64) -> u64 {
    let block = std::hint::black_box([depth; 32]);
    recurse(depth.wrapping_add(block[7])).wrapping_add(block[3])
}

/// How often `secret`, unmasked, is in the linear memory: everything that an instance has.
#[cfg(target_arch = "wasm32")]
fn find(secret: &[u8]) -> usize {
    let end = core::arch::wasm32::memory_size(0) * 65_536;
    let mut found = 0;
    // Not from nought: a pointer to it is none.
    for at in 8..end - secret.len() {
        // SAFETY: every address below the memory's size can be read. Volatile: the compiler must not know better.
        let byte = |offset: usize| unsafe { core::ptr::read_volatile((at + offset) as *const u8) };
        if (0..secret.len()).all(|offset| byte(offset) == secret[offset] ^ MASK) {
            found += 1;
        }
    }
    found
}

#[cfg(not(target_arch = "wasm32"))]
fn find(_: &[u8]) -> usize {
    0
}

/// What is searched for is never in memory as such before it is put there.
const MASK: u8 = 0x5a;

impl Router for Misbehave {
    fn route(&mut self, request: &Request, forward: &mut Forward) -> Route {
        self.asked += 1;
        self.fail();
        let respond = |status, headers| Route::Respond(Response { status, headers, body: Vec::new() });
        match self.behave {
            Behave::TrapOnPath if request.path().starts_with("/trap") => panic!("a trap on purpose"),
            Behave::UnknownCluster => Route::Forward("nowhere".to_owned()),
            Behave::BadStatus => respond(999, Vec::new()),
            Behave::BadField => respond(200, vec![("transfer-encoding".to_owned(), b"chunked\r\nx: y".to_vec())]),
            Behave::Forward => Route::Forward(self.to.clone()),
            Behave::Huge => Route::Respond(Response { status: 200, headers: Vec::new(), body: vec![b'x'; 1 << 20] }),
            Behave::Enormous => {
                Route::Respond(Response { status: 200, headers: Vec::new(), body: vec![b'x'; 3 << 20] })
            }
            #[cfg(feature = "kv")]
            Behave::CountKv => {
                let count = tidegate_sdk::kv::increment("asked", 1, None).unwrap_or(-1);
                let _ = forward.set_response_header("x-asked", count.to_string().as_bytes());
                Route::Pass
            }
            Behave::Remember => {
                let found = request.header_bytes("x-secret").map_or(0, |secret| {
                    // It came masked, so that what the host wrote here is not what is searched for.
                    let found = find(&secret);
                    let bare: Vec<u8> = secret.iter().map(|byte| byte ^ MASK).collect();
                    for _ in 0..1000 {
                        self.kept.push(bare.clone());
                    }
                    found
                });
                let _ = forward.set_response_header("x-found", found.to_string().as_bytes());
                Route::Pass
            }
            Behave::Count => {
                let _ = forward.set_response_header("x-asked", self.asked.to_string().as_bytes());
                let _ = request.path();
                Route::Pass
            }
            _ => Route::Pass,
        }
    }
}

impl Balancer for Misbehave {
    fn pick(&mut self, _: &Request, endpoints: &Endpoints) -> Choice {
        self.fail();
        match self.behave {
            Behave::OutOfRange => Choice::Endpoint(endpoints.size() + 1000),
            Behave::Unavailable => (0..endpoints.size())
                .find(|i| !endpoints.available(*i))
                .map_or(Choice::Endpoint(u32::MAX), Choice::Endpoint),
            _ => Choice::Pass,
        }
    }
}

#[cfg(not(feature = "balancer"))]
tidegate_sdk::router!(Misbehave);
#[cfg(feature = "balancer")]
tidegate_sdk::balancer!(Misbehave);
