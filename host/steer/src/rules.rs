//! From a plan to a transaction of `nft`, in its JSON (libnftables-json(5)). Pure: what is in the kernel is what the plan
//! before said.
//!
//! Everything of a steer is in one table of its name. A change empties the chains and fills them anew, within one
//! transaction: each packet meets the old rules or the new ones. What counts and what remembers stays. Objects of a backend
//! carry its address in their names, as in `received_10.0.0.7_80`.
//!
//! Our own JSON rather than the types of the `nftables` crate: those cut counters off at 32 bits, and write elements with a
//! timeout as if they had a counter.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde_json::{Value, json};
use tidegate_policy::native::maglev_table;

use crate::nft::TableName;
use crate::spec::{Affinity, Backend, Mac, Mode, Protocol, Role, Steer};

mod checks;
mod dsr;
mod nat;
#[cfg(test)]
mod tests;

pub use checks::usual_mark;

/// All that rules are made of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    pub steer: Arc<Steer>,
    pub backends: Vec<Backend>,
    /// Of this host's interface to the backends; needed for DSR.
    pub own_mac: Option<Mac>,
    /// The indices of the interfaces where packets come in and where the backends are, for DSR. With an interface the kernel
    /// forgets the chains on it.
    pub interfaces: Option<[i32; 2]>,
}

impl Plan {
    pub fn table(&self) -> TableName {
        TableName::of(&self.steer)
    }

    /// Backends that packets may go to.
    fn serving(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter().filter(|backend| backend.role.serves())
    }
}

/// What `nft` is to do so that `plan` is in force: after `before`, or from nothing, which replaces whatever has the name.
pub fn transaction(plan: &Plan, before: Option<&Plan>) -> Vec<Value> {
    let table = plan.table();
    let mut batch = Batch { table: &table, commands: Vec::new() };
    let kept = before.filter(|before| before.steer == plan.steer && before.interfaces == plan.interfaces);
    if kept.is_none() {
        let gone = before.map(Plan::table).filter(|gone| *gone != table);
        batch.commands.extend(removal(gone.iter().chain([&table])));
        batch.commands.push(json!({ "add": { "table": table.json() } }));
    }
    match &plan.steer.mode {
        Mode::Nat(nat) => nat::fill(&mut batch, plan, nat, kept),
        Mode::Dsr(dsr) => dsr::fill(&mut batch, plan, dsr, kept),
    }
    batch.commands
}

/// Removes tables, whether they are there or not.
pub fn removal<'a>(tables: impl IntoIterator<Item = &'a TableName>) -> Vec<Value> {
    // Deleting what is not there would undo the transaction; adding what is there does nothing.
    let one = |table: &TableName| ["add", "delete"].map(|command| json!({ (command): { "table": table.json() } }));
    tables.into_iter().flat_map(one).collect()
}

/// Counters of a backend, by their names: flows that it was chosen for; packets to it; packets from it, in NAT.
pub fn counters(backend: SocketAddr) -> [String; 3] {
    ["flows", "received", "sent"].map(|kind| named(kind, backend))
}

/// Packets that no backend could take.
pub(crate) const UNSERVED: &str = "unserved";

fn named(kind: &str, backend: SocketAddr) -> String {
    let address = backend.ip().to_string().replace(':', "-");
    format!("{kind}_{address}_{}", backend.port())
}

/// Commands for one table.
struct Batch<'a> {
    table: &'a TableName,
    commands: Vec<Value>,
}

impl Batch<'_> {
    fn command(&mut self, command: &str, kind: &str, mut object: Value) {
        object["family"] = self.table.family.into();
        object["table"] = self.table.name.as_str().into();
        self.commands.push(json!({ (command): { (kind): object } }));
    }

    fn chain(&mut self, name: &str) {
        self.command("add", "chain", json!({ "name": name }));
    }

    fn empty(&mut self, chain: &str) {
        self.command("flush", "chain", json!({ "name": chain }));
    }

    fn counter(&mut self, name: &str) {
        self.command("add", "counter", json!({ "name": name }));
    }

    fn delete(&mut self, kind: &str, name: &str) {
        self.command("delete", kind, json!({ "name": name }));
    }

    fn rule(&mut self, chain: &str, statements: impl IntoIterator<Item = Value>) {
        let statements: Vec<Value> = statements.into_iter().collect();
        self.command("add", "rule", json!({ "chain": chain, "expr": statements }));
    }

    /// A rule that says whose it is.
    fn marked_rule(&mut self, chain: &str, steer: &Steer, statements: impl IntoIterator<Item = Value>) {
        let statements: Vec<Value> = statements.into_iter().collect();
        let comment = format!("tidegate: steer {}", steer.name);
        self.command("add", "rule", json!({ "chain": chain, "expr": statements, "comment": comment }));
    }

    /// Chains of serving backends and counters of all: new ones made, those that stay emptied.
    fn backends(&mut self, plan: &Plan, kept: Option<&Plan>, chains: &[&str], counters: &[&str]) {
        let known = |address: SocketAddr| backends(kept).any(|backend| backend.address == address);
        for backend in plan.backends.iter().filter(|backend| !known(backend.address)) {
            counters.iter().for_each(|kind| self.counter(&named(kind, backend.address)));
        }
        for backend in backends(kept).filter(|backend| backend.role.serves()) {
            chains.iter().for_each(|kind| self.empty(&named(kind, backend.address)));
        }
        for backend in plan.serving().filter(|backend| !serves(kept, backend.address)) {
            chains.iter().for_each(|kind| self.chain(&named(kind, backend.address)));
        }
    }

    /// After the last rule: what only backends needed that are gone.
    fn forget(&mut self, plan: &Plan, kept: Option<&Plan>, chains: &[&str], sets: &[&str], counters: &[&str]) {
        for backend in backends(kept) {
            if backend.role.serves() && !serves(Some(plan), backend.address) {
                chains.iter().for_each(|kind| self.delete("chain", &named(kind, backend.address)));
                sets.iter().for_each(|kind| self.delete("set", &named(kind, backend.address)));
            }
            if !plan.backends.iter().any(|known| known.address == backend.address) {
                counters.iter().for_each(|kind| self.delete("counter", &named(kind, backend.address)));
            }
        }
    }
}

fn backends(plan: Option<&Plan>) -> impl Iterator<Item = &Backend> {
    plan.into_iter().flat_map(|plan| &plan.backends)
}

fn serves(plan: Option<&Plan>, address: SocketAddr) -> bool {
    backends(plan).any(|backend| backend.address == address && backend.role.serves())
}

/// Every entry of Maglev's table leads to the chain `kind` of a backend; `None` where nobody takes new flows.
fn choice(plan: &Plan, kind: &str) -> Option<Value> {
    let takers: Vec<(SocketAddr, u32)> = plan
        .backends
        .iter()
        .filter_map(|backend| match backend.role {
            Role::Takes(weight) => Some((backend.address, weight)),
            Role::Drains | Role::Down => None,
        })
        .collect();
    let table = maglev_table(&takers, plan.steer.table);
    if table.is_empty() {
        return None;
    }
    let names: Vec<String> = takers.iter().map(|(address, _)| named(kind, *address)).collect();
    let entries: Vec<Value> =
        table.iter().enumerate().map(|(entry, taker)| json!([entry, goto(&names[*taker as usize])])).collect();
    let source = payload(ip(plan.steer.address), "saddr");
    let hashed = match plan.steer.affinity {
        Affinity::Connection => json!({ "concat": [source, payload("th", "sport")] }),
        Affinity::Client => source,
    };
    let hash = json!({ "jhash": { "mod": table.len(), "seed": seed(&plan.steer.name), "expr": hashed } });
    Some(json!({ "vmap": { "key": hash, "data": { "set": entries } } }))
}

/// Of the name alone, so that several gateways choose alike (FNV-1a, 32 bits).
fn seed(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The header's name.
fn ip(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

/// Writes into a header.
fn set(key: Value, value: impl Into<Value>) -> Value {
    json!({ "mangle": { "key": key, "value": value.into() } })
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

fn l4proto() -> Value {
    json!({ "meta": { "key": "l4proto" } })
}

fn matches(left: Value, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": "==", "left": left, "right": right.into() } })
}

fn goto(chain: &str) -> Value {
    json!({ "goto": { "target": chain } })
}

fn count(name: &str) -> Value {
    json!({ "counter": name })
}

fn drop() -> Value {
    json!({ "drop": null })
}

fn protocols(protocols: &[Protocol]) -> Value {
    json!({ "set": protocols.iter().map(|protocol| protocol.name()).collect::<Vec<_>>() })
}

fn ports(ports: &[RangeInclusive<u16>]) -> Value {
    let one = |ports: &RangeInclusive<u16>| match (*ports.start(), *ports.end()) {
        (first, last) if first == last => json!(first),
        (first, last) => json!({ "range": [first, last] }),
    };
    json!({ "set": ports.iter().map(one).collect::<Vec<_>>() })
}
