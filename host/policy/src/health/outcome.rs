//! What an attempt says of its endpoint.

use http::StatusCode;

use crate::{Cause, Side};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// An answer, and not one that blames the server.
    Success,
    /// 5xx but those of `Gateway`.
    ServerError,
    /// 502, 503 or 504.
    GatewayError,
    /// No answer: no connection, a reset, a timeout, a response that is none.
    LocalError,
}

impl Outcome {
    /// Of a response head. A gRPC failure hides in a 200 that has its status among the fields (trailers-only); those that
    /// blame the server count like the HTTP status they stand for (gRPC, "HTTP to gRPC Status Code Mapping", reversed).
    pub fn of_response(status: StatusCode, grpc_status: Option<&[u8]>) -> Self {
        match (status.as_u16(), grpc_status) {
            (502..=504, _) => Self::GatewayError,
            (500..=599, _) => Self::ServerError,
            // DEADLINE_EXCEEDED, UNAVAILABLE.
            (_, Some(b"4" | b"14")) => Self::GatewayError,
            // UNKNOWN, INTERNAL, DATA_LOSS.
            (_, Some(b"2" | b"13" | b"15")) => Self::ServerError,
            _ => Self::Success,
        }
    }

    /// Of an attempt without a response head; `None` where the endpoint is not to blame.
    pub fn of_fault(cause: Cause) -> Option<Self> {
        match cause {
            // Our own limits; an endpoint that closes in an orderly way is well; and one that does not speak what a client wants
            // to change to is no worse for it.
            Cause::NoEndpoint | Cause::PoolExhausted | Cause::GoAway | Cause::UpgradeFailed => None,
            _ if cause.side() != Side::Upstream => None,
            _ => Some(Self::LocalError),
        }
    }
}
