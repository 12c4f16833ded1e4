//! A client, a gateway and two backends in namespaces of their own, joined by a switch; services that say who they are and
//! who asks, and flows that ask them.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::namespace::Namespace;

/// How a lab is wired.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wiring {
    /// The client on one side of the gateway, which is the backends' way out, on the other.
    Routed,
    /// All on one Ethernet; the backends have the virtual address too.
    Bridged,
}

pub struct Lab {
    pub client: Namespace,
    pub gateway: Namespace,
    pub backends: [Namespace; 2],
    switch: Namespace,
    wiring: Wiring,
    ipv6: bool,
}

/// The port of the virtual address.
pub const PORT: u16 = 80;

impl Lab {
    /// `None`, said aloud, where there are no namespaces or no nftables.
    pub fn new(wiring: Wiring, ipv6: bool) -> Option<Self> {
        if std::process::Command::new("nft").arg("--version").output().is_err() {
            eprintln!("SKIPPED: no nft here; tests/setup installs nftables");
            return None;
        }
        let lab = Self {
            client: Namespace::new("c")?,
            gateway: Namespace::new("g")?,
            backends: [Namespace::new("a")?, Namespace::new("b")?],
            switch: Namespace::new("s")?,
            wiring,
            ipv6,
        };
        lab.switch.ip("link add br0 type bridge");
        lab.switch.ip("link set br0 up");
        let length = if ipv6 { 64 } else { 24 };
        lab.plug(&lab.gateway, "gateway", &format!("{}/{length}", lab.inside(2)));
        for (index, backend) in lab.backends.iter().enumerate() {
            lab.plug(backend, &format!("backend{index}"), &format!("{}/{length}", lab.backend(index)));
        }
        let version = if ipv6 { "-6 " } else { "" };
        match wiring {
            Wiring::Bridged => {
                lab.plug(&lab.client, "client", &format!("{}/{length}", lab.client_address()));
                for backend in &lab.backends {
                    if !ipv6 {
                        // The address is the gateway's in the eyes of the others.
                        backend.set("net/ipv4/conf/all/arp_ignore", "1");
                        backend.set("net/ipv4/conf/all/arp_announce", "2");
                    }
                    lab.address(backend, "lo", &lab.alone());
                }
            }
            Wiring::Routed => {
                let veth = format!("link add e0 type veth peer name e1 netns {}", lab.gateway.name);
                lab.client.ip(&veth);
                lab.client.ip("link set e0 up");
                lab.gateway.ip("link set e1 up");
                lab.address(&lab.client, "e0", &format!("{}/{length}", lab.client_address()));
                lab.address(&lab.gateway, "e1", &format!("{}/{length}", lab.outside(2)));
                lab.client.ip(&format!("{version}route add default via {}", lab.outside(2)));
                for backend in &lab.backends {
                    backend.ip(&format!("{version}route add default via {}", lab.inside(2)));
                }
                let forward = if ipv6 { "net/ipv6/conf/all/forwarding" } else { "net/ipv4/ip_forward" };
                lab.gateway.set(forward, "1");
            }
        }
        let of_virtual = if wiring == Wiring::Routed { "e1" } else { "e0" };
        // Checks must not come from it: the endpoints would answer themselves.
        let no_source = if ipv6 { " nodad preferred_lft 0" } else { "" };
        lab.gateway.ip(&format!("addr add {} dev {of_virtual}{no_source}", lab.alone()));
        Some(lab)
    }

    /// A cable from the switch to `e0` of a host.
    fn plug(&self, host: &Namespace, port: &str, address: &str) {
        self.switch.ip(&format!("link add {port} type veth peer name e0 netns {}", host.name));
        self.switch.ip(&format!("link set {port} master br0"));
        self.switch.ip(&format!("link set {port} up"));
        host.ip("link set e0 up");
        self.address(host, "e0", address);
    }

    fn address(&self, host: &Namespace, interface: &str, address: &str) {
        // Nobody else has it: no need to wait until that is found out.
        let nodad = if self.ipv6 { " nodad" } else { "" };
        host.ip(&format!("addr add {address} dev {interface}{nodad}"));
    }

    fn alone(&self) -> String {
        format!("{}/{}", self.virtual_address(), if self.ipv6 { 128 } else { 32 })
    }

    fn inside(&self, host: u8) -> IpAddr {
        let text = if self.ipv6 { format!("fd53::{host}") } else { format!("10.53.0.{host}") };
        text.parse().expect("an address")
    }

    fn outside(&self, host: u8) -> IpAddr {
        let text = if self.ipv6 { format!("2001:db8::{host}") } else { format!("192.0.2.{host}") };
        text.parse().expect("an address")
    }

    fn clients_side(&self, host: u8) -> IpAddr {
        if self.wiring == Wiring::Routed { self.outside(host) } else { self.inside(host) }
    }

    pub fn client_address(&self) -> IpAddr {
        self.clients_side(1)
    }

    pub fn virtual_address(&self) -> IpAddr {
        self.clients_side(100)
    }

    pub fn backend(&self, index: usize) -> IpAddr {
        self.inside(11 + index as u8)
    }

    /// Cuts or mends a backend's cable.
    pub fn cable(&self, index: usize, mended: bool) {
        self.switch.ip(&format!("link set backend{index} {}", if mended { "up" } else { "down" }));
    }

    /// Gives a backend the virtual address, or takes it away.
    pub fn virtual_address_at(&self, index: usize, there: bool) {
        match there {
            true => self.address(&self.backends[index], "lo", &self.alone()),
            false => self.backends[index].ip(&format!("addr del {} dev lo", self.alone())),
        }
    }

    /// The MAC address of a host's `e0`.
    pub fn mac(&self, host: &Namespace) -> String {
        let said = host.output("ip", &["-o", "link", "show", "e0"]).expect("a link");
        let after = said.split("link/ether ").nth(1).expect("an Ethernet address");
        after.split(' ').next().expect("an address").to_owned()
    }

    /// Services on both backends, `a` and `b`, on a port of TCP and UDP.
    pub fn serve(&self, port: u16) -> [Service; 2] {
        [0, 1].map(|index| {
            // What comes over UDP to the virtual address is answered from it.
            let own = if self.wiring == Wiring::Bridged { self.virtual_address() } else { self.backend(index) };
            let any: IpAddr = if self.ipv6 { [0_u16; 8].into() } else { [0_u8; 4].into() };
            Service::start(&self.backends[index], ["a", "b"][index], (any, port).into(), (own, port).into())
        })
    }

    /// Opens a flow from the client to a port of the virtual address.
    pub fn flow(&self, udp: bool, port: u16) -> io::Result<Flow> {
        let to = SocketAddr::new(self.virtual_address(), port);
        let any: IpAddr = if self.ipv6 { [0_u16; 8].into() } else { [0_u8; 4].into() };
        self.client.run(|| {
            if udp {
                let socket = UdpSocket::bind((any, 0))?;
                socket.connect(to)?;
                socket.set_read_timeout(Some(Duration::from_millis(300)))?;
                return Ok(Flow::Udp(socket));
            }
            let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            Ok(Flow::Tcp(stream))
        })
    }
}

/// A connection, or datagrams from one port.
pub enum Flow {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Flow {
    /// Asks once: who answers, and whom it thinks it talks to.
    ///
    /// # Errors
    /// The connection was reset or nothing came; of datagrams, that ten in a row were lost.
    pub fn ask(&mut self) -> io::Result<(String, IpAddr)> {
        let mut answer = [0; 100];
        let length = match self {
            Self::Tcp(stream) => {
                stream.write_all(b"?")?;
                stream.read(&mut answer)?
            }
            Self::Udp(socket) => {
                let mut tries = 0;
                loop {
                    tries += 1;
                    let asked = socket.send(b"?").and_then(|_| socket.recv(&mut answer));
                    match asked {
                        Err(_) if tries < 10 => {}
                        other => break other?,
                    }
                }
            }
        };
        let text = String::from_utf8_lossy(&answer[..length]).into_owned();
        let (name, client) = text.split_once(' ').ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((name.to_owned(), client.parse().map_err(|_| io::ErrorKind::InvalidData)?))
    }

    /// Who answers.
    pub fn who(&mut self) -> String {
        self.ask().map_or_else(|error| format!("error: {error}"), |(name, _)| name)
    }
}

/// Answers whatever comes with its name and the address that it comes from. Ends when it is dropped.
pub struct Service {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    seen: Arc<Mutex<Vec<IpAddr>>>,
}

const LOOK: Duration = Duration::from_millis(50);

impl Service {
    fn start(host: &Namespace, name: &'static str, tcp: SocketAddr, udp: SocketAddr) -> Self {
        let (listener, socket) =
            host.run(|| (TcpListener::bind(tcp).expect("a port"), UdpSocket::bind(udp).expect("a port")));
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        listener.set_nonblocking(true).expect("a socket");
        socket.set_read_timeout(Some(LOOK)).expect("a socket");
        let mut threads = Vec::new();
        let (over, record) = (stop.clone(), seen.clone());
        threads.push(std::thread::spawn(move || serve_tcp(&listener, name, &over, &record)));
        let (over, record) = (stop.clone(), seen.clone());
        threads.push(std::thread::spawn(move || {
            let mut buffer = [0; 100];
            while !over.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    record.lock().expect("a record").push(from.ip());
                    let _ = socket.send_to(format!("{name} {}", from.ip()).as_bytes(), from);
                }
            }
        }));
        Self { stop, threads, seen }
    }

    /// Where what it answered came from; connections without a question, as checks are, apart.
    pub fn seen(&self) -> Vec<IpAddr> {
        self.seen.lock().expect("a record").clone()
    }
}

fn serve_tcp(listener: &TcpListener, name: &'static str, over: &AtomicBool, record: &Mutex<Vec<IpAddr>>) {
    // Few connections, each asked seldom: one thread looks at all in turn.
    let mut open: Vec<(TcpStream, IpAddr)> = Vec::new();
    while !over.load(Ordering::Relaxed) {
        while let Ok((stream, from)) = listener.accept() {
            stream.set_nonblocking(true).expect("a socket");
            open.push((stream, from.ip()));
        }
        open.retain_mut(|(stream, from)| {
            let mut buffer = [0; 100];
            match stream.read(&mut buffer) {
                Ok(0) => false,
                Ok(_) => {
                    record.lock().expect("a record").push(*from);
                    stream.write_all(format!("{name} {from}").as_bytes()).is_ok()
                }
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            }
        });
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
