//! What is measured.

use super::load::{Front, Load};
use super::message::{Ask, KIB, MIB, NAME, head};
use super::proxies::{By, Decided, Kind};

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub load: Load,
    pub decided: Decided,
    pub measure: Measure,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Measure {
    /// Processor time of a request.
    Request,
    /// The same, by the bytes that it moved.
    Bytes,
    /// Memory of connections that are open and silent.
    Idle,
}

impl Scenario {
    pub fn fits(&self, kind: Kind) -> bool {
        kind.decides(self.decided)
            && kind.speaks(self.load.front)
            && (!self.load.ask.path.starts_with("/h2/") || kind.speaks_http2_upstream())
    }

    /// Bytes of content that a request moves.
    pub fn moves(&self) -> usize {
        self.load.ask.answer + self.load.ask.upload
    }
}

pub fn all() -> Vec<Scenario> {
    use Front::{Http1, Http1Tls, Http2, Http3};
    let small = Ask::get("/1k", KIB);
    let load = Load::of;
    let request = |name, load| Scenario { name, load, decided: Decided::No, measure: Measure::Request };
    let bytes = |name, load| Scenario { name, load, decided: Decided::No, measure: Measure::Bytes };
    let idle = |name, front, connections| Scenario {
        name,
        load: load(front, connections, 1, small),
        decided: Decided::No,
        measure: Measure::Idle,
    };
    let fresh = |front, connections| Load { fresh: true, ..load(front, connections, 1, small) };
    let decided = |name, decided| Scenario { decided, ..request(name, load(Http1, 64, 1, Ask::get("/api/1k", KIB))) };
    let again = |name, decided| {
        let ask = Ask::get(FLAKY, KIB);
        // Most of them are within the pause before another try.
        let load = Load { requests: Some(numbered(&ask)), ..load(Http1, 400, 1, ask) };
        Scenario { decided, ..request(name, load) }
    };
    let large = Ask::get("/10m", 10 * MIB);
    let tunnel = |scenario, splice| Scenario { decided: Decided::Tunnel { splice }, ..scenario };
    vec![
        request("HTTP/1.1, 1 KiB", load(Http1, 64, 1, small)),
        request("HTTP/1.1 over TLS, 1 KiB", load(Http1Tls, 64, 1, small)),
        request("HTTP/2, 1 KiB", load(Http2, 8, 32, small)),
        request("HTTP/2 to HTTP/2, 1 KiB", load(Http2, 8, 32, Ask::get("/h2/1k", KIB))),
        request("HTTP/3, 1 KiB", load(Http3, 8, 16, small)),
        request("new TCP connection", fresh(Http1, 16)),
        request("new TLS connection", fresh(Http1Tls, 16)),
        request("new QUIC connection", fresh(Http3, 16)),
        request("HTTP/1.1, 3,000 requests/s", Load { rate: Some(3000), ..load(Http1, 64, 1, small) }),
        decided("routed by a native rule", Decided::Native),
        decided("routed by a plugin", Decided::Plugin),
        decided("routed by a plugin, memoised", Decided::Memoised),
        decided("routed by a script", Decided::Script),
        decided("three questions, native", Decided::Questions(By::Rules)),
        decided("three questions, by plugins", Decided::Questions(By::Plugins)),
        decided("three questions, by plugins, memoised", Decided::Questions(By::Memoised)),
        again("four questions and a second try, native", Decided::Questions(By::Rules)),
        again("four questions and a second try, by plugins", Decided::Questions(By::Plugins)),
        again("four questions and a second try, by plugins, memoised", Decided::Questions(By::Memoised)),
        bytes("HTTP/1.1, 100 KiB", load(Http1, 16, 1, Ask::get("/100k", 100 * KIB))),
        bytes("HTTP/1.1, 10 MiB", load(Http1, 4, 1, large)),
        bytes("HTTP/1.1 over TLS, 10 MiB", load(Http1Tls, 4, 1, large)),
        bytes("HTTP/2, 10 MiB", load(Http2, 2, 2, large)),
        bytes("HTTP/3, 10 MiB", load(Http3, 2, 2, large)),
        bytes("uploads, 1 MiB", load(Http1, 8, 1, Ask { path: "/up", upload: MIB, answer: 0 })),
        tunnel(request("TCP tunnel, 1 KiB", load(Http1, 64, 1, small)), false),
        tunnel(request("TCP tunnel, new connection", fresh(Http1, 16)), false),
        tunnel(request("TCP tunnel, new connection, reset", Load { reset: true, ..fresh(Http1, 16) }), false),
        tunnel(bytes("TCP tunnel, 10 MiB", load(Http1, 4, 1, large)), false),
        tunnel(bytes("TCP tunnel, 10 MiB, spliced", load(Http1, 4, 1, large)), true),
        tunnel(idle("idle TCP tunnel", Http1, 5000), false),
        idle("idle HTTP/1.1", Http1, 5000),
        idle("idle TLS", Http1Tls, 5000),
        idle("idle HTTP/2", Http2, 5000),
        idle("idle HTTP/3", Http3, 1000),
    ]
}

/// Refused the first time, answered the second.
pub(super) const FLAKY: &str = "/api/flaky/1k";

/// Requests with a number each, so that an origin knows which came before. As many as are never under way at once.
pub(super) fn numbered(ask: &Ask) -> std::rc::Rc<[Vec<u8>]> {
    (1000..9000).map(|number: u32| head(ask, NAME, ask.path, &[("x-number", &number.to_string())])).collect()
}
