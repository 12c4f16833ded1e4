//! NAT pass-through: connection tracking remembers who serves a flow, and turns replies around.
//!
//! ```text
//! choose  (prerouting, destination NAT)  first packet of a flow for the virtual address → steer
//! steer                                  hash → table → at_X
//! at_X                                   count the flow, rewrite its destination
//! source  (postrouting, source NAT)      where `source = "gateway"`
//! count   (prerouting, after NAT)        packets both ways → received_X, sent_X
//! ```

use serde_json::{Value, json};

use super::{Batch, Plan, UNSERVED, choice, count, drop, goto, ip, l4proto, matches, named, payload, ports};
use crate::spec::{Nat, Protocol, Source, Steer};

const CHAINS: [&str; 3] = ["at", "received", "sent"];
const COUNTERS: [&str; 3] = ["flows", "received", "sent"];

pub(super) fn fill(batch: &mut Batch<'_>, plan: &Plan, nat: &Nat, kept: Option<&Plan>) {
    let steer = &*plan.steer;
    if kept.is_none() {
        batch.counter(UNSERVED);
        batch.chain("steer");
        // The places where nftables has them: priorities dstnat, srcnat, and filter, which is after dstnat.
        for (name, kind, hook, priority) in [
            ("choose", "nat", "prerouting", -100),
            ("source", "nat", "postrouting", 100),
            ("count", "filter", "prerouting", 0),
        ] {
            let chain = json!({ "name": name, "type": kind, "hook": hook, "prio": priority, "policy": "accept" });
            batch.command("add", "chain", chain);
        }
    } else {
        ["choose", "source", "count", "steer"].iter().for_each(|chain| batch.empty(chain));
    }
    batch.backends(plan, kept, &CHAINS, &COUNTERS);
    for protocol in &steer.protocols {
        let interface =
            nat.interface.iter().map(|name| matches(json!({ "meta": { "key": "iifname" } }), name.as_str()));
        let packets = [
            matches(payload(ip(steer.address), "daddr"), steer.address.to_string()),
            matches(l4proto(), protocol.name()),
            matches(payload(protocol.name(), "dport"), ports(&steer.ports)),
            goto("steer"),
        ];
        batch.marked_rule("choose", steer, interface.chain(packets));
        // A flow is told by how it began, not by where the packet is going: both ways it has the same conntrack entry.
        let backend = if steer.translates_ports() {
            json!({ "concat": [tuple("reply", &address_of(steer, "saddr")), tuple("reply", "proto-src")] })
        } else {
            tuple("reply", &address_of(steer, "saddr"))
        };
        for (direction, kind) in [("original", "received"), ("reply", "sent")] {
            let serving = plan.serving().map(|backend| {
                let address = backend.address.ip().to_string();
                let key = if steer.translates_ports() {
                    json!({ "concat": [address, backend.address.port()] })
                } else {
                    json!(address)
                };
                json!([key, goto(&named(kind, backend.address))])
            });
            let serving: Vec<Value> = serving.collect();
            if serving.is_empty() {
                continue;
            }
            let by_backend = json!({ "vmap": { "key": backend, "data": { "set": serving } } });
            let way = matches(json!({ "ct": { "key": "direction" } }), direction);
            batch.rule("count", flow(steer, *protocol).into_iter().chain([way, by_backend]));
        }
        if nat.source == Source::Gateway {
            let rewritten = json!({ "match": { "op": "in", "left": { "ct": { "key": "status" } }, "right": "dnat" } });
            batch.rule("source", flow(steer, *protocol).into_iter().chain([rewritten, json!({ "masquerade": null })]));
        }
    }
    match choice(plan, "at") {
        Some(choice) => batch.rule("steer", [choice]),
        // Dropped rather than refused: the client tries again, and there may be a backend by then.
        None => batch.rule("steer", [count(UNSERVED), drop()]),
    }
    for backend in plan.serving() {
        let [flows, received, sent] = super::counters(backend.address);
        let chain = named("at", backend.address);
        batch.rule(&chain, [count(&flows)]);
        let address = backend.address.ip().to_string();
        if steer.translates_ports() {
            // A port is of a protocol: nft wants to know which.
            for protocol in &steer.protocols {
                let to = json!({ "dnat": { "addr": address, "port": backend.address.port() } });
                batch.rule(&chain, [matches(l4proto(), protocol.name()), to]);
            }
        } else {
            batch.rule(&chain, [json!({ "dnat": { "addr": address } })]);
        }
        batch.rule(&named("received", backend.address), [count(&received)]);
        batch.rule(&named("sent", backend.address), [count(&sent)]);
    }
    batch.forget(plan, kept, &CHAINS, &[], &COUNTERS);
}

/// Packets of flows that began towards the virtual address.
fn flow(steer: &Steer, protocol: Protocol) -> [Value; 3] {
    [
        matches(l4proto(), protocol.name()),
        matches(tuple("original", &address_of(steer, "daddr")), steer.address.to_string()),
        matches(tuple("original", "proto-dst"), ports(&steer.ports)),
    ]
}

fn tuple(direction: &str, key: &str) -> Value {
    json!({ "ct": { "key": key, "dir": direction } })
}

fn address_of(steer: &Steer, field: &str) -> String {
    format!("{} {field}", ip(steer.address))
}
