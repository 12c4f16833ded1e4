//! One steer: its backends, its rules in the kernel, what went wrong.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_policy::{Endpoint, EndpointSet};
use tidegate_steer::nft::Counts;
use tidegate_steer::{
    Dsr, Mac, Member, Mode, Plan, Roster, Steer, TableName, conntrack, counters, neighbours, nft, transaction,
};

use super::Report;
use super::report::forwards;
use crate::compile::Steered;

pub(super) struct One {
    steered: Steered,
    roster: Roster,
    /// What is in the kernel.
    plan: Option<Plan>,
    pub(super) counts: Counts,
    pub(super) failure: Option<String>,
    retry: Option<Retry>,
    pub(super) applied: u64,
    pub(super) failed: u64,
    pub(super) moved: u64,
    /// Told once, not at every look.
    told: Option<String>,
}

struct Retry {
    at: Instant,
    pause: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long the flows of an endpoint that left are waited for with NAT, where the kernel remembers them by itself: all that
/// goes with it is their counting.
const NAT_SILENCE: Duration = Duration::from_secs(600);

impl One {
    pub(super) fn new(steered: Steered) -> Self {
        Self {
            steered,
            roster: Roster::default(),
            plan: None,
            counts: Counts::default(),
            failure: None,
            retry: None,
            applied: 0,
            failed: 0,
            moved: 0,
            told: None,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.steered.steer.name
    }

    pub(super) fn steer(&self) -> &Arc<Steer> {
        &self.steered.steer
    }

    pub(super) fn cluster(&self) -> &str {
        &self.steered.cluster.name
    }

    pub(super) fn roster(&self) -> &Roster {
        &self.roster
    }

    pub(super) fn installed(&self) -> bool {
        self.plan.is_some()
    }

    /// What is in the kernel.
    pub(super) fn table(&self) -> Option<TableName> {
        self.plan.as_ref().map(Plan::table)
    }

    pub(super) fn report(&self) -> Report {
        Report::of(self)
    }

    /// When a change that failed is tried again.
    pub(super) fn retry_in(&self, now: Instant) -> Option<Duration> {
        self.retry.as_ref().map(|retry| retry.at.saturating_duration_since(now))
    }

    /// Takes what the kernel counted. A table that is not there any more is installed with the next look.
    pub(super) fn count(&mut self, counts: impl FnOnce(&TableName) -> Option<Counts>) {
        let Some(plan) = &self.plan else { return };
        let table = plan.table();
        match counts(&table) {
            Some(counts) => self.counts = counts,
            None => {
                tracing::warn!(%table, "somebody removed the rules of a steer; putting them back");
                self.plan = None;
            }
        }
    }

    /// Follows the cluster, and changes the rules where they are not what they should be.
    pub(super) fn settle(&mut self, steered: &Steered, now: Instant) {
        let another = self.steered.steer != steered.steer;
        self.steered = steered.clone();
        if !another && self.retry.as_ref().is_some_and(|retry| retry.at > now) {
            return;
        }
        match self.follow(now) {
            Ok(()) => (self.failure, self.retry) = (None, None),
            Err(failure) => self.fail(failure, now),
        }
    }

    pub(super) fn fail(&mut self, failure: String, now: Instant) {
        self.failed += 1;
        if self.failure.as_ref() != Some(&failure) {
            tracing::error!(steer = self.name(), "cannot change the rules of a steer, and goes on trying: {failure}");
        }
        let pause = self.retry.as_ref().map_or(FIRST_PAUSE, |retry| (retry.pause * 2).min(LONGEST_PAUSE));
        self.retry = Some(Retry { at: now + pause, pause });
        self.failure = Some(failure);
    }

    fn follow(&mut self, now: Instant) -> Result<(), String> {
        let steer = self.steered.steer.clone();
        let cluster = self.steered.cluster.clone();
        let mut members = members(&cluster.set);
        let (own_mac, interface) = match &steer.mode {
            Mode::Nat(_) => (None, None),
            Mode::Dsr(dsr) => {
                let interface = neighbours::link(&dsr.interface).map_err(|error| error.to_string())?;
                (Some(self.find_macs(dsr, &mut members)?), Some(interface.index))
            }
        };
        self.roster.follow(&members, own_mac.is_some(), now);
        let silence = match &steer.mode {
            Mode::Nat(_) => NAT_SILENCE,
            Mode::Dsr(dsr) => dsr.flow_timeout,
        };
        let received = |backend: SocketAddr| {
            let [_, received, _] = counters(backend);
            self.counts.get(&received).map_or(0, |count| count.packets)
        };
        self.roster.expire(received, silence, now);
        let plan = Plan { steer, backends: self.roster.backends().to_vec(), own_mac, interface };
        if self.plan.as_ref() == Some(&plan) {
            return Ok(());
        }
        self.apply(plan)
    }

    fn apply(&mut self, plan: Plan) -> Result<(), String> {
        let before = self.plan.take();
        let mut applied = nft::apply(&transaction(&plan, before.as_ref()));
        if let (Err(error), Some(_)) = (&applied, &before) {
            // What is in the kernel may not be what was put there: once more, from nothing.
            tracing::warn!(steer = self.name(), "cannot change the rules of a steer, and replaces them: {error}");
            applied = nft::apply(&transaction(&plan, None));
        }
        if let Err(error) = applied {
            self.plan = before;
            return Err(error.to_string());
        }
        self.applied += 1;
        let roles: Vec<String> = plan.backends.iter().map(|b| format!("{} {}", b.address, b.role.name())).collect();
        tracing::info!(steer = self.name(), table = %plan.table(), backends = roles.join(", "), "steer installed");
        if before.is_none() && matches!(plan.steer.mode, Mode::Nat(_)) && !forwards(&plan.steer) {
            let setting =
                if plan.steer.address.is_ipv4() { "net.ipv4.ip_forward" } else { "net.ipv6.conf.all.forwarding" };
            tracing::warn!(steer = self.name(), "this host does not forward packets: set {setting} = 1");
        }
        if let Some(before) = &before {
            self.move_flows(&plan, &plan.fallen_since(before));
        }
        self.plan = Some(plan);
        Ok(())
    }

    /// With NAT the kernel goes on sending known flows to who is down. What fails here leaves them to their timeouts.
    fn move_flows(&mut self, plan: &Plan, fallen: &[SocketAddr]) {
        if fallen.is_empty() || !matches!(plan.steer.mode, Mode::Nat(_)) {
            return;
        }
        match conntrack::forget(&plan.steer, fallen) {
            Ok(moved) => {
                self.moved += moved;
                tracing::info!(steer = self.name(), moved, "flows of endpoints that are down begin anew");
            }
            Err(error) => {
                tracing::error!(steer = self.name(), %error, "flows of endpoints that are down stay with them");
            }
        }
    }

    /// Fills in the MAC addresses of members, and gives this host's own.
    fn find_macs(&mut self, dsr: &Dsr, members: &mut [Member]) -> Result<Mac, String> {
        let link = neighbours::link(&dsr.endpoint_interface).map_err(|error| error.to_string())?;
        for member in &mut *members {
            member.mac = self.steered.macs.get(&member.address).copied();
        }
        // Who is down is not asked after: it would be waited for at every look.
        let wanted: Vec<IpAddr> = members
            .iter()
            .filter(|member| member.mac.is_none() && member.well)
            .map(|member| member.address.ip())
            .collect();
        let known =
            neighbours::resolve(link, &wanted).map_err(|error| format!("cannot read the neighbours: {error}"))?;
        let mut missing = Vec::new();
        for member in members.iter_mut().filter(|member| member.mac.is_none() && member.well) {
            member.mac = known.get(&member.address.ip()).copied();
            if member.mac.is_none() {
                missing.push(member.address.ip().to_string());
            }
        }
        let missing = (!missing.is_empty()).then(|| missing.join(", "));
        if missing != self.told
            && let Some(missing) = &missing
        {
            let (steer, interface) = (self.name(), &dsr.endpoint_interface);
            tracing::warn!(steer, interface, "no MAC address to be found of {missing}: is it on this Ethernet?");
        }
        self.told = missing;
        Ok(link.mac)
    }
}

/// The endpoints as requests would see them: with too few healthy ones, health is not looked at.
fn members(set: &EndpointSet) -> Vec<Member> {
    let panic = set.panicking();
    let one = |endpoint: &Endpoint| Member {
        address: endpoint.address,
        weight: endpoint.weight,
        well: panic || endpoint.state.healthy(),
        mac: None,
    };
    set.endpoints.iter().map(one).collect()
}
