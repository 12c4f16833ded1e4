//! The program `nft`: one run is one transaction. Everything here blocks for some milliseconds.

use std::collections::HashMap;
use std::path::Path;

use nftables::helper::{DEFAULT_ARGS, NftablesError, apply_ruleset_raw, get_current_ruleset_raw};
use serde_json::{Value, json};

use crate::spec::{Mode, Steer};

/// A table of ours: all that a steer installs is in it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct TableName {
    /// `ip`, `ip6` or `netdev`.
    pub family: &'static str,
    pub name: String,
}

const PREFIX: &str = "tidegate_";
const FAMILIES: [&str; 3] = ["ip", "ip6", "netdev"];

impl TableName {
    pub fn of(steer: &Steer) -> Self {
        let family = match &steer.mode {
            Mode::Dsr(_) => "netdev",
            Mode::Nat(_) if steer.address.is_ipv4() => "ip",
            Mode::Nat(_) => "ip6",
        };
        Self { family, name: format!("{PREFIX}{}", steer.name) }
    }

    /// The steer's name.
    pub fn steer(&self) -> &str {
        self.name.strip_prefix(PREFIX).unwrap_or_default()
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "family": self.family, "name": self.name })
    }
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("steering needs the program nft, which cannot be run: install the package nftables ({0})")]
    Missing(std::io::Error),
    #[error(
        "steering needs CAP_NET_ADMIN, which nft must inherit (with systemd: AmbientCapabilities=CAP_NET_ADMIN): {0}"
    )]
    NotPermitted(String),
    #[error("nft refused it: {0}")]
    Refused(String),
    #[error("nft said something that is not understood: {0}")]
    Unintelligible(String),
}

impl From<NftablesError> for NftError {
    fn from(error: NftablesError) -> Self {
        match error {
            NftablesError::NftExecution { inner, .. } => Self::Missing(inner),
            NftablesError::NftFailed { stderr, stdout, .. } => {
                let said: Vec<&str> =
                    stderr.lines().chain(stdout.lines()).filter(|line| !line.trim().is_empty()).collect();
                let said = said.join("; ");
                if said.contains("Operation not permitted") { Self::NotPermitted(said) } else { Self::Refused(said) }
            }
            other => Self::Unintelligible(other.to_string()),
        }
    }
}

/// Where services have it, the folders for administrators are not always on the path.
fn program() -> &'static str {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).any(|folder| folder.join("nft").exists());
    if !on_path && Path::new("/usr/sbin/nft").exists() { "/usr/sbin/nft" } else { "nft" }
}

/// All of it or nothing.
pub fn apply(commands: &[Value]) -> Result<(), NftError> {
    let payload = json!({ "nftables": commands }).to_string();
    apply_ruleset_raw(&payload, Some(program()), DEFAULT_ARGS)?;
    Ok(())
}

fn list(what: &str) -> Result<Value, NftError> {
    let text = get_current_ruleset_raw(Some(program()), ["list", what])?;
    serde_json::from_str(&text).map_err(|error| NftError::Unintelligible(error.to_string()))
}

fn objects<'a>(listing: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    listing["nftables"].as_array().into_iter().flatten().filter_map(move |object| object.get(kind))
}

fn family(object: &Value) -> Option<&'static str> {
    FAMILIES.into_iter().find(|family| object["family"] == *family)
}

/// The tables here that have a name as ours do, whoever's they are.
pub fn tables() -> Result<Vec<TableName>, NftError> {
    Ok(tables_in(&list("tables")?))
}

fn tables_in(listing: &Value) -> Vec<TableName> {
    objects(listing, "table")
        .filter_map(|table| {
            let name = table["name"].as_str().filter(|name| name.starts_with(PREFIX))?;
            Some(TableName { family: family(table)?, name: name.to_owned() })
        })
        .collect()
}

/// What a counter counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// The counters of one table, by name.
pub type Counts = HashMap<String, Count>;

/// The counters of all tables that have a name as ours do. A table that is not in it is not there.
pub fn counters() -> Result<HashMap<TableName, Counts>, NftError> {
    Ok(counters_in(&list("counters")?))
}

fn counters_in(listing: &Value) -> HashMap<TableName, Counts> {
    let mut tables: HashMap<TableName, Counts> = HashMap::new();
    for counter in objects(listing, "counter") {
        let (Some(table), Some(name), Some(family)) =
            (counter["table"].as_str(), counter["name"].as_str(), family(counter))
        else {
            continue;
        };
        if table.starts_with(PREFIX) {
            let number = |key: &str| counter[key].as_u64().unwrap_or_default();
            let count = Count { packets: number("packets"), bytes: number("bytes") };
            let table = TableName { family, name: table.to_owned() };
            tables.entry(table).or_default().insert(name.to_owned(), count);
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_are_read_and_foreign_tables_are_passed_over() {
        let listing = json!({ "nftables": [
            { "metainfo": { "version": "1.0.6" } },
            { "table": { "family": "ip", "name": "tidegate_web", "handle": 1 } },
            { "table": { "family": "inet", "name": "tidegate_mine", "handle": 2 } },
            { "table": { "family": "ip", "name": "filter", "handle": 3 } },
            { "counter": { "family": "ip", "table": "tidegate_web", "name": "unserved", "packets": 5_000_000_000_u64, "bytes": 7 } },
            { "counter": { "family": "ip", "table": "filter", "name": "other", "packets": 1, "bytes": 1 } },
        ] });
        let web = TableName { family: "ip", name: "tidegate_web".to_owned() };
        assert_eq!(tables_in(&listing), std::slice::from_ref(&web));
        assert_eq!(web.steer(), "web");
        let counters = counters_in(&listing);
        assert_eq!(counters.len(), 1);
        assert_eq!(counters[&web]["unserved"], Count { packets: 5_000_000_000, bytes: 7 });
    }
}
