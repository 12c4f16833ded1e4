//! Routes connections that are not decrypted by all that is known of one: a field of the PROXY header, the client's address,
//! the name in the ClientHello, its protocol. Refuses one name, and traps on another.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use tidegate_sdk::{Connection, Policy, TunnelRoute, TunnelRouter};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BySni {
    /// The type of a field, and a cluster for each of its values. Not looked at without.
    tlv: Option<(u8, BTreeMap<String, String>)>,
    clients: BTreeMap<IpAddr, String>,
    /// Of a name's end, without its dot.
    suffixes: BTreeMap<String, String>,
    /// By the first protocol that is offered.
    alpn: BTreeMap<String, String>,
    refuse: Option<String>,
    trap: Option<String>,
}

impl Policy for BySni {
    type Settings = Self;

    fn new(settings: Self) -> Result<Self, String> {
        Ok(settings)
    }
}

impl TunnelRouter for BySni {
    fn route(&mut self, connection: &Connection) -> TunnelRoute {
        let to = |cluster: &String| TunnelRoute::Forward(cluster.clone());
        if let Some((kind, clusters)) = &self.tlv {
            let value = connection.proxy_tlv(*kind).and_then(|value| String::from_utf8(value).ok());
            if let Some(cluster) = value.and_then(|value| clusters.get(&value)) {
                return to(cluster);
            }
        }
        if !self.clients.is_empty()
            && let Some(cluster) = self.clients.get(&connection.client().ip())
        {
            return to(cluster);
        }
        let name = connection.server_name();
        if name.is_some() && name == self.trap {
            panic!("a trap on purpose");
        }
        if name.is_some() && name == self.refuse {
            return TunnelRoute::Refuse;
        }
        let below = |suffix: &str| name.as_ref().is_some_and(|name| name.ends_with(&format!(".{suffix}")));
        if let Some((_, cluster)) = self.suffixes.iter().find(|(suffix, _)| below(suffix)) {
            return to(cluster);
        }
        if !self.alpn.is_empty()
            && let Some(cluster) = connection.alpn().and_then(|alpn| self.alpn.get(&alpn))
        {
            return to(cluster);
        }
        TunnelRoute::Pass
    }
}

tidegate_sdk::tunnel_router!(BySni);

#[cfg(test)]
mod tests {
    use tidegate_sdk::testing::{Question, configure};

    use super::*;

    #[test]
    fn what_is_known_of_a_connection_decides_in_order() {
        let mut policy: BySni = configure(serde_json::json!({
            "tlv": [234, { "vpce-1": "private" }], "clients": { "192.0.2.7": "near" }, "suffixes": { "a.example": "a" },
            "alpn": { "h2": "two" }, "refuse": "no.example",
        }))
        .expect("good settings");
        let far = || Question { client: [198, 51, 100, 1].into(), ..Question::connection("x.a.example") };
        let private = vec![(234, b"vpce-1".to_vec())];
        assert_eq!(
            Question { proxy_tlvs: private, ..far() }.tunnel(&mut policy),
            TunnelRoute::Forward("private".into())
        );
        assert_eq!(Question::connection("x.a.example").tunnel(&mut policy), TunnelRoute::Forward("near".into()));
        assert_eq!(far().tunnel(&mut policy), TunnelRoute::Forward("a".into()));
        let named = |name: &str| Question { server_name: Some(name.into()), ..far() };
        assert_eq!(named("no.example").tunnel(&mut policy), TunnelRoute::Refuse);
        assert_eq!(named("a.example").tunnel(&mut policy), TunnelRoute::Pass);
        let mut two = Question { alpn: Some("h2".into()), ..named("a.example") };
        assert_eq!(two.tunnel(&mut policy), TunnelRoute::Forward("two".into()));
    }
}
