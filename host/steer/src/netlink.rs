//! Netlink (RFC 3549) as far as it is asked here: a request, and the messages that answer it.

use std::io;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with, sockopt,
};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;
/// Of an attribute's type: whether it holds attributes, and in what order its bytes are.
const TYPE: u16 = 0x3fff;

pub(crate) struct Netlink {
    socket: std::os::fd::OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// `None` is NETLINK_ROUTE, whose number is 0.
    pub(crate) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        // The kernel answers at once; what does not come will not come.
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(std::time::Duration::from_secs(5)))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Calls `each` with the type and content of every message of a dump.
    pub(crate) fn dump(&mut self, kind: u16, content: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.exchange(kind, NLM_F_DUMP, content, |kind, content| each(kind, content))
    }

    /// A request that is acknowledged or refused.
    pub(crate) fn request(&mut self, kind: u16, content: &[u8]) -> io::Result<()> {
        self.exchange(kind, NLM_F_ACK, content, |_, _| {})
    }

    fn exchange(&mut self, kind: u16, flags: u16, content: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER + content.len());
        message.extend(((HEADER + content.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(content);
        send(&self.socket, &message, SendFlags::empty())?;
        // Dumps come in pieces of 32 KiB at most.
        let mut buffer = vec![0_u8; 64 * 1024];
        loop {
            let (received, _) = recv(&self.socket, &mut *buffer, RecvFlags::empty())?;
            for (kind, sequence, content) in messages(&buffer[..received]) {
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return acknowledged(content),
                    _ => each(kind, content),
                }
            }
        }
    }
}

/// An error message holds the negative `errno`, or 0.
fn acknowledged(content: &[u8]) -> io::Result<()> {
    match content.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Type, sequence number and content of each message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let message = bytes.get(..length).filter(|_| length >= HEADER)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let sequence = u32::from_ne_bytes([message[8], message[9], message[10], message[11]]);
        Some((kind, sequence, &message[HEADER..]))
    })
}

/// Type and content of each attribute.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let content = bytes.get(4..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & TYPE, content))
    })
}

pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, content)| content)
}

/// Appends an attribute.
pub(crate) fn put(message: &mut Vec<u8>, kind: u16, content: &[u8]) {
    message.extend(((4 + content.len()) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(content);
    message.resize(aligned(message.len()), 0);
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written_and_torn_ones_end_it() {
        let mut bytes = Vec::new();
        put(&mut bytes, 1, &[7, 8, 9]);
        put(&mut bytes, 0x8002, &[1]);
        assert_eq!(attributes(&bytes).collect::<Vec<_>>(), [(1, &[7, 8, 9][..]), (2, &[1][..])]);
        assert_eq!(attribute(&bytes, 2), Some(&[1][..]));
        for cut in 0..bytes.len() {
            assert!(attributes(&bytes[..cut]).count() <= 2);
        }
        assert_eq!(attributes(&[3, 0, 1, 0, 0, 0, 0, 0]).count(), 0, "shorter than its head");
    }

    #[test]
    fn messages_end_where_their_lengths_do() {
        let mut bytes = Vec::new();
        for (kind, sequence) in [(5_u16, 1_u32), (3, 1)] {
            bytes.extend(20_u32.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 2]);
            bytes.extend(sequence.to_ne_bytes());
            bytes.extend([0, 0, 0, 0, 1, 2, 3, 4]);
        }
        assert_eq!(messages(&bytes).collect::<Vec<_>>(), [(5, 1, &[1, 2, 3, 4][..]), (3, 1, &[1, 2, 3, 4][..])]);
        assert_eq!(messages(&bytes[..30]).count(), 1);
        assert_eq!(messages(&[0; 16]).count(), 0);
        assert!(acknowledged(&0_i32.to_ne_bytes()).is_ok());
        assert_eq!(acknowledged(&(-1_i32).to_ne_bytes()).map_err(|error| error.raw_os_error()), Err(Some(1)));
    }
}
