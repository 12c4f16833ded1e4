//! What guests import: a file per interface of `wit/`. Plain functions that read the question at hand; a fact that does
//! not belong to it reads as absent, empty or zero.

use wasmtime::component::{Linker, LinkerInstance};

use crate::prepared::{Granted, Http};
use crate::state::State;
use crate::stats::QUESTIONS;

mod attempt;
mod clock;
mod connection;
mod endpoints;
mod forward;
mod http_client;
mod identity;
mod kv;
mod log;
mod metrics;
mod random;
mod request;

pub(crate) use clock::{monotonic, nanos};
pub use log::one_line;

type Instance<'a> = LinkerInstance<'a, State>;
type Link = fn(&mut Instance<'_>) -> wasmtime::Result<()>;

/// An interface that can be imported, and the questions it belongs to: route, pick, identify, decide, tunnel.
pub(crate) struct Interface {
    pub(crate) name: &'static str,
    pub(crate) questions: [bool; QUESTIONS.len()],
    link: Link,
}

const EVERY: [bool; QUESTIONS.len()] = [true; QUESTIONS.len()];

/// As the worlds of `wit/worlds.wit` have it.
pub(crate) const INTERFACES: [Interface; 13] = [
    Interface { name: "types", questions: EVERY, link: |_| Ok(()) },
    Interface { name: "log", questions: EVERY, link: log::link },
    Interface { name: "clock", questions: EVERY, link: clock::link },
    Interface { name: "random", questions: EVERY, link: random::link },
    Interface { name: "metrics", questions: EVERY, link: metrics::link },
    Interface { name: "kv", questions: EVERY, link: kv::link },
    Interface { name: "http-client", questions: [true, true, true, true, false], link: http_client::link },
    Interface { name: "connection", questions: [true, true, true, false, true], link: connection::link },
    Interface { name: "request", questions: [true, true, true, true, false], link: request::link },
    Interface { name: "forward", questions: [true, false, false, false, false], link: forward::link },
    Interface { name: "endpoints", questions: [false, true, false, true, false], link: endpoints::link },
    Interface { name: "identity", questions: [false, false, true, false, false], link: identity::link },
    Interface { name: "attempt", questions: [false, false, false, true, false], link: attempt::link },
];

/// The name under which an interface of the contract is imported or exported.
pub(crate) fn full_name(interface: &str) -> String {
    format!("tidegate:policy/{interface}@0.1.0")
}

/// The interfaces of the contract that need a grant.
pub(crate) const KV: &str = "kv";
pub(crate) const HTTP_CLIENT: &str = "http-client";

/// Links the interfaces that belong to any of these questions, as far as they were granted.
pub(crate) fn link(
    linker: &mut Linker<State>,
    questions: [bool; QUESTIONS.len()],
    granted: Granted,
) -> wasmtime::Result<()> {
    for interface in &INTERFACES {
        let link = match (interface.name, granted.http) {
            (KV, _) if !granted.kv => continue,
            (HTTP_CLIENT, Http::No) => continue,
            (HTTP_CLIENT, Http::WithoutWaits) => http_client::link_without_waits,
            _ => interface.link,
        };
        if interface.questions.iter().zip(questions).any(|(belongs, asked)| *belongs && asked) {
            link(&mut linker.instance(&full_name(interface.name))?)?;
        }
    }
    Ok(())
}
