//! What failed, on whose side, and what that proves. Crosses layers from the sockets up to the reply.

use std::fmt;

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Side {
    Downstream,
    Upstream,
    Internal,
}

/// Why an exchange or an attempt failed. Each maps to one status and one Proxy-Status error (RFC 9209, section 2.3).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Cause {
    // Upstream, before a request byte was written.
    ConnectTimeout,
    ConnectRefused,
    ConnectFailed,
    TlsFailed,
    TlsCertificate,
    /// No endpoint is available, or the balancer wants none.
    NoEndpoint,
    /// Waited too long, or too many wait, for a connection of the pool.
    PoolExhausted,
    // Upstream, after.
    /// The connection ended before a whole response head.
    Reset,
    /// HTTP/2 REFUSED_STREAM (RFC 9113, section 8.7), HTTP/3 H3_REQUEST_REJECTED (RFC 9114, section 4.1.1).
    RefusedStream,
    /// GOAWAY that says the request was not processed (RFC 9113, section 6.8; RFC 9114, section 5.2).
    GoAway,
    /// HTTP/2 RST_STREAM or QUIC RESET_STREAM with another code.
    StreamReset,
    HeaderTimeout,
    AttemptTimeout,
    IdleTimeout,
    TotalTimeout,
    /// The response broke the protocol: framing, syntax, too large a head.
    ResponseInvalid,
    ResponseHeadTooLarge,
    /// The answer to a handshake is neither an acceptance that holds nor a refusal.
    UpgradeFailed,
    /// The body ended before its length, or the connection died in it.
    ResponseTruncated,
    /// A whole head arrived and its status asks for another try.
    Status,
    // Downstream.
    ClientGone,
    RequestInvalid,
    RequestBodyTooLarge,
    RequestBodyTimeout,
    // Ours.
    NoRoute,
    /// A request for a name that the client's TLS connection is not for.
    Misdirected,
    /// It went through this gateway too often already.
    Loop,
    /// `CONNECT` to an authority that no route allows.
    TunnelDenied,
    /// A protocol that the route does not take, where the request cannot go on without it.
    TunnelUnsupported,
    /// A plugin with `on_failure = "deny"` failed.
    PolicyDenied,
    /// The cluster's circuit breaker is open: it has all it may have in flight.
    ClusterFull,
    /// The tenant has all the requests it may have in flight.
    TenantFull,
    Overload,
    Draining,
    Internal,
}

impl Cause {
    pub fn side(self) -> Side {
        use Cause::*;
        match self {
            ClientGone | RequestInvalid | RequestBodyTooLarge | RequestBodyTimeout => Side::Downstream,
            NoRoute | Misdirected | Loop | TunnelDenied | TunnelUnsupported | PolicyDenied | ClusterFull
            | TenantFull | Overload | Draining | Internal => Side::Internal,
            _ => Side::Upstream,
        }
    }

    /// The name in logs and metric labels.
    pub fn name(self) -> &'static str {
        use Cause::*;
        match self {
            ConnectTimeout => "connect_timeout",
            ConnectRefused => "connect_refused",
            ConnectFailed => "connect_failed",
            TlsFailed => "tls_failed",
            TlsCertificate => "tls_certificate",
            NoEndpoint => "no_endpoint",
            PoolExhausted => "pool_exhausted",
            Reset => "reset",
            RefusedStream => "refused_stream",
            GoAway => "go_away",
            StreamReset => "stream_reset",
            HeaderTimeout => "header_timeout",
            AttemptTimeout => "attempt_timeout",
            IdleTimeout => "idle_timeout",
            TotalTimeout => "total_timeout",
            ResponseInvalid => "response_invalid",
            ResponseHeadTooLarge => "response_head_too_large",
            UpgradeFailed => "upgrade_failed",
            ResponseTruncated => "response_truncated",
            Status => "status",
            ClientGone => "client_gone",
            RequestInvalid => "request_invalid",
            RequestBodyTooLarge => "request_body_too_large",
            RequestBodyTimeout => "request_body_timeout",
            NoRoute => "no_route",
            Misdirected => "misdirected",
            Loop => "loop",
            TunnelDenied => "tunnel_denied",
            TunnelUnsupported => "tunnel_unsupported",
            PolicyDenied => "policy_denied",
            ClusterFull => "cluster_full",
            TenantFull => "tenant_full",
            Overload => "overload",
            Draining => "draining",
            Internal => "internal",
        }
    }
}

/// A failure with its cause, what it proves, and words for the log.
#[derive(Debug)]
pub struct Fault {
    pub cause: Cause,
    /// The upstream provably did not process the request: nothing of it was written, or the upstream said so.
    pub unprocessed: bool,
    pub detail: String,
}

impl Fault {
    pub fn new(cause: Cause, detail: impl fmt::Display) -> Self {
        use Cause::*;
        let unprocessed = matches!(
            cause,
            ConnectTimeout
                | ConnectRefused
                | ConnectFailed
                | TlsFailed
                | TlsCertificate
                | NoEndpoint
                | PoolExhausted
                | RefusedStream
                | GoAway
        );
        Self { cause, unprocessed, detail: detail.to_string() }
    }

    /// Marks that no byte of the request left this process.
    pub fn nothing_written(mut self) -> Self {
        self.unprocessed = true;
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause.name(), self.detail)
    }
}

impl std::error::Error for Fault {}
