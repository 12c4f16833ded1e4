//! Made-up questions, to test a policy natively: build one, ask it, look at the answer and the edits.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use crate::{
    Attempt, Balancer, Buffering, Cause, Choice, Connection, Element, Endpoints, Families, Forward, Forwarding,
    HttpVersion, Identity, Node, Proof, Request, Response, Retry, Route, Router, Scheme, TunnelRoute, TunnelRouter,
    Verdict, http_client,
};

/// An endpoint of a made-up cluster.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub labels: Vec<(String, String)>,
    pub weight: u32,
    pub zone: Option<String>,
    pub available: bool,
    pub in_flight: u32,
    pub latency: Duration,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([192, 0, 2, 80], 80)),
            labels: Vec::new(),
            weight: 1,
            zone: None,
            available: true,
            in_flight: 0,
            latency: Duration::ZERO,
        }
    }
}

/// What a policy changed.
#[derive(Clone, Debug, Default)]
pub struct Edited {
    pub path: Option<String>,
    /// `Some(None)`: removed.
    pub query: Option<Option<String>>,
    pub authority: Option<String>,
    /// Set; `None`: removed.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub appended: Vec<(String, Vec<u8>)>,
    /// Set; `None`: removed.
    pub response_headers: Vec<(String, Option<Vec<u8>>)>,
    pub timeout: Option<Duration>,
    pub attempt_timeout: Option<Duration>,
    pub buffering: Option<Buffering>,
    pub elements: Option<Vec<Element>>,
    pub families: Option<Families>,
}

/// What a call comes to.
type Called = Result<Response, http_client::Error>;

/// What stands in for a cluster that a policy calls: see [`Question::origin`].
#[derive(Clone)]
pub struct Origin(pub(crate) Rc<dyn Fn(&http_client::Request) -> Called>);

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Origin")
    }
}

/// A question with all its facts. Fields without a method are set directly.
#[derive(Clone, Debug)]
pub struct Question {
    pub client: IpAddr,
    pub version: HttpVersion,
    pub method: String,
    pub scheme: Scheme,
    pub authority: String,
    pub path: String,
    pub query: Option<String>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub notes: Vec<(String, String)>,
    pub listener: String,
    pub local: SocketAddr,
    pub server_name: Option<String>,
    pub alpn: Option<String>,
    pub client_certificate: Option<Vec<u8>>,
    pub proxy_tlvs: Vec<(u8, Vec<u8>)>,
    pub cluster: String,
    pub generation: u64,
    pub endpoints: Vec<Endpoint>,
    pub received: Vec<Element>,
    pub proposed: Vec<Element>,
    pub number: u32,
    /// The endpoint that was tried.
    pub tried: u32,
    pub failure: Cause,
    pub safety: Proof,
    pub response_headers: Vec<(String, Vec<u8>)>,
    pub elapsed: Duration,
    pub time_left: Duration,
    pub retries_left: u32,
    pub now: Duration,
    pub wall: Duration,
    pub random: u64,
    /// What `kv` has: values, and when they end, by `now`.
    pub kv: BTreeMap<String, (Vec<u8>, Option<Duration>)>,
    pub edited: Edited,
    /// What was called out, in order.
    pub called: Vec<http_client::Request>,
    /// By cluster.
    pub origins: BTreeMap<String, Origin>,
}

impl Question {
    /// A request at `example.com` from 192.0.2.7. `target` may have a query.
    pub fn new(method: &str, target: &str) -> Self {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let client = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
        let own = Element { r#for: Some(Node::Ip(client)), proto: Some("https".to_owned()), ..Element::default() };
        Self {
            client,
            version: HttpVersion::Http11,
            method: method.to_owned(),
            scheme: Scheme::Https,
            authority: "example.com".to_owned(),
            path: path.to_owned(),
            query,
            headers: Vec::new(),
            notes: Vec::new(),
            listener: "edge".to_owned(),
            local: SocketAddr::from(([192, 0, 2, 1], 443)),
            server_name: None,
            alpn: None,
            client_certificate: None,
            proxy_tlvs: Vec::new(),
            cluster: "api".to_owned(),
            generation: 1,
            endpoints: Vec::new(),
            received: Vec::new(),
            proposed: vec![own],
            number: 1,
            tried: 0,
            failure: Cause::Connect,
            safety: Proof::Unprocessed,
            response_headers: Vec::new(),
            elapsed: Duration::ZERO,
            time_left: Duration::from_secs(30),
            retries_left: 3,
            now: Duration::from_secs(1),
            wall: Duration::from_secs(1_800_000_000),
            random: 1,
            kv: BTreeMap::new(),
            edited: Edited::default(),
            called: Vec::new(),
            origins: BTreeMap::new(),
        }
    }

    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// A connection that is not decrypted and whose ClientHello names `server_name`, from 192.0.2.7. For the gateway's native
    /// side it is a `CONNECT` to that name.
    pub fn connection(server_name: &str) -> Self {
        let (server_name, authority) = (Some(server_name.to_owned()), server_name.to_owned());
        Self { authority, server_name, ..Self::new("CONNECT", "") }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.as_bytes().to_owned()));
        self
    }

    pub fn response_header(mut self, name: &str, value: &str) -> Self {
        self.response_headers.push((name.to_owned(), value.as_bytes().to_owned()));
        self
    }

    /// What `http_client` gets from a cluster; those without one are not granted.
    pub fn origin(
        mut self,
        cluster: &str,
        answer: impl Fn(&http_client::Request) -> Result<Response, http_client::Error> + 'static,
    ) -> Self {
        self.origins.insert(cluster.to_owned(), Origin(Rc::new(answer)));
        self
    }

    pub fn endpoint(mut self, endpoint: Endpoint) -> Self {
        self.endpoints.push(endpoint);
        self
    }

    /// A failed attempt.
    pub fn failed(mut self, failure: Cause, safety: Proof) -> Self {
        (self.failure, self.safety) = (failure, safety);
        self
    }

    /// Asks a router.
    pub fn route(&mut self, policy: &mut impl Router) -> Route {
        self.ask(|| policy.route(&Request::current(), &mut Forward::current()))
    }

    /// Asks a balancer.
    pub fn pick(&mut self, policy: &mut impl Balancer) -> Choice {
        self.ask(|| policy.pick(&Request::current(), &Endpoints::current()))
    }

    /// Asks a forwarding policy; see `edited` for what it set.
    pub fn identify(&mut self, policy: &mut impl Forwarding) {
        self.ask(|| policy.identify(&Request::current(), &mut Identity::current()));
    }

    /// Asks a retry policy.
    pub fn decide(&mut self, policy: &mut impl Retry) -> Verdict {
        self.ask(|| policy.decide(&Request::current(), &Attempt::current(), &Endpoints::current()))
    }

    /// Asks a tunnel router.
    pub fn tunnel(&mut self, policy: &mut impl TunnelRouter) -> TunnelRoute {
        self.ask(|| policy.route(&Connection::current()))
    }

    fn ask<T>(&mut self, ask: impl FnOnce() -> T) -> T {
        CURRENT.set(Some(self.clone()));
        let answer = ask();
        if let Some(asked) = CURRENT.take() {
            *self = asked;
        }
        answer
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Question>> = const { RefCell::new(None) };
}

pub(crate) fn with_question<T>(read: impl FnOnce(&Question) -> T) -> T {
    CURRENT.with_borrow(|question| read(question.as_ref().expect("facts are read while a question is asked")))
}

pub(crate) fn with_question_mut<T>(change: impl FnOnce(&mut Question) -> T) -> T {
    CURRENT.with_borrow_mut(|question| change(question.as_mut().expect("facts are read while a question is asked")))
}

/// A policy from its settings as JSON, the way the gateway makes it.
pub fn configure<P: crate::Policy>(settings: serde_json::Value) -> Result<P, String> {
    P::new(serde_json::from_value(settings).map_err(|error| error.to_string())?)
}
