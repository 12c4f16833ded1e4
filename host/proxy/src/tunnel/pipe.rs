//! Pipes for splice(2): bytes go from socket to socket without a copy into this process.
//!
//! A worker keeps a few that are empty. A large one holds a megabyte of pages while its receiver does not take them, so
//! there are so many a worker and no more; whoever gets none copies.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::net::TcpStream;

/// What a pipe is asked to hold; also the most that an unprivileged process may ask for (`fs.pipe-max-size`).
const SIZE: libc::c_int = 1024 * 1024;
/// Pipes of a worker, in use or kept: 64 MiB of pages at most.
const MOST: usize = 64;
/// Empty ones that are kept.
const KEPT: usize = 16;

thread_local! {
    static EMPTY: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
    static OPEN: Cell<usize> = const { Cell::new(0) };
}

pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes in it.
    held: usize,
}

impl Drop for Pipe {
    fn drop(&mut self) {
        OPEN.set(OPEN.get() - 1);
    }
}

impl Pipe {
    /// An empty one, if there is room for one.
    pub(super) fn take() -> Option<Self> {
        if let Some(pipe) = EMPTY.with_borrow_mut(Vec::pop) {
            return Some(pipe);
        }
        if OPEN.get() >= MOST {
            return None;
        }
        let mut ends = [0; 2];
        // SAFETY: `ends` has room for the two descriptors that are written.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) } != 0 {
            return None;
        }
        // SAFETY: both were just opened, and nobody else knows them.
        let [read, write] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        // Where it is refused the usual size does, in more calls.
        // SAFETY: the descriptor is open; the call takes an integer.
        unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, SIZE) };
        OPEN.set(OPEN.get() + 1);
        Some(Self { read, write, held: 0 })
    }

    /// Keeps it for the next who wants one. One that is not empty is closed.
    pub(super) fn give_back(self) {
        if self.held == 0 {
            EMPTY.with_borrow_mut(|empty| {
                if empty.len() < KEPT {
                    empty.push(self);
                }
            });
        }
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Moves in what the socket has; 0 at its end. Called while the pipe is empty: else it could seem that the socket is.
    pub(super) fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let moved =
            from.try_io(Interest::READABLE, || splice(from.as_raw_fd(), self.write.as_raw_fd(), SIZE as usize))?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves out what the socket takes.
    pub(super) fn drain(&mut self, to: &TcpStream) -> io::Result<usize> {
        let moved = to.try_io(Interest::WRITABLE, || splice(self.read.as_raw_fd(), to.as_raw_fd(), self.held))?;
        self.held -= moved;
        Ok(moved)
    }
}

fn splice(from: libc::c_int, to: libc::c_int, most: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    let none = std::ptr::null_mut();
    loop {
        // SAFETY: both descriptors are open for as long as the call takes; offsets are for neither sockets nor pipes.
        let moved = unsafe { libc::splice(from, none, to, none, most, flags) };
        match usize::try_from(moved) {
            Ok(moved) => return Ok(moved),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_so_many_and_keeps_a_few() {
        let pipes: Vec<_> = std::iter::from_fn(Pipe::take).collect();
        assert_eq!(pipes.len(), MOST);
        pipes.into_iter().for_each(Pipe::give_back);
        assert_eq!(OPEN.get(), KEPT);
        assert_eq!(EMPTY.with_borrow(Vec::len), KEPT);
        let taken = Pipe::take().expect("there are some");
        assert_eq!((taken.held(), OPEN.get()), (0, KEPT));
    }
}
