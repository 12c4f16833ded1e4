//! This hop's name in `Via` and `Proxy-Status`, ready to be put into every message.

use std::sync::Mutex;

use http::HeaderValue;
use tidegate_policy::HttpVersion;

/// A pseudonym, and the values of `Via` that it makes (RFC 9110, section 7.6.3).
///
/// Made once for each pseudonym of the process's life and never given back: a copy of a value then counts no references,
/// which all workers would count in the same place.
#[derive(Clone, Debug)]
pub struct Via {
    pseudonym: &'static str,
    values: [HeaderValue; 4],
}

impl Via {
    pub(crate) fn pseudonym(&self) -> &'static str {
        self.pseudonym
    }

    /// `received-protocol SP pseudonym`, for a message that came in that version.
    pub(crate) fn value(&self, version: HttpVersion) -> HeaderValue {
        self.values[version as usize].clone()
    }
}

impl From<&str> for Via {
    /// What is no field value is left out of it.
    fn from(pseudonym: &str) -> Self {
        static KNOWN: Mutex<Vec<Via>> = Mutex::new(Vec::new());
        // A list of values is whole even if somebody panicked over it.
        let mut known = KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(via) = known.iter().find(|via| via.pseudonym == pseudonym) {
            return via.clone();
        }
        let kept: String = pseudonym.chars().filter(|c| matches!(c, ' '..='~')).collect();
        let value = |version: HttpVersion| {
            let text: &'static str = Box::leak(format!("{} {kept}", version.name()).into_boxed_str());
            HeaderValue::from_static(text)
        };
        use HttpVersion::{Http2, Http3, Http10, Http11};
        let values = [Http10, Http11, Http2, Http3].map(value);
        let via = Self { pseudonym: Box::leak(pseudonym.to_owned().into_boxed_str()), values };
        known.push(via.clone());
        via
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_has_its_value_and_a_pseudonym_is_made_once() {
        let via = Via::from("edge");
        assert_eq!(via.value(HttpVersion::Http10), "1.0 edge");
        assert_eq!(via.value(HttpVersion::Http11), "1.1 edge");
        assert_eq!(via.value(HttpVersion::Http2), "2 edge");
        assert_eq!(via.value(HttpVersion::Http3), "3 edge");
        assert!(std::ptr::eq(via.pseudonym(), Via::from("edge").pseudonym()));
        assert_eq!(Via::from("a\nb\u{e9}").value(HttpVersion::Http2), "2 ab");
    }
}
