//! Health checks of the virtual address at one backend. This host has that address too, and a connection to it would end here;
//! so checks connect to the backend's own, and their frames are rewritten where they leave and where they come back, below
//! this host's IP stack:
//!
//! ```text
//! checks   (egress)   marked, for X: the destination becomes the virtual address
//! answers  (ingress)  from X's MAC address, from the virtual address, for this host: the source becomes X again
//! ```
//!
//! Such a packet is what a client's would be: to the backend's MAC address, for the virtual address. What a backend lacks that
//! clients need, the address or a service on it, a check finds out.
//!
//! Backends that are down are checked too. One whose MAC address nobody knows yet gets no answers through; its checks make
//! the kernel ask for it.

use serde_json::{Value, json};

use super::{Batch, Plan, ip, l4proto, matches, payload, seed, set};
use crate::spec::Dsr;

/// Both chains on the interface of the backends.
const CHAINS: [(&str, &str); 2] = [("checks", "egress"), ("answers", "ingress")];

/// The mark of a steer's checks where nobody chose one: of its name, so that those of two steers, of two gateways even,
/// differ. Its second byte, where other programs have flags of theirs (Kubernetes' 0x4000 and 0x8000), is left alone.
pub fn usual_mark(steer: &str) -> u32 {
    0x7d00_0000 | (seed(steer) & 0x00ff_00ff)
}

pub(super) fn fill(batch: &mut Batch<'_>, plan: &Plan, dsr: &Dsr, kept: Option<&Plan>) {
    let Some(mark) = dsr.check_mark else { return };
    for (name, hook) in CHAINS {
        match kept {
            Some(_) => batch.empty(name),
            None => {
                let chain = json!({
                    "name": name, "type": "filter", "hook": hook, "dev": dsr.endpoint_interface, "prio": 0, "policy": "accept",
                });
                batch.command("add", "chain", chain);
            }
        }
    }
    let (steer, header) = (&*plan.steer, ip(plan.steer.address));
    let is = |field: &str, address: std::net::IpAddr| matches(payload(header, field), address.to_string());
    let becomes = |field: &str, address: std::net::IpAddr| set(payload(header, field), address.to_string());
    let tcp = || matches(l4proto(), "tcp");
    for backend in &plan.backends {
        let own = backend.address.ip();
        let marked = matches(json!({ "meta": { "key": "mark" } }), mark);
        batch.marked_rule("checks", steer, [marked, is("daddr", own), tcp(), becomes("daddr", steer.address)]);
        let (Some(mac), Some(seen_as)) = (backend.mac, backend.seen_as) else { continue };
        let from: Value = matches(payload("ether", "saddr"), mac.to_string());
        let answer = [from, is("saddr", steer.address), is("daddr", seen_as), tcp(), becomes("saddr", own)];
        batch.marked_rule("answers", steer, answer);
    }
}
