//! One steer: its backends, its rules in the kernel, what went wrong.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_policy::{Endpoint, EndpointSet};
use tidegate_steer::neighbours::Link;
use tidegate_steer::nft::Counts;
use tidegate_steer::{
    Dsr, Member, Mode, Plan, Roster, Steer, TableName, conntrack, counters, neighbours, nft, transaction,
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

    /// When to look at it again, if that is sooner than usual.
    pub(super) fn look_in(&self, now: Instant) -> Option<Duration> {
        match &self.retry {
            Some(retry) => Some(retry.at.saturating_duration_since(now)),
            None => self.awaits_neighbours().then_some(FIRST_PAUSE),
        }
    }

    /// Whether checks of a backend wait for its MAC address to become known.
    fn awaits_neighbours(&self) -> bool {
        matches!(&self.steered.steer.mode, Mode::Dsr(dsr) if dsr.check_mark.is_some())
            && self.roster.backends().iter().any(|backend| backend.mac.is_none())
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
        let (own_mac, interfaces) = match &steer.mode {
            Mode::Nat(_) => (None, None),
            Mode::Dsr(dsr) => {
                let link = |name: &str| neighbours::link(name).map_err(|error| error.to_string());
                let (into, out) = (link(&dsr.interface)?, link(&dsr.endpoint_interface)?);
                self.find_neighbours(dsr, out, &mut members)?;
                (Some(out.mac), Some([into.index, out.index]))
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
        let plan = Plan { steer, backends: self.roster.backends().to_vec(), own_mac, interfaces };
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

    /// Fills in what has to be known of members on this Ethernet: their MAC addresses, and this host's address in their eyes.
    fn find_neighbours(&mut self, dsr: &Dsr, link: Link, members: &mut [Member]) -> Result<(), String> {
        let labelled = |member: &Member| self.steered.macs.get(&member.address).copied();
        // Who is down is not asked after: it would be waited for at every look. Its checks ask, where they go by its MAC.
        let wanted = members.iter().filter(|member| member.well && labelled(member).is_none());
        let wanted: Vec<IpAddr> = wanted.map(|member| member.address.ip()).collect();
        let known =
            neighbours::resolve(link, &wanted).map_err(|error| format!("cannot read the neighbours: {error}"))?;
        for member in &mut *members {
            let ip = member.address.ip();
            member.mac = labelled(member).or_else(|| known.get(&ip).copied());
            member.seen_as = dsr.check_mark.and_then(|_| neighbours::own_address(ip).ok());
        }
        let missing = members.iter().filter(|member| member.well && member.mac.is_none());
        let missing: Vec<String> = missing.map(|member| member.address.ip().to_string()).collect();
        let virtual_address = self.steered.steer.address;
        let astray = members.iter().any(|member| member.seen_as == Some(virtual_address));
        let problem = if !missing.is_empty() {
            let (missing, interface) = (missing.join(", "), &dsr.endpoint_interface);
            Some(format!("no MAC address to be found of {missing}: is it on the Ethernet of {interface}?"))
        } else if astray {
            Some(format!(
                "connections of this host, health checks too, come from the virtual address, which endpoints have \
                 themselves: give it here as {virtual_address}/{} with preferred_lft 0",
                if virtual_address.is_ipv4() { 32 } else { 128 }
            ))
        } else {
            None
        };
        if problem != self.told
            && let Some(problem) = &problem
        {
            tracing::warn!(steer = self.name(), "{problem}");
        }
        self.told = problem;
        Ok(())
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
        seen_as: None,
    };
    set.endpoints.iter().map(one).collect()
}
