//! Tells the upstream a label in place of the client's address, and nothing of the hops before it.

use serde::Deserialize;
use tidegate_sdk::{Forwarding, Identity, Node, Policy, Request};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// An obfuscated identifier: it begins with an underscore (RFC 7239, section 6.3).
    #[serde(default = "default_label")]
    label: String,
}

fn default_label() -> String {
    "_client".to_owned()
}

/// The policy.
pub struct Discreet(Settings);

impl Policy for Discreet {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        let label_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if settings.label.starts_with('_') && settings.label.bytes().all(label_byte) {
            Ok(Self(settings))
        } else {
            Err(format!("label: {:?} is not an underscore and letters, digits, . _ or -", settings.label))
        }
    }
}

impl Forwarding for Discreet {
    fn identify(&mut self, _: &Request, identity: &mut Identity) {
        if let Some(mut nearest) = identity.proposed().pop() {
            nearest.r#for = Some(Node::Obfuscated(self.0.label.clone()));
            // A chain that cannot be written leaves the configured rule in force.
            let _ = identity.set_elements(vec![nearest]);
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_sdk::testing::{Question, configure};

    use super::*;

    #[test]
    fn the_client_is_a_label() {
        let mut policy: Discreet = configure(serde_json::json!({})).expect("good settings");
        let mut question = Question::get("/");
        question.identify(&mut policy);
        let elements = question.edited.elements.expect("a chain");
        assert_eq!(elements[0].r#for, Some(Node::Obfuscated("_client".to_owned())));
    }
}
