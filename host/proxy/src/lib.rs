//! Sockets to sockets: everything of the gateway that does IO.
//!
//! A request goes one way through these modules, top to bottom, and a module uses only those below it:
//!
//! 1. [`worker`]: a thread per core with its runtime, sockets, pools.
//! 2. `listener`: accept, limits, a task per connection; PROXY header, TLS and QUIC handshakes inside that task.
//! 3. `tunnel`: connections and datagrams that are relayed as they are.
//! 4. `codec`: a stream becomes requests, replies become bytes again: HTTP/1, HTTP/2, HTTP/3.
//! 5. `exchange`: one request, all steps in order. Read this first.
//! 6. `upstream`: clusters as this worker sees them: connections dialled, shared, reused.
//!    `origin` is the connection in memory to one that answers within this process.
//! 7. `relay`: bytes or datagrams both ways, for tunnels.
//! 8. `body`: the frames that stream through, and the pump that moves them.
//! 9. `buffer`, `pace`: what may wait here, and how slow a peer may be.
//! 10. `tenant`: whose a request is, and how those of one tenant take turns.
//! 11. [`observe`]: one record per exchange or tunnel; metrics and access log come from it.
//! 12. [`snapshot`]: all that a worker needs to know, immutable.
//!
//! `clock` and `timer` are the time for all of them. `capsule` frames the datagrams of a tunnel on a stream. `proxy_protocol` reads and writes the header of that name, for `listener` and `upstream`.

mod body;
mod buffer;
mod capsule;
mod clock;
mod codec;
mod exchange;
#[cfg(fuzzing)]
pub mod fuzz;
mod gso;
mod listener;
pub mod observe;
mod origin;
mod pace;
mod proxy_protocol;
mod relay;
pub mod snapshot;
mod stream;
mod tenant;
mod timer;
mod tunnel;
mod upstream;
pub mod worker;

pub use body::Coding;
pub use buffer::{Allowance, Buffers};
pub use exchange::{ClientCertificate, Via};
pub use listener::tls::{
    CertificatePair, ClientAuth, ClientPolicy, Expiry, NamedCertificate, Remembered, ServerTls, ServerTlsSpec,
    TlsError, roots,
};
pub use origin::Origin;
pub use pace::LeastRate;
pub use tenant::{Owner, Tenant};
pub use upstream::health::{Alarm, CheckKind, HealthCheck, HealthChecks};
pub use upstream::tls::{ClientTls, ClientTlsSpec};
