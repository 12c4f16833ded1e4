//! Origins can tell clients apart without learning who they are.
//!
//! Each address becomes an obfuscated identifier (RFC 7239, section 6.3): a keyed hash that changes with the key and with
//! each rotation period. Without the key it cannot be turned back by trying all addresses. The hash is SipHash-2-4
//! (Aumasson and Bernstein, 2012), a pseudorandom function made for short inputs: its 64 bits are all that an identifier
//! shows, and it takes a fraction of what SHA-256 does. Its key is made from the secret with SHA-256.

use std::hash::Hasher;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use siphasher::sip::SipHasher24;
use tidegate_sdk::{Element, Families, Forwarding, Identity, Node, Policy, Request};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// At least 16 characters.
    pub secret: String,
    /// Named in what is hashed: a new one makes every client new.
    #[serde(default)]
    pub period: String,
    /// Of `forwarded`, `x_forwarded`. Default: only `forwarded`, whose grammar knows such identifiers.
    #[serde(default = "families")]
    pub families: Vec<String>,
    /// Whether trusted hops before this gateway stay in the chain, obfuscated too.
    #[serde(default)]
    pub keep_chain: bool,
    /// Whether the host and the scheme that the client used are told.
    #[serde(default = "yes")]
    pub tell_host: bool,
}

fn families() -> Vec<String> {
    vec!["forwarded".to_owned()]
}

fn yes() -> bool {
    true
}

/// Longest chain that the gateway takes.
const MAX_ELEMENTS: usize = 32;

/// The policy.
pub struct PrivateForwarding {
    settings: Settings,
    /// Of this secret and period.
    keyed: SipHasher24,
}

impl Policy for PrivateForwarding {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if settings.secret.len() < 16 {
            return Err("secret is shorter than 16 characters: identifiers could be turned back by trying".to_owned());
        }
        let key =
            Sha256::new().chain_update(&settings.secret).chain_update([0]).chain_update(&settings.period).finalize();
        let mut half = [0; 16];
        half.copy_from_slice(&key[..16]);
        Ok(Self { keyed: SipHasher24::new_with_key(&half), settings })
    }

    fn settings_schema() -> Option<String> {
        let schema = json!({ "type": "object", "additionalProperties": false, "required": ["secret"], "properties": {
            "secret": { "type": "string", "minLength": 16 },
            "period": { "type": "string" },
            "families": { "type": "array", "items": { "enum": ["forwarded", "x_forwarded"] } },
            "keep_chain": { "type": "boolean" },
            "tell_host": { "type": "boolean" },
        } });
        Some(schema.to_string())
    }
}

impl PrivateForwarding {
    /// `_` and 16 hexadecimal digits.
    fn obfuscated(&self, ip: IpAddr) -> Node {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut keyed = self.keyed;
        match ip {
            IpAddr::V4(ip) => keyed.write(&ip.octets()),
            IpAddr::V6(ip) => keyed.write(&ip.octets()),
        }
        let hash = keyed.finish();
        let mut name = [b'_'; 17];
        for (place, digit) in name[1..].iter_mut().rev().enumerate() {
            *digit = DIGITS[(hash >> (4 * place)) as usize & 15];
        }
        // Digits are text.
        Node::Obfuscated(String::from_utf8(name.to_vec()).unwrap_or_default())
    }

    fn hidden(&self, node: Node) -> Node {
        match node {
            Node::Address(address) => self.obfuscated(address.ip()),
            Node::Ip(ip) => self.obfuscated(ip),
            other => other,
        }
    }
}

impl Forwarding for PrivateForwarding {
    fn identify(&mut self, request: &Request, identity: &mut Identity) {
        let settings = &self.settings;
        let chain = identity.proposed();
        let last = chain.len().saturating_sub(1);
        // The gateway proposes up to one more than it takes back: the farthest hop is the one to leave out.
        let first = if settings.keep_chain { chain.len().saturating_sub(MAX_ELEMENTS) } else { last };
        let mut elements: Vec<Element> = chain
            .into_iter()
            .enumerate()
            .skip(first)
            .map(|(index, element)| {
                // Without the hops before, this gateway's own element stands for the client itself.
                let node = if index == last && !settings.keep_chain {
                    Some(self.obfuscated(request.client()))
                } else {
                    element.r#for.map(|node| self.hidden(node))
                };
                let told = settings.tell_host;
                let mut hidden = Element {
                    r#for: node,
                    by: element.by,
                    host: element.host.filter(|_| told),
                    proto: element.proto.filter(|_| told),
                };
                // A hop that told only what is not told on was a hop all the same.
                if hidden == Element::default() {
                    hidden.r#for = Some(Node::Unknown);
                }
                hidden
            })
            .collect();
        if elements.is_empty() {
            elements.push(Element { r#for: Some(self.obfuscated(request.client())), ..Element::default() });
        }
        let has = |name: &str| settings.families.iter().any(|family| family == name);
        // A refusal leaves the configured rule in force only for a chain that cannot be written, which this one can.
        if identity.set_elements(elements).is_err() {
            let _ = identity.set_elements(Vec::new());
        }
        identity.set_families(Families {
            forwarded: has("forwarded"),
            x_forwarded: has("x_forwarded"),
            x_real_ip: false,
        });
    }
}

#[cfg(test)]
mod tests {
    use tidegate_sdk::testing::{Question, configure};

    use super::*;

    fn ask(settings: serde_json::Value, question: &mut Question) -> Vec<Element> {
        let mut policy: PrivateForwarding = configure(settings).expect("good settings");
        question.identify(&mut policy);
        question.edited.elements.clone().expect("it always sets the chain")
    }

    fn name(elements: &[Element]) -> String {
        match elements.last().and_then(|element| element.r#for.clone()) {
            Some(Node::Obfuscated(name)) => name,
            other => panic!("{other:?} is not hidden"),
        }
    }

    #[test]
    fn clients_are_told_apart_but_not_named() {
        let settings = json!({ "secret": "0123456789abcdef" });
        let one = ask(settings.clone(), &mut Question::get("/"));
        let same = ask(settings.clone(), &mut Question::get("/other"));
        let mut other = Question::get("/");
        other.client = "192.0.2.8".parse().expect("an address");
        assert_eq!(name(&one), name(&same));
        assert_ne!(name(&one), name(&ask(settings, &mut other)));
        assert!(!format!("{one:?}").contains("192.0.2.7"));
        assert_eq!(name(&one).len(), 17);
    }

    #[test]
    fn another_secret_or_period_makes_everyone_new() {
        let of = |secret: &str, period: &str| {
            name(&ask(json!({ "secret": secret, "period": period }), &mut Question::get("/")))
        };
        let base = of("0123456789abcdef", "1");
        assert_ne!(base, of("0123456789abcdeX", "1"));
        assert_ne!(base, of("0123456789abcdef", "2"));
    }

    #[test]
    fn families_and_chain_follow_the_settings() {
        let mut question = Question::get("/");
        let hop = Element { r#for: Some(Node::Ip("203.0.113.9".parse().expect("an address"))), ..Element::default() };
        question.proposed.insert(0, hop);
        let kept = ask(json!({ "secret": "0123456789abcdef", "keep_chain": true, "tell_host": false }), &mut question);
        assert_eq!(kept.len(), 2);
        assert!(!format!("{kept:?}").contains("203.0.113.9") && kept[1].proto.is_none());
        assert_eq!(question.edited.families, Some(Families { forwarded: true, x_forwarded: false, x_real_ip: false }));
        assert!(configure::<PrivateForwarding>(json!({ "secret": "short" })).is_err());
    }

    #[test]
    fn a_full_chain_keeps_its_nearest_hops() {
        let mut question = Question::get("/");
        let own = question.proposed.pop().expect("the gateway's own element");
        let hop = |index: u8| Element { r#for: Some(Node::Ip([203, 0, 113, index].into())), ..Element::default() };
        question.proposed = (0..32).map(hop).chain([own]).collect();
        let kept = ask(json!({ "secret": "0123456789abcdef", "keep_chain": true }), &mut question);
        question.proposed.remove(0);
        let same = ask(json!({ "secret": "0123456789abcdef", "keep_chain": true }), &mut question);
        assert_eq!((kept.len(), &kept), (32, &same));
    }

    #[test]
    fn a_hop_with_nothing_left_to_tell_is_unknown() {
        let mut question = Question::get("/");
        question.proposed.insert(0, Element { proto: Some("https".to_owned()), ..Element::default() });
        let kept = ask(json!({ "secret": "0123456789abcdef", "keep_chain": true, "tell_host": false }), &mut question);
        assert_eq!(kept[0], Element { r#for: Some(Node::Unknown), ..Element::default() });
    }

    #[test]
    fn period_and_address_do_not_run_together() {
        let of = |period: &str, ip: &str| {
            let mut question = Question::get("/");
            question.client = ip.parse().expect("an address");
            name(&ask(json!({ "secret": "0123456789abcdef", "period": period }), &mut question))
        };
        assert_ne!(of("2026-1", "1.2.3.4"), of("2026-", "11.2.3.4"));
    }
}
