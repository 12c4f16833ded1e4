//! Direct server return: frames are sent on to a backend's MAC address, untouched above Ethernet, before this host's IP
//! stack sees them. The backend has the virtual address and answers the client itself.
//!
//! There is no connection tracking here, so each backend has a set of the flows it holds:
//!
//! ```text
//! ingress (of the interface)  packets for the virtual address → steer; ICMP errors → errors
//! steer                       hash → table → at_X, the backend a new flow would have
//! at_X                        held by X? keep_X. Held by another? elsewhere. Else X holds it from now on, briefly at first
//! elsewhere                   held by Y? keep_Y
//! keep_X                      held for longer → to_X
//! to_X                        count, rewrite the frame's addresses, send
//! ```
//!
//! An established flow costs one look as long as the table stays, and one for each backend only when it moved. A backend that
//! is down takes its set with it: its flows are new ones. A set that is full leaves flows to the table alone.
//!
//! Beside them, where checks of this host go to the virtual address: `super::checks`.

use serde_json::{Value, json};

use super::{
    Batch, Plan, UNSERVED, checks, choice, count, drop, goto, ip, l4proto, matches, named, payload, ports, protocols,
    serves, set,
};
use crate::spec::{Dsr, Steer};

const CHAINS: [&str; 3] = ["at", "keep", "to"];
const SETS: [&str; 1] = ["held"];
const COUNTERS: [&str; 2] = ["flows", "received"];

/// Seconds that a flow is held after its first packet. Floods of first packets go soon; a flow that lives sends another.
const FIRST: u64 = 30;

pub(super) fn fill(batch: &mut Batch<'_>, plan: &Plan, dsr: &Dsr, kept: Option<&Plan>) {
    let steer = &*plan.steer;
    let static_chains = ["steer", "elsewhere", "errors"];
    if kept.is_none() {
        batch.counter(UNSERVED);
        let hook = json!({
            "name": "ingress", "type": "filter", "hook": "ingress", "dev": dsr.interface, "prio": 0, "policy": "accept",
        });
        batch.command("add", "chain", hook);
        static_chains.iter().for_each(|chain| batch.chain(chain));
    } else {
        batch.empty("ingress");
        static_chains.iter().for_each(|chain| batch.empty(chain));
    }
    batch.backends(plan, kept, &CHAINS, &COUNTERS);
    let source = if steer.address.is_ipv4() { "ipv4_addr" } else { "ipv6_addr" };
    for backend in plan.serving().filter(|backend| !serves(kept, backend.address)) {
        let held = json!({
            "name": named("held", backend.address),
            "type": [source, "inet_proto", "inet_service", "inet_service"],
            "flags": ["timeout"],
            "size": dsr.flows,
        });
        batch.command("add", "set", held);
    }

    let to_address = matches(payload(ip(steer.address), "daddr"), steer.address.to_string());
    let packets = [
        to_address.clone(),
        matches(l4proto(), protocols(&steer.protocols)),
        matches(payload("th", "dport"), ports(&steer.ports)),
        goto("steer"),
    ];
    batch.marked_rule("ingress", steer, packets);
    // What a router says of a reply (RFC 1191, RFC 8201) is for the backend that sent it, which only the packet within tells:
    // all get a copy, and those that do not know the flow ignore it.
    let error = match steer.address.is_ipv4() {
        true => matches(payload("icmp", "type"), "destination-unreachable"),
        false => matches(payload("icmpv6", "type"), json!({ "set": ["destination-unreachable", "packet-too-big"] })),
    };
    batch.marked_rule("ingress", steer, [to_address, error, goto("errors")]);

    match choice(plan, "at") {
        Some(choice) => batch.rule("steer", [choice]),
        None => {
            batch.rule("steer", [json!({ "jump": { "target": "elsewhere" } })]);
            batch.rule("steer", [count(UNSERVED), drop()]);
        }
    }
    let out = dsr.endpoint_interface.as_str();
    for backend in plan.serving() {
        let [flows, received, _] = super::counters(backend.address);
        let [at, keep, to, held] = ["at", "keep", "to", "held"].map(|kind| named(kind, backend.address));
        let is_held = || matches(flow(steer), format!("@{held}"));
        let hold = |seconds: u64| json!({ "set": { "op": "update", "elem": { "elem": { "val": flow(steer), "timeout": seconds } }, "set": format!("@{held}") } });
        let timeout = dsr.flow_timeout.as_secs().max(1);
        batch.rule("elsewhere", [is_held(), goto(&keep)]);
        batch.rule(&at, [is_held(), goto(&keep)]);
        batch.rule(&at, [json!({ "jump": { "target": "elsewhere" } })]);
        // Rules of their own: what has no room ends its rule, not the packet's way.
        batch.rule(&at, [hold(FIRST.min(timeout))]);
        batch.rule(&at, [count(&flows), goto(&to)]);
        batch.rule(&keep, [hold(timeout)]);
        batch.rule(&keep, [goto(&to)]);
        let (Some(mac), Some(own)) = (backend.mac, plan.own_mac) else {
            // Never to be seen: a backend without one is down (`Roster`).
            batch.rule(&to, [count(UNSERVED), drop()]);
            continue;
        };
        // The source too: else the switch would learn the client's address at this host's port.
        let frame = [("saddr", own), ("daddr", mac)].map(|(field, mac)| set(payload("ether", field), mac.to_string()));
        batch.rule("errors", frame.clone().into_iter().chain([json!({ "dup": { "addr": out } })]));
        batch.rule(&to, [count(&received)].into_iter().chain(frame).chain([json!({ "fwd": { "dev": out } })]));
    }
    checks::fill(batch, plan, dsr, kept);
    // The copies are gone; the packet goes on to this host, which may have connections on the address itself.
    batch.forget(plan, kept, &CHAINS, &SETS, &COUNTERS);
}

/// What tells a flow from others for the same virtual address.
fn flow(steer: &Steer) -> Value {
    let source = payload(ip(steer.address), "saddr");
    json!({ "concat": [source, l4proto(), payload("th", "sport"), payload("th", "dport")] })
}
