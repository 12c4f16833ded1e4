//! How a file of cases is written.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::Deserialize;

use crate::project::{LimitSettings, duration};
use crate::words::Question;

/// A file of cases: the question they ask, what they share, and each of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CaseFile {
    pub(crate) question: Question,
    /// Of cases that have none of their own.
    #[serde(default = "no_settings")]
    pub(crate) settings: serde_json::Value,
    pub(crate) limits: Option<LimitSettings>,
    #[serde(default, rename = "case")]
    pub(crate) cases: Vec<Case>,
}

fn no_settings() -> serde_json::Value {
    serde_json::json!({})
}

/// One question with its facts, and the answer that is right.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) settings: Option<serde_json::Value>,
    /// Names of header fields that are granted; all where it is left out.
    pub(crate) grants: Option<Vec<String>>,
    /// Whether it is asked memoised as well.
    #[serde(default = "yes")]
    pub(crate) memoise: bool,
    /// Where chance begins.
    #[serde(default = "one")]
    pub(crate) seed: u64,
    #[serde(default)]
    pub(crate) clock: Clock,
    #[serde(default)]
    pub(crate) request: Request,
    #[serde(default)]
    pub(crate) connection: Connection,
    #[serde(default = "cluster")]
    pub(crate) cluster: String,
    #[serde(default)]
    pub(crate) endpoints: Vec<Endpoint>,
    #[serde(default)]
    pub(crate) identity: Identity,
    #[serde(default)]
    pub(crate) attempt: Attempt,
    /// What `http-client` gets; any other call is not granted.
    #[serde(default)]
    pub(crate) callouts: Vec<Callout>,
    pub(crate) expect: Expect,
}

fn yes() -> bool {
    true
}

fn one() -> u64 {
    1
}

fn cluster() -> String {
    "api".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Clock {
    #[serde(deserialize_with = "duration")]
    pub(crate) monotonic: Duration,
    /// Since 1970.
    #[serde(deserialize_with = "duration")]
    pub(crate) wall: Duration,
}

impl Default for Clock {
    fn default() -> Self {
        Self { monotonic: Duration::from_secs(1), wall: Duration::from_secs(1_800_000_000) }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// `http` or `https`.
    pub(crate) scheme: String,
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) headers: BTreeMap<String, Values>,
    /// After trusted forwarding fields.
    pub(crate) client: IpAddr,
    /// `1.0`, `1.1`, `2` or `3`.
    pub(crate) version: String,
    pub(crate) notes: BTreeMap<String, String>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            method: "GET".to_owned(),
            scheme: "https".to_owned(),
            authority: "example.com".to_owned(),
            path: "/".to_owned(),
            query: None,
            headers: BTreeMap::new(),
            client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
            version: "1.1".to_owned(),
            notes: BTreeMap::new(),
        }
    }
}

/// A field's value, or the values of several fields of one name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Values {
    One(String),
    Several(Vec<String>),
}

impl Values {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &String> {
        match self {
            Self::One(value) => std::slice::from_ref(value).iter(),
            Self::Several(values) => values.iter(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Connection {
    pub(crate) peer: SocketAddr,
    /// The peer where it is left out.
    pub(crate) client: Option<SocketAddr>,
    pub(crate) local: SocketAddr,
    pub(crate) listener: String,
    pub(crate) server_name: Option<String>,
    pub(crate) alpn: Option<String>,
    /// Values of the PROXY header's fields, by their type as a number.
    pub(crate) proxy_tlvs: BTreeMap<String, String>,
}

impl Default for Connection {
    fn default() -> Self {
        Self {
            peer: SocketAddr::from(([192, 0, 2, 7], 40_000)),
            client: None,
            local: SocketAddr::from(([192, 0, 2, 1], 443)),
            listener: "edge".to_owned(),
            server_name: None,
            alpn: None,
            proxy_tlvs: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) weight: u32,
    pub(crate) zone: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) available: bool,
    pub(crate) in_flight: u32,
    #[serde(deserialize_with = "duration")]
    pub(crate) latency: Duration,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([192, 0, 2, 80], 80)),
            weight: 1,
            zone: None,
            labels: BTreeMap::new(),
            available: true,
            in_flight: 0,
            latency: Duration::ZERO,
        }
    }
}

/// Chains as values of `Forwarded` (RFC 7239), and the families that carry them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Identity {
    pub(crate) received: String,
    pub(crate) proposed: String,
    pub(crate) families: Vec<Family>,
}

impl Default for Identity {
    fn default() -> Self {
        let proposed = "for=192.0.2.7;host=example.com;proto=https".to_owned();
        Self { received: String::new(), proposed, families: vec![Family::Forwarded] }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Family {
    Forwarded,
    XForwarded,
    XRealIp,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Attempt {
    pub(crate) number: u32,
    pub(crate) endpoint: Option<u32>,
    pub(crate) failure: Failure,
    /// Of the response whose head arrived: goes with the failure `status`.
    pub(crate) status: Option<u16>,
    pub(crate) headers: BTreeMap<String, Values>,
    pub(crate) safety: Safety,
    #[serde(deserialize_with = "duration")]
    pub(crate) elapsed: Duration,
    #[serde(deserialize_with = "duration")]
    pub(crate) time_left: Duration,
    pub(crate) retries_left: u32,
}

impl Default for Attempt {
    fn default() -> Self {
        Self {
            number: 1,
            endpoint: Some(0),
            failure: Failure::Connect,
            status: None,
            headers: BTreeMap::new(),
            safety: Safety::Unprocessed,
            elapsed: Duration::from_millis(5),
            time_left: Duration::from_secs(30),
            retries_left: 3,
        }
    }
}

/// A call and what comes of it: a response, or an error.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Callout {
    pub(crate) cluster: String,
    #[serde(default = "get")]
    pub(crate) method: String,
    /// And query.
    pub(crate) path: String,
    pub(crate) respond: Option<Respond>,
    pub(crate) error: Option<CallError>,
}

fn get() -> String {
    "GET".to_owned()
}

/// As `http-error` of the contract; what is not granted need not be written.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CallError {
    TimedOut,
    TooLarge,
    Failed,
    Other,
}

/// As `cause` of the contract.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Failure {
    Connect,
    Tls,
    Reset,
    RefusedStream,
    GoAway,
    Timeout,
    Status,
    Other,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Safety {
    Unprocessed,
    Idempotent,
    Unsafe,
}

/// The answer that is right: one of its question's, with the edits that belong to it, and no other.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Expect {
    // Any question's.
    pub(crate) refused: Option<String>,
    pub(crate) fault: Option<String>,
    // The router's; the first the balancer's too, and both the tunnel router's.
    pub(crate) pass: Option<Yes>,
    pub(crate) forward: Option<String>,
    pub(crate) respond: Option<Respond>,
    pub(crate) edits: Option<Edits>,
    // The balancer's.
    pub(crate) endpoint: Option<u32>,
    pub(crate) hash: Option<Key>,
    pub(crate) none: Option<Yes>,
    // Forwarding's: one or both of the edits, or neither.
    pub(crate) unchanged: Option<Yes>,
    pub(crate) elements: Option<String>,
    pub(crate) families: Option<Vec<Family>>,
    // The tunnel router's.
    pub(crate) refuse: Option<Yes>,
    // Retry's.
    pub(crate) stop: Option<Yes>,
    pub(crate) again: Option<Pause>,
    pub(crate) elsewhere: Option<Pause>,
}

/// `true`: the answer that has nothing more to say.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "bool")]
pub(crate) struct Yes;

impl TryFrom<bool> for Yes {
    type Error = &'static str;

    fn try_from(value: bool) -> Result<Self, Self::Error> {
        if value { Ok(Self) } else { Err("write true, or leave it out") }
    }
}

/// Of the consistent hash. TOML's numbers end at half of what it may be: `0x` and sixteen digits as a text say more.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "KeyText")]
pub(crate) struct Key(pub(crate) u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum KeyText {
    Number(u64),
    Text(String),
}

impl TryFrom<KeyText> for Key {
    type Error = String;

    fn try_from(text: KeyText) -> Result<Self, String> {
        match text {
            KeyText::Number(number) => Ok(Self(number)),
            KeyText::Text(text) => {
                let digits = text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
                digits.map(Self).ok_or_else(|| format!("{text:?} is no hash: write a number, or 0x and its digits"))
            }
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(transparent)]
pub(crate) struct Pause(#[serde(deserialize_with = "duration")] pub(crate) Duration);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Respond {
    pub(crate) status: u16,
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, Values>,
    #[serde(default)]
    pub(crate) body: String,
}

/// What a router changes. Fields are written as they are asked for: `set x-a: b`, `append x-a: b`, `remove x-a`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Edits {
    pub(crate) path: Option<String>,
    /// Empty: removed.
    pub(crate) query: Option<String>,
    pub(crate) authority: Option<String>,
    pub(crate) headers: Vec<String>,
    pub(crate) response_headers: Vec<String>,
    pub(crate) timeout: Option<Pause>,
    pub(crate) attempt_timeout: Option<Pause>,
    /// `stream`, `request` or `both`.
    pub(crate) buffering: Option<String>,
    pub(crate) notes: BTreeMap<String, String>,
}

impl CaseFile {
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.cases.is_empty() {
            return Err("there is no case: write a [[case]]".to_owned());
        }
        for case in &self.cases {
            let answers = case.expect.answers(self.question)?;
            if answers != 1 {
                let question = self.question;
                return Err(format!("case {:?}: expects {answers} answers of a {question}, not one", case.name));
            }
            if let Some(callout) = case.callouts.iter().find(|c| c.respond.is_some() == c.error.is_some()) {
                let path = &callout.path;
                return Err(format!("case {:?}: the callout of {path:?} has one of respond and error", case.name));
            }
            if (case.attempt.failure == Failure::Status) != case.attempt.status.is_some() {
                return Err(format!("case {:?}: the failure \"status\" and a status go together", case.name));
            }
        }
        Ok(())
    }
}

impl Expect {
    /// How many answers it names. An answer of another question is an error.
    fn answers(&self, question: Question) -> Result<usize, String> {
        use Question::{Balancer, Forwarding, Retry, Router, TunnelRouter};
        let identity = self.elements.is_some() || self.families.is_some();
        let all: [(&str, bool, &[Question]); 14] = [
            ("refused", self.refused.is_some(), &Question::ALL),
            ("fault", self.fault.is_some(), &Question::ALL),
            ("pass", self.pass.is_some(), &[Router, Balancer, TunnelRouter]),
            ("forward", self.forward.is_some(), &[Router, TunnelRouter]),
            ("respond", self.respond.is_some(), &[Router]),
            ("endpoint", self.endpoint.is_some(), &[Balancer]),
            ("hash", self.hash.is_some(), &[Balancer]),
            ("none", self.none.is_some(), &[Balancer]),
            ("unchanged", self.unchanged.is_some(), &[Forwarding]),
            ("elements or families", identity, &[Forwarding]),
            ("refuse", self.refuse.is_some(), &[TunnelRouter]),
            ("stop", self.stop.is_some(), &[Retry]),
            ("again", self.again.is_some(), &[Retry]),
            ("elsewhere", self.elsewhere.is_some(), &[Retry]),
        ];
        for (name, given, questions) in all {
            if given && !questions.contains(&question) {
                return Err(format!("expect.{name} is no answer of a {question}"));
            }
        }
        if self.edits.is_some() && self.pass.is_none() && self.forward.is_none() {
            return Err("expect.edits go with pass or forward: other answers have none".to_owned());
        }
        if self.edits.is_some() && question != Router {
            return Err(format!("expect.edits are a router's, not a {question}'s"));
        }
        Ok(all.iter().filter(|(_, given, _)| *given).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), String> {
        toml::from_str::<CaseFile>(text).map_err(|error| error.to_string()).and_then(|file| file.check())
    }

    #[test]
    fn a_case_has_one_answer_of_its_question() {
        let file = |question: &str, expect: &str| {
            check(&format!("question = \"{question}\"\n[[case]]\nname = \"a\"\nexpect = {expect}\n"))
        };
        assert_eq!(file("router", "{ pass = true, edits = { path = \"/x\" } }"), Ok(()));
        assert_eq!(file("balancer", "{ hash = \"0xaf63dc4c8601ec8c\" }"), Ok(()));
        assert_eq!(file("retry", "{ again = \"50ms\" }"), Ok(()));
        assert_eq!(file("tunnel-router", "{ refuse = true }"), Ok(()));
        assert_eq!(file("tunnel-router", "{ forward = \"a\" }"), Ok(()));
        assert_eq!(file("forwarding", "{ elements = \"for=unknown\", families = [\"x-real-ip\"] }"), Ok(()));
        for (question, expect, part) in [
            ("router", "{}", "0 answers"),
            ("router", "{ pass = true, forward = \"a\" }", "2 answers"),
            ("router", "{ stop = true }", "expect.stop"),
            ("router", "{ pass = false }", "write true"),
            ("router", "{ refused = \"a\", edits = {} }", "expect.edits"),
            ("balancer", "{ pass = true, edits = {} }", "expect.edits"),
            ("balancer", "{ hash = \"zz\" }", "zz"),
            ("retry", "{ again = \"50\" }", "50ms"),
            ("router", "{ forwards = \"a\" }", "forwards"),
            ("router", "{ refuse = true }", "expect.refuse is no answer of a router"),
            ("tunnel-router", "{ none = true }", "expect.none is no answer of a tunnel-router"),
            ("tunnel-router", "{ forward = \"a\", edits = {} }", "expect.edits"),
        ] {
            let error = file(question, expect).expect_err(expect);
            assert!(error.contains(part), "{expect}: {error}");
        }
        let callout = |what: &str| {
            let callouts = format!("callouts = [{{ cluster = \"auth\", path = \"/check\"{what} }}]");
            check(&format!("question = \"router\"\n[[case]]\nname = \"a\"\n{callouts}\nexpect = {{ pass = true }}\n"))
        };
        assert_eq!(callout(", respond = { status = 200 }"), Ok(()));
        assert_eq!(callout(", error = \"timed-out\""), Ok(()));
        assert!(callout("").is_err_and(|error| error.contains("respond and error")));
        assert!(check("question = \"router\"\n").is_err_and(|error| error.contains("no case")));
    }
}
