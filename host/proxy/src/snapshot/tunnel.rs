//! What a listener that tunnels does with a connection.

use std::sync::Arc;
use std::time::Duration;

use tidegate_policy::TunnelRouter;
use tidegate_policy::native::TunnelTable;

use super::Cluster;

/// Where connections go that are not decrypted here, and how long they may take.
pub struct TunnelRules {
    /// Whether TCP connections are relayed, and whether datagrams are.
    pub tcp: bool,
    pub udp: bool,
    /// Finds an index into `clusters`.
    pub table: TunnelTable,
    pub clusters: Box<[Arc<Cluster>]>,
    /// A plugin, asked first.
    pub router: Option<Arc<dyn TunnelRouter>>,
    pub otherwise: Otherwise,
    /// Until the whole ClientHello is there, where it is waited for.
    pub hello_timeout: Duration,
    /// Endpoints tried until one takes the connection, at least 1.
    pub connect_attempts: u32,
    /// Without a byte either way.
    pub idle_timeout: Option<Duration>,
    /// Without a datagram either way of a session.
    pub udp_idle_timeout: Duration,
    pub max_lifetime: Option<Duration>,
}

/// What becomes of a connection that no row and no router sends anywhere.
pub enum Otherwise {
    Cluster(Arc<Cluster>),
    /// It is ended here: the listener has TLS.
    Terminate,
    Close,
}

impl TunnelRules {
    /// Whether what the client says first decides anything.
    pub(crate) fn wants_hello(&self) -> bool {
        !self.table.is_empty() || self.router.is_some()
    }
}
