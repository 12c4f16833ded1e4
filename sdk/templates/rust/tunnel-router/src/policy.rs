//! Sends each connection where the name in its ClientHello belongs.

use std::collections::BTreeMap;

use serde::Deserialize;
use tidegate_sdk::{Connection, Policy, TunnelRoute, TunnelRouter};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The cluster of each name, and of all names below it.
    names: BTreeMap<String, String>,
    /// Names that go nowhere, with all below them.
    #[serde(default)]
    blocked: Vec<String>,
    /// The cluster of connections that name nothing; without it the listener's routes decide.
    nameless: Option<String>,
}

/// The policy.
pub struct Names(Settings);

impl Policy for Names {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if let Some((name, _)) = settings.names.iter().find(|(_, cluster)| cluster.is_empty()) {
            return Err(format!("names.{name}: not a cluster's name"));
        }
        if settings.nameless.as_deref() == Some("") {
            return Err("nameless: not a cluster's name".to_owned());
        }
        if let Some(name) = settings.blocked.iter().find(|name| settings.names.contains_key(*name)) {
            return Err(format!("blocked: {name:?} is in names too"));
        }
        Ok(Self(settings))
    }
}

impl TunnelRouter for Names {
    fn route(&mut self, connection: &Connection) -> TunnelRoute {
        let Settings { names, blocked, nameless } = &self.0;
        let Some(name) = connection.server_name() else {
            return nameless.clone().map_or(TunnelRoute::Pass, TunnelRoute::Forward);
        };
        // The name itself, then what it is below of.
        let mut rest = Some(name.as_str());
        while let Some(name) = rest {
            if blocked.iter().any(|blocked| blocked == name) {
                return TunnelRoute::Refuse;
            }
            if let Some(cluster) = names.get(name) {
                return TunnelRoute::Forward(cluster.clone());
            }
            rest = name.split_once('.').map(|(_, above)| above);
        }
        TunnelRoute::Pass
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tidegate_sdk::testing::{Question, configure};

    use super::*;

    #[test]
    fn names_lead_to_clusters() {
        let settings = json!({ "names": { "shop.example": "shops" }, "blocked": ["old.shop.example"] });
        let mut policy: Names = configure(settings).expect("good settings");
        let mut ask = |name: &str| Question::connection(name).tunnel(&mut policy);
        assert_eq!(ask("a.shop.example"), TunnelRoute::Forward("shops".to_owned()));
        assert_eq!(ask("old.shop.example"), TunnelRoute::Refuse);
        assert_eq!(ask("bookshop.example"), TunnelRoute::Pass);
    }
}
