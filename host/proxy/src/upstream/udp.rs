//! UDP sockets for tunnels: one each, which knows its endpoint, so that the kernel takes nothing from anybody else and
//! tells when nobody listens (RFC 9298, section 3.1).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket};

use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};
use tidegate_policy::{Cause, Fault};
use tokio::net::UdpSocket;

/// A socket to `address` that never sends fragments.
pub(super) fn connect(address: SocketAddr) -> Result<UdpSocket, Fault> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let open = || {
        let socket = StdSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        // Don't Fragment, and no path MTU of the kernel's: the ends of the tunnel find their own out, and whoever forges
        // an ICMP message does not lower it.
        match address {
            SocketAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
            SocketAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
        }
        socket.connect(address)?;
        UdpSocket::from_std(socket)
    };
    open().map_err(|error: std::io::Error| Fault::new(Cause::ConnectFailed, format!("{address}: UDP: {error}")))
}
