//! Network namespaces with a kernel's own network each: clients, gateways and backends as if on hosts of their own. They
//! need root, `ip` and kernel support; where they are not to be had, tests say so and pass.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Deleted when dropped; what still runs in it keeps it alive until it ends.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    /// A new one with loopback up. `None`, said aloud, where there is no way to have one.
    pub fn new(role: &str) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tg{}x{}{role}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let made = Command::new("ip").args(["netns", "add", &name]).output();
        match made {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                eprintln!("SKIPPED: no network namespaces here (they need root): {said}");
                return None;
            }
            Err(error) => {
                eprintln!("SKIPPED: no network namespaces here: ip: {error}; tests/setup installs iproute2");
                return None;
            }
        }
        let namespace = Self { name };
        namespace.ip("link set lo up");
        Some(namespace)
    }

    /// `ip` with these words, in here.
    pub fn ip(&self, words: &str) {
        run(Command::new("ip").args(["-n", &self.name]).args(words.split(' ')));
    }

    /// Sets a kernel parameter, as in `net/ipv4/ip_forward`.
    pub fn set(&self, parameter: &str, value: &str) {
        self.run(|| std::fs::write(format!("/proc/sys/{parameter}"), value).expect("a kernel parameter"));
    }

    /// A program in here: what it said, if it ended well.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("ip").args(["netns", "exec", &self.name, program]).args(arguments).output();
        let output = output.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() { Ok(said) } else { Err(said) }
    }

    /// Runs `work` in here: sockets that it opens stay in here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter = self.entrance();
        std::thread::scope(|scope| {
            let worker = scope.spawn(move || {
                enter();
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread in here, for good.
    pub fn entrance(&self) -> impl FnOnce() + Send + use<> {
        let file = File::open(format!("/run/netns/{}", self.name)).expect("the namespace");
        move || {
            // SAFETY: `setns` takes no memory, and the descriptor is open; only the calling thread changes.
            let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(entered, 0, "cannot enter the namespace: {}", std::io::Error::last_os_error());
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("ip runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
