//! Asking a plugin once before it is asked in earnest: a version that fails at a plain request is found out where it costs
//! nobody anything.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use tidegate_policy::{
    Asked, AttemptFacts, Cause, ConnectionHead, Endpoint, EndpointSet, EndpointsView, Families, HttpVersion, Identity,
    Proof, ProxyTlvs, RequestEdits, RequestHead, Scheme, SetHealth, Target,
};

use crate::budget::Purse;
use crate::decide::{AskDecide, AskIdentify, AskPick, AskRoute, AskTunnel, Asking, exported};
use crate::instances::{Failed, Instance, call};
use crate::plugin::{LoadError, Plugin, Questions};
use crate::state::Facts;
use crate::stats::QUESTIONS;
use crate::trace::Purpose;

impl Plugin {
    /// Asks each of its questions of a plain request, `GET /` at `rehearsal.invalid`, of an instance that is made for it and
    /// dropped. What it answers does not matter. It calls nobody: `http-client` says that nothing is granted.
    ///
    /// # Errors
    /// It failed in place of answering.
    pub fn rehearse(&self) -> Result<(), LoadError> {
        let core = &self.handle.core;
        let mut instance = Instance::new(core, &Purse::trial(&core.allowances)).map_err(Failed::at_load)?;
        let Questions { route, pick, identify, decide, tunnel } = self.questions();
        let mut edits = RequestEdits::default();
        let asked = [
            route.then(|| ask(&mut instance, AskRoute { edits: &mut edits })),
            pick.then(|| ask(&mut instance, AskPick)),
            identify.then(|| ask(&mut instance, AskIdentify)),
            decide.then(|| ask(&mut instance, AskDecide)),
            tunnel.then(|| ask(&mut instance, AskTunnel)),
        ];
        // The instance is spent by the first that fails: what comes after it says nothing.
        let failed = asked.into_iter().zip(QUESTIONS).find_map(|(asked, question)| Some((asked?.err()?, question)));
        match failed {
            Some((why, question)) => Err(LoadError::Rehearsal { question, why }),
            None => Ok(()),
        }
    }
}

fn ask<A: Asking>(instance: &mut Instance, _: A) -> Result<(), String> {
    instance.begin_at(Instant::now());
    let state = instance.store.data_mut();
    state.facts = facts();
    state.trace.begin(Purpose::None);
    let answered = exported::<A>(instance).and_then(|function| call(&mut instance.store, function, ()));
    instance.store.data_mut().clear();
    answered.map(drop).map_err(|failed| format!("{}: {}", failed.kind.name(), failed.detail))
}

/// Of a client and an endpoint in networks for documentation (RFC 5737), at a name that does not exist (RFC 6761).
fn facts() -> Facts {
    let client = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 40_000));
    let connection = ConnectionHead {
        id: 0,
        peer: client,
        client,
        local: SocketAddr::from((Ipv4Addr::new(192, 0, 2, 2), 80)),
        proxy_tlvs: ProxyTlvs::default(),
        listener: "rehearsal".into(),
        tls: false,
        tls_version: None,
        server_name: None,
        alpn: None,
        client_certificate: None,
        client_chain: Box::default(),
    };
    let request = RequestHead {
        version: HttpVersion::Http11,
        method: Method::GET,
        scheme: Scheme::Http,
        authority: "rehearsal.invalid".into(),
        target: Target::new("/".into()),
        headers: HeaderMap::new(),
        tunnel: None,
    };
    let asked = Asked {
        connection: Rc::new(connection),
        request,
        client: client.ip(),
        received: Vec::new(),
        notes: RefCell::default(),
        draw: 0,
    };
    let endpoint = Endpoint {
        address: SocketAddr::from((Ipv4Addr::new(198, 51, 100, 1), 80)),
        weight: 1,
        zone: None,
        labels: Arc::new([]),
        max_requests: 1000,
        state: Arc::default(),
    };
    let set = EndpointSet {
        cluster: "rehearsal".into(),
        generation: 1,
        endpoints: Box::new([endpoint]),
        health: SetHealth::default(),
    };
    let attempt = AttemptFacts {
        number: 1,
        endpoint: Some(0),
        cause: Cause::ConnectRefused,
        status: None,
        headers: HeaderMap::new(),
        proof: Proof::Unprocessed,
        elapsed: Duration::from_millis(1),
        time_left: Duration::from_secs(30),
        retries_left: 1,
    };
    Facts {
        asked: Some(Rc::new(asked)),
        endpoints: Some(EndpointsView::new(Arc::new(set), Duration::ZERO)),
        attempt: Some(Rc::new(attempt)),
        identity: Some(Rc::new(Identity { elements: Vec::new(), families: Families::default() })),
    }
}
