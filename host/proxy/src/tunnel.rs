//! Tunnels below HTTP: hello → route → pick → connect → relay.
//!
//! Nothing is decrypted, and nothing is changed: what the client sent goes to the endpoint as it came, after a PROXY header
//! where the cluster wants one. The first bytes are looked at only where routes or a router need a ClientHello. Until an
//! endpoint has taken the connection nothing was sent, so another can be tried; from then on nothing is tried again.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use tidegate_policy::{
    Asked, Bound, Cause, ConnectionHead, EndpointsView, Fault, HttpVersion, Outcome, Permit, RequestHead, Scheme,
    Target, Tunnel,
};
use tokio::net::TcpStream;

use crate::exchange::{self, InFlight};
use crate::observe::{TunnelKind, TunnelRecord};
use crate::snapshot::{Cluster, Listener, Otherwise, TunnelRules};
use crate::stream::reset_on_close;
use crate::upstream::{TunnelSeat, keep_alive};
use crate::worker::Worker;

mod client_hello;
mod datagrams;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod hello;
mod pipe;
mod quic;
mod relay;

pub(crate) use datagrams::{Ports, Serving};
pub(crate) use quic::Ids;
#[cfg(fuzzing)]
pub(crate) use quic::fuzz as fuzz_quic;

use client_hello::ClientHello;
use hello::{Heard, Unheard, hear};
use relay::{Broke, Rules, relay};

/// A connection that is to be ended here after all: what was read of it comes first.
pub(crate) struct Terminated {
    pub(crate) tcp: TcpStream,
    pub(crate) ahead: Bytes,
    /// As its ClientHello names it.
    pub(crate) server_name: Option<bytestring::ByteString>,
}

/// Serves a TCP connection of a listener that tunnels. `ahead` was read of it.
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    listener: &Arc<Listener>,
    rules: &TunnelRules,
    mut tcp: TcpStream,
    mut connection: ConnectionHead,
    ahead: Bytes,
) -> Option<Terminated> {
    let heard = if rules.wants_hello() {
        match hear(&mut tcp, ahead, rules.hello_timeout, &worker.timers).await {
            Ok(heard) => heard,
            Err(unheard) => {
                let hellos = &worker.metrics.hellos;
                match unheard {
                    Unheard::Late(_) => hellos.late.add(1),
                    Unheard::CutOff => hellos.cut_off.add(1),
                    Unheard::Gone => {}
                }
                tracing::debug!(listener = %listener.name, peer = %connection.peer, %unheard, "connection closed");
                return None;
            }
        }
    } else {
        Heard { bytes: ahead, hello: Ok(ClientHello::default()) }
    };
    let hello = heard.hello.unwrap_or_else(|none| {
        worker.metrics.hellos.none.add(1);
        tracing::debug!(listener = %listener.name, peer = %connection.peer, reason = %none, "no ClientHello");
        ClientHello::default()
    });
    name(&mut connection, &hello);
    let asked = asked(connection);
    let mut record = TunnelRecord::begin(worker, &asked, TunnelKind::Tcp);
    match route(worker, rules, &asked, &hello, &mut record) {
        Ok(Way::To(cluster)) => {
            let tunnelled = tunnel(worker, rules, &cluster, &tcp, heard.bytes, &asked, &mut record).await;
            if let Err(fault) = tunnelled {
                // Whoever waits for an answer is told at once that there is none.
                reset_on_close(&tcp);
                record.broke(fault.cause, fault.detail);
            }
            None
        }
        Ok(Way::Terminate) => {
            record.forget();
            Some(Terminated { tcp, ahead: heard.bytes, server_name: hello.server_name })
        }
        Err(fault) => {
            reset_on_close(&tcp);
            record.broke(fault.cause, fault.detail);
            None
        }
    }
}

/// What the ClientHello says belongs to what is known of the connection: for plugins, PROXY headers and logs.
fn name(connection: &mut ConnectionHead, hello: &ClientHello) {
    connection.server_name.clone_from(&hello.server_name);
    let favourite = hello.offered().next();
    connection.alpn = favourite.and_then(|name| std::str::from_utf8(name).ok()).map(Into::into);
}

/// The facts of a connection, as those of a request to be connected to the name in its ClientHello.
fn asked(connection: ConnectionHead) -> Rc<Asked> {
    Rc::new(Asked {
        client: connection.client.ip(),
        request: RequestHead {
            version: HttpVersion::Http11,
            method: Method::CONNECT,
            scheme: Scheme::Https,
            authority: connection.server_name.clone().unwrap_or_default(),
            target: Target::new(Default::default()),
            headers: HeaderMap::new(),
            tunnel: Some(Tunnel::Connect),
        },
        connection: Rc::new(connection),
        received: Vec::new(),
        notes: RefCell::default(),
        draw: fastrand::u64(..),
    })
}

/// Where a connection goes.
enum Way {
    To(Arc<Cluster>),
    Terminate,
}

/// The plugin's answer, else the first row, else what the listener does with the rest.
fn route(
    worker: &Worker,
    rules: &TunnelRules,
    asked: &Rc<Asked>,
    hello: &ClientHello,
    record: &mut TunnelRecord,
) -> Result<Way, Fault> {
    if let Some(router) = &rules.router
        && let Some(cluster) = exchange::tunnel(&worker.current.load(), &**router, asked, record)?
    {
        return Ok(Way::To(cluster));
    }
    if let Some(row) = rules.table.find(hello.server_name.as_deref(), hello.offered()) {
        return Ok(Way::To(rules.clusters[row].clone()));
    }
    match &rules.otherwise {
        Otherwise::Cluster(cluster) => Ok(Way::To(cluster.clone())),
        Otherwise::Terminate => Ok(Way::Terminate),
        Otherwise::Close => {
            let name = hello.server_name.as_deref().unwrap_or("no name");
            Err(Fault::new(Cause::NoRoute, format!("no route is for {name}, and no cluster for the rest")))
        }
    }
}

/// A place among a cluster's tunnels.
fn within_bound(cluster: &Cluster) -> Result<Permit, Fault> {
    let full = || format!("cluster {:?} has all it may have in flight", cluster.name);
    cluster.breaker.enter(Bound::Requests).ok_or_else(|| Fault::new(Cause::ClusterFull, full()))
}

/// Connects to an endpoint and relays until the end.
async fn tunnel(
    worker: &Rc<Worker>,
    rules: &TunnelRules,
    cluster: &Arc<Cluster>,
    client: &TcpStream,
    read: Bytes,
    asked: &Rc<Asked>,
    record: &mut TunnelRecord,
) -> Result<(), Fault> {
    record.cluster = Some(cluster.name.clone());
    let _within = within_bound(cluster)?;
    let mut view = EndpointsView::new(cluster.set.clone(), worker.now());
    let (upstream, ahead, _seat, _load) = loop {
        view.refresh(worker.now());
        let index = exchange::pick(cluster, asked, &view, record)?;
        let Some(endpoint) = cluster.set.endpoints.get(index as usize) else {
            return Err(Fault::new(Cause::Internal, "the picked endpoint is out of range"));
        };
        record.attempts += 1;
        record.endpoint = Some(endpoint.address);
        let load = InFlight::begin(&endpoint.state);
        match connect(worker, cluster, index, asked, &view).await {
            Ok((upstream, ahead, seat)) => break (upstream, ahead, seat, load),
            Err(fault) if record.attempts >= rules.connect_attempts => return Err(fault),
            Err(fault) => {
                tracing::debug!(cause = fault.cause.name(), detail = %fault.detail, "trying another endpoint");
                view.tried.push(index);
            }
        }
    };
    record.opened();
    // Else a client that vanished would be one that is silent, which may be for long.
    keep_alive(client);
    let rules = Rules {
        idle: rules.idle_timeout,
        lifetime: rules.max_lifetime,
        timers: &worker.timers,
        up: &record.bytes_in,
        down: &record.bytes_out,
    };
    relay(client, &upstream, ahead, read, rules).await.map_err(|broke| {
        let cause = match &broke {
            Broke::Client(_) => Cause::ClientGone,
            Broke::Upstream(_) => Cause::Reset,
            Broke::Idle(_) => Cause::IdleTimeout,
            Broke::Lifetime(_) => Cause::TotalTimeout,
        };
        Fault::new(cause, broke)
    })
}

/// A connection to one endpoint, whose health and load hear of it.
async fn connect(
    worker: &Worker,
    cluster: &Arc<Cluster>,
    index: u32,
    asked: &Asked,
    view: &EndpointsView,
) -> Result<(TcpStream, Bytes, TunnelSeat), Fault> {
    let begun = worker.now();
    let connected = worker.upstreams.tcp(cluster, index, &asked.connection).await;
    report(worker, view, index, connected.as_ref().map(|_| worker.now().saturating_sub(begun)));
    connected
}

/// The endpoint's health and load hear of it: that it took a connection, or answered, and how long that took; or that not.
fn report(worker: &Worker, view: &EndpointsView, index: u32, took: Result<Duration, &Fault>) {
    match took {
        Ok(took) => {
            if let Some(endpoint) = view.get(index) {
                endpoint.state.sample_latency(worker.now(), took);
            }
            exchange::report(worker, view, index, Outcome::Success);
        }
        Err(fault) => exchange::report_fault(worker, view, index, fault),
    }
}
