//! Plans and what `nft` is told of them: a file of `tests/golden` each, a command a line. `TIDEGATE_GOLDEN=write` writes
//! them anew.

use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::spec::{Dsr, Nat, Source};

fn golden(name: &str, commands: &[Value]) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.jsonl"));
    let lines: String = commands.iter().map(|command| format!("{command}\n")).collect();
    if std::env::var_os("TIDEGATE_GOLDEN").is_some_and(|wish| wish == "write") {
        std::fs::write(&file, &lines).expect("written");
    }
    let text = std::fs::read_to_string(&file).expect("the golden file");
    let wanted: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    // Compared as values: the order of keys is whatever features serde_json was built with.
    for (line, (found, wanted)) in commands.iter().zip(&wanted).enumerate() {
        assert_eq!(found, wanted, "{name}.jsonl:{}", line + 1);
    }
    assert_eq!(commands.len(), wanted.len(), "{name}.jsonl has another number of commands");
}

fn nat(address: &str, ports: &[RangeInclusive<u16>]) -> Steer {
    Steer {
        name: "web".to_owned(),
        address: address.parse().expect("an address"),
        protocols: vec![Protocol::Tcp],
        ports: ports.to_vec(),
        affinity: Affinity::Connection,
        table: 7,
        mode: Mode::Nat(Nat { interface: None, source: Source::Keep }),
    }
}

fn dsr(address: &str) -> Steer {
    let mode = Dsr {
        interface: "eth0".to_owned(),
        endpoint_interface: "eth1".to_owned(),
        flows: 65_536,
        flow_timeout: Duration::from_secs(300),
        check_mark: None,
    };
    Steer {
        protocols: vec![Protocol::Tcp, Protocol::Udp],
        mode: Mode::Dsr(mode),
        ..nat(address, &[80..=80, 8000..=8010])
    }
}

fn plan(steer: Steer, backends: &[(&str, Role)]) -> Plan {
    let backends = backends.iter().enumerate().map(|(index, (address, role))| Backend {
        address: address.parse().expect("an address"),
        role: *role,
        mac: Some(Mac([2, 0, 0, 0, 0, index as u8 + 1])),
        seen_as: None,
    });
    Plan {
        steer: Arc::new(steer),
        backends: backends.collect(),
        own_mac: Some(Mac([2, 0, 0, 0, 1, 0])),
        interfaces: Some([2, 3]),
    }
}

const ONE: &str = "10.0.0.1:8080";
const TWO: &str = "10.0.0.2:8080";
const THREE: &str = "10.0.0.3:8080";

#[test]
fn nat_from_nothing() {
    let plan = plan(nat("192.0.2.1", &[80..=80]), &[(ONE, Role::Takes(1)), (TWO, Role::Takes(2)), (THREE, Role::Down)]);
    golden("nat", &transaction(&plan, None));
}

#[test]
fn nat_changes_within_one_transaction() {
    let before = plan(nat("192.0.2.1", &[80..=80]), &[(ONE, Role::Takes(1)), (TWO, Role::Takes(1))]);
    let after = plan(nat("192.0.2.1", &[80..=80]), &[(ONE, Role::Drains), (TWO, Role::Down), (THREE, Role::Takes(1))]);
    golden("nat_change", &transaction(&after, Some(&before)));
}

#[test]
fn nat_of_ranges_over_ipv6_from_the_gateway() {
    let steer = Steer {
        protocols: vec![Protocol::Tcp, Protocol::Udp],
        affinity: Affinity::Client,
        mode: Mode::Nat(Nat { interface: Some("eth0".to_owned()), source: Source::Gateway }),
        ..nat("2001:db8::1", &[53..=53, 8000..=8010])
    };
    golden("nat_ipv6", &transaction(&plan(steer, &[("[fd00::1]:53", Role::Takes(1))]), None));
}

#[test]
fn dsr_from_nothing() {
    let plan = plan(dsr("192.0.2.1"), &[(ONE, Role::Takes(1)), (TWO, Role::Drains)]);
    golden("dsr", &transaction(&plan, None));
}

#[test]
fn dsr_changes_and_keeps_what_it_remembers() {
    let before = plan(dsr("2001:db8::1"), &[("[fd00::1]:80", Role::Takes(1)), ("[fd00::2]:80", Role::Takes(1))]);
    let after = plan(dsr("2001:db8::1"), &[("[fd00::1]:80", Role::Takes(1)), ("[fd00::3]:80", Role::Takes(1))]);
    let commands = transaction(&after, Some(&before));
    golden("dsr_change", &commands);
    let of_set = |command: &&Value| command["add"]["set"].is_object() || command["delete"]["set"].is_object();
    let sets: Vec<&Value> = commands.iter().filter(of_set).collect();
    assert_eq!(sets.len(), 2, "the set of who stays is not touched: {sets:?}");
}

/// A plan whose checks go to the virtual address.
fn checked(mut plan: Plan) -> Plan {
    let mut steer = (*plan.steer).clone();
    let own = if steer.address.is_ipv4() { "10.0.0.100" } else { "fd00::100" };
    if let Mode::Dsr(dsr) = &mut steer.mode {
        dsr.check_mark = Some(0x7d00_0001);
    }
    plan.steer = Arc::new(steer);
    plan.backends.iter_mut().for_each(|backend| backend.seen_as = own.parse().ok());
    plan
}

#[test]
fn checks_reach_the_virtual_address_at_who_is_down_too() {
    let mut plan = checked(plan(dsr("192.0.2.1"), &[(ONE, Role::Takes(1)), (TWO, Role::Down), (THREE, Role::Down)]));
    plan.backends[2].mac = None;
    golden("dsr_checks", &transaction(&plan, None));
}

#[test]
fn checks_change_with_the_backends() {
    let before = checked(plan(dsr("2001:db8::1"), &[("[fd00::1]:80", Role::Takes(1))]));
    let after = checked(plan(dsr("2001:db8::1"), &[("[fd00::1]:80", Role::Down), ("[fd00::2]:80", Role::Takes(1))]));
    golden("dsr_checks_change", &transaction(&after, Some(&before)));
}

#[test]
fn nobody_serves() {
    golden("nobody", &transaction(&plan(dsr("192.0.2.1"), &[(ONE, Role::Down)]), None));
}

#[test]
fn another_steer_of_the_name_replaces_the_first_in_whatever_family() {
    let before = plan(nat("192.0.2.1", &[80..=80]), &[(ONE, Role::Takes(1))]);
    let commands = transaction(&plan(dsr("192.0.2.1"), &[(ONE, Role::Takes(1))]), Some(&before));
    let deleted: Vec<&Value> = commands.iter().filter_map(|command| command["delete"].get("table")).collect();
    assert_eq!(
        deleted,
        [&json!({ "family": "ip", "name": "tidegate_web" }), &json!({ "family": "netdev", "name": "tidegate_web" })]
    );
}

#[test]
fn an_interface_that_was_made_anew_gets_its_chain_again() {
    let before = plan(dsr("192.0.2.1"), &[(ONE, Role::Takes(1))]);
    for interfaces in [[4, 3], [2, 4]] {
        let after = Plan { interfaces: Some(interfaces), ..before.clone() };
        assert_eq!(transaction(&after, Some(&before)), transaction(&after, None));
    }
    assert_ne!(transaction(&before, Some(&before)), transaction(&before, None));
}

#[test]
fn every_entry_of_the_table_leads_somewhere_and_weights_count() {
    let steer = Steer { table: 4099, ..nat("192.0.2.1", &[80..=80]) };
    let choice = choice(&plan(steer, &[(ONE, Role::Takes(1)), (TWO, Role::Takes(3))]), "at").expect("backends");
    let entries = choice["vmap"]["data"]["set"].as_array().expect("entries");
    let of_one = entries.iter().filter(|entry| entry[1]["goto"]["target"] == "at_10.0.0.1_8080").count();
    assert_eq!(entries.len(), 4099);
    assert!((950..1100).contains(&of_one), "{of_one}");
}

/// `nft` and the kernel take each of these, one after another, in a network namespace of its own. Needs root; says so where
/// it is not to be had.
#[test]
fn the_kernel_takes_them() {
    let four = |steer: Steer| {
        let one = plan(steer.clone(), &[(ONE, Role::Takes(1)), (TWO, Role::Takes(2))]);
        let two = plan(steer.clone(), &[(ONE, Role::Drains), (TWO, Role::Down), (THREE, Role::Takes(1))]);
        let none = plan(steer, &[(ONE, Role::Down)]);
        vec![one.clone(), two.clone(), none, one, two]
    };
    let six = |steer: Steer| {
        let one = plan(steer.clone(), &[("[fd00::1]:80", Role::Takes(1)), ("[fd00::2]:80", Role::Takes(1))]);
        vec![one, plan(steer, &[("[fd00::2]:80", Role::Takes(1))])]
    };
    let wide = |steer: Steer| Steer {
        protocols: vec![Protocol::Tcp, Protocol::Udp],
        affinity: Affinity::Client,
        mode: Mode::Nat(Nat { interface: Some("eth0".to_owned()), source: Source::Gateway }),
        ..steer
    };
    let large = Steer { table: 65_537, ..dsr("192.0.2.1") };
    let named = Steer { name: "a-b.c_9".to_owned(), ..nat("192.0.2.1", &[1..=65_535]) };
    let plans = [
        four(nat("192.0.2.1", &[80..=80])),
        four(wide(nat("192.0.2.1", &[80..=80, 8000..=8010]))),
        four(dsr("192.0.2.1")),
        six(wide(nat("2001:db8::1", &[80..=80]))),
        six(dsr("2001:db8::1")),
        four(dsr("192.0.2.1")).into_iter().map(checked).collect(),
        six(dsr("2001:db8::1")).into_iter().map(checked).collect(),
        four(large).into_iter().take(2).collect(),
        four(named),
    ];
    let folder = std::env::temp_dir().join(format!("tidegate-steer-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut script = "ip link add eth0 type veth peer name eth1".to_owned();
    let mut before: Option<&Plan> = None;
    for (index, plan) in plans.iter().flatten().enumerate() {
        let file = folder.join(format!("{index}.json"));
        let commands = transaction(plan, before.filter(|before| before.steer.name == plan.steer.name));
        std::fs::write(&file, json!({ "nftables": commands }).to_string()).expect("written");
        script += &format!(" && echo {index} && nft -j -f {}", file.display());
        before = Some(plan);
    }
    script += " && nft list ruleset | grep -q unserved";
    let run = |script: &str| std::process::Command::new("unshare").args(["--net", "sh", "-c", script]).output();
    match run("nft list tables") {
        Ok(output) if output.status.success() => {
            let output = run(&script).expect("it ran a moment ago");
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success(), "after plan {said}");
        }
        _ => eprintln!("SKIPPED: no network namespaces or no nft here (they need root)"),
    }
    let _ = std::fs::remove_dir_all(&folder);
}
