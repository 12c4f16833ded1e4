//! `[[steer]]`: packets that the kernel sends on, by NAT or direct server return.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::cluster::is_prime;
use crate::reader::Section;

#[derive(Clone, Debug)]
pub struct Steer {
    pub line: usize,
    pub name: String,
    /// `None`: it was noted.
    pub address: Option<IpAddr>,
    pub ports: Vec<RangeInclusive<u16>>,
    pub tcp: bool,
    pub udp: bool,
    pub cluster: String,
    pub cluster_line: usize,
    pub mode: SteerMode,
    pub affinity: SteerAffinity,
    pub table: usize,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SteerMode {
    Nat {
        interface: Option<String>,
        /// The backend sees the client's address, or this host's.
        keep_source: bool,
    },
    Dsr {
        interface: String,
        endpoint_interface: String,
        flows: u32,
        flow_timeout: Duration,
        check: SteerCheck,
    },
}

/// Where health checks of an endpoint go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SteerCheck {
    EndpointAddress,
    /// With this mark for the kernel to know them by, or one made from the steer's name.
    VirtualAddress {
        mark: Option<u32>,
    },
}

/// What is hashed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SteerAffinity {
    Connection,
    Client,
}

impl Steer {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let name = section.label("name");
        if name.len() > 64 {
            section.error(section.line_of("name"), format!("steer: name = {name:?} is longer than 64 letters"));
        }
        let protocols = section.words("protocols", &["tcp", "udp"]);
        if section.texts("protocols").is_empty() {
            section.error(section.line_of("protocols"), "steer: protocols is empty; write \"tcp\", \"udp\" or both");
        }
        let table = section.number("table", 3, 131_071).unwrap_or(4099);
        if !is_prime(table) {
            section
                .error(section.line_of("table"), format!("steer: table = {table} is not a prime; 4099 and 65537 are"));
        }
        Self {
            line: section.line,
            name,
            address: address(section),
            ports: ports(section),
            tcp: protocols.iter().any(|word| word == "tcp"),
            udp: protocols.iter().any(|word| word == "udp"),
            cluster: section.name("cluster"),
            cluster_line: section.line_of("cluster"),
            mode: mode(section),
            affinity: match section.one_of("affinity").as_str() {
                "client" => SteerAffinity::Client,
                _ => SteerAffinity::Connection,
            },
            table: table as usize,
        }
    }

    /// One port, which NAT turns into the endpoint's own.
    pub fn single_port(&self) -> Option<u16> {
        match &*self.ports {
            [one] if one.start() == one.end() => Some(*one.start()),
            _ => None,
        }
    }

    /// Packets keep their port, so that an endpoint is known by its IP address alone.
    pub fn keeps_ports(&self) -> bool {
        matches!(self.mode, SteerMode::Dsr { .. }) || self.single_port().is_none()
    }

    pub(crate) fn meets(&self, other: &Self) -> bool {
        let ports = |one: &RangeInclusive<u16>, other: &RangeInclusive<u16>| {
            one.start() <= other.end() && other.start() <= one.end()
        };
        self.address.is_some()
            && self.address == other.address
            && ((self.tcp && other.tcp) || (self.udp && other.udp))
            && self.ports.iter().any(|one| other.ports.iter().any(|two| ports(one, two)))
    }
}

fn address(section: &Section<'_>) -> Option<IpAddr> {
    let address: IpAddr = section.parsed("address", "an IP address without a port, as in \"192.0.2.10\"")?;
    let wrong = if address.is_unspecified() || address.is_multicast() {
        "is nobody's: name the one that clients connect to"
    } else if address.is_loopback() {
        "never comes in from outside: name the one that clients connect to"
    } else {
        return Some(address);
    };
    section.error(section.line_of("address"), format!("steer: address = \"{address}\" {wrong}"));
    None
}

/// In order; none twice.
fn ports(section: &Section<'_>) -> Vec<RangeInclusive<u16>> {
    let mut ports: Vec<(RangeInclusive<u16>, usize)> = Vec::new();
    for (text, line) in section.texts("ports") {
        let bounds = text.split_once('-').unwrap_or((&text, &text));
        match (bounds.0.trim().parse::<u16>(), bounds.1.trim().parse::<u16>()) {
            (Ok(first @ 1..), Ok(last)) if first <= last => ports.push((first..=last, line)),
            _ => {
                let message = format!(
                    "steer: ports: {text:?} is neither a port, as in \"443\", nor a range, as in \"8000-8010\""
                );
                section.error(line, message);
            }
        }
    }
    if ports.is_empty() && section.has("ports") {
        section.error(section.line_of("ports"), "steer: ports is empty; one at least is needed");
    }
    ports.sort_by_key(|(range, _)| *range.start());
    for pair in ports.windows(2) {
        if pair[1].0.start() <= pair[0].0.end() {
            section.error(pair[1].1, format!("steer: ports has {} twice", pair[1].0.start()));
        }
    }
    ports.into_iter().map(|(range, _)| range).collect()
}

fn mode(section: &Section<'_>) -> SteerMode {
    let word = section.one_of("mode");
    for (key, only, why) in [
        ("source", "nat", "with direct server return every address stays as it is"),
        ("endpoint_interface", "dsr", "the kernel's routes say where the endpoints are"),
        ("flows", "dsr", "connection tracking remembers them: see net.netfilter.nf_conntrack_max"),
        (
            "flow_timeout",
            "dsr",
            "connection tracking has its own: see net.netfilter.nf_conntrack_tcp_timeout_established",
        ),
        ("check", "dsr", "the endpoint's own address is where clients' packets go"),
        ("check_mark", "dsr", "checks go to the endpoint's own address, unmarked"),
    ] {
        if section.has(key) && section.has("mode") && word != only {
            let message = format!("steer: {key} does not go with mode = {word:?}: {why}; remove it");
            section.error(section.line_of(key), message);
        }
    }
    let interface = interface(section, "interface");
    if word == "nat" {
        return SteerMode::Nat { interface, keep_source: section.one_of("source") == "keep" };
    }
    if interface.is_none() && word == "dsr" {
        let message =
            "steer: mode = \"dsr\" needs interface: the one where packets for the address come in, as in \"eth0\"";
        section.error(section.line, message);
    }
    let interface = interface.unwrap_or_default();
    let endpoint_interface = self::interface(section, "endpoint_interface").unwrap_or_else(|| interface.clone());
    let at_virtual_address = section.one_of("check") == "virtual_address";
    if section.has("check_mark") && !at_virtual_address {
        let message = "steer: check_mark marks checks of the virtual address, and check = \"endpoint_address\" asks for none: \
                       remove one of them";
        section.error(section.line_of("check_mark"), message);
    }
    let check = if at_virtual_address {
        let mark = section.has("check_mark").then(|| section.number("check_mark", 1, u64::from(u32::MAX))).flatten();
        SteerCheck::VirtualAddress { mark: mark.map(|mark| mark as u32) }
    } else {
        SteerCheck::EndpointAddress
    };
    SteerMode::Dsr {
        interface,
        endpoint_interface,
        flows: section.number("flows", 1, 16_777_216).unwrap_or(65_536) as u32,
        flow_timeout: section.time("flow_timeout").max(Duration::from_secs(1)),
        check,
    }
}

/// A name that Linux takes: 15 bytes, no slash, no space.
fn interface(section: &Section<'_>, key: &str) -> Option<String> {
    let name = section.text(key)?;
    if name.is_empty() || name.len() > 15 || name.bytes().any(|byte| byte <= b' ' || b"/\"\\".contains(&byte)) {
        section
            .error(section.line_of(key), format!("steer: {key} = {name:?} is no name of an interface, as in \"eth0\""));
    }
    Some(name)
}
