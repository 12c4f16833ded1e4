//! One owner for a steer's name.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Held by the process whose rules have this name. It is an abstract Unix socket: like rules it belongs to the network
/// namespace, and it goes with the process, however that ends. So rules under a name that can be claimed are a dead
/// process's.
#[derive(Debug)]
pub struct Claim {
    _socket: UnixListener,
}

#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("another process here steers as {0:?}; give one of them another name")]
    Taken(String),
    #[error("cannot claim the name {0:?}")]
    Failed(String, #[source] io::Error),
}

impl Claim {
    pub fn new(name: &str) -> Result<Self, ClaimError> {
        let bound = SocketAddr::from_abstract_name(format!("tidegate.steer.{name}"))
            .and_then(|address| UnixListener::bind_addr(&address));
        match bound {
            Ok(socket) => Ok(Self { _socket: socket }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(ClaimError::Taken(name.to_owned())),
            Err(error) => Err(ClaimError::Failed(name.to_owned(), error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_owner_at_a_time() {
        let name = format!("test-{}", std::process::id());
        let held = Claim::new(&name).expect("nobody has it");
        assert!(matches!(Claim::new(&name), Err(ClaimError::Taken(_))));
        drop(held);
        Claim::new(&name).expect("it is free again");
    }
}
