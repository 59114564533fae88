//! Binds a node's sockets: for each shard one or two TCP listeners and a UDP socket, those of a
//! kind on the same port (SO_REUSEPORT).
//!
//! Owns the socket options. What a listener has, each accepted socket inherits (Linux), so
//! accepting sets none.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// Bytes that a connection may hold in the kernel unsent before it counts as full: below it a
/// stream's next states are encoded late, hence fresh, and hardly any kernel memory is held for a
/// slow reader.
const NOTSENT_LOWAT_BYTES: u32 = 16_384;

/// What to bind.
#[derive(Clone, Copy, Debug)]
pub struct BindOptions {
    /// HTTP; port 0 lets the kernel choose one.
    pub http: SocketAddr,
    /// HTTP over TLS; port 0 lets the kernel choose one. None: there is no such listener.
    pub https: Option<SocketAddr>,
    /// HTTP of operators; port 0 lets the kernel choose one. None: there is no such listener.
    pub admin: Option<SocketAddr>,
    /// Beats; port 0 lets the kernel choose one. None: none are received.
    pub udp: Option<SocketAddr>,
    /// Sockets of each kind.
    pub shards: u16,
    /// `listen` backlog; the kernel cuts it to `net.core.somaxconn`.
    pub backlog: u32,
    /// Bytes wanted for each UDP receive buffer; the kernel cuts it to `net.core.rmem_max`.
    pub udp_buffer_bytes: usize,
    /// TCP_USER_TIMEOUT of accepted connections, in ms.
    pub write_stall_max_ms: u64,
}

/// A node's bound sockets, one of each kind for each shard.
#[derive(Debug)]
pub struct Bound {
    /// Where HTTP listens.
    pub http: SocketAddr,
    /// Where HTTP over TLS listens, if it does.
    pub https: Option<SocketAddr>,
    /// Where it listens for operators, if it does.
    pub admin: Option<SocketAddr>,
    /// Where beats arrive, if they do.
    pub udp: Option<SocketAddr>,
    /// Receive buffer that each UDP socket got, in bytes of payload and bookkeeping.
    pub udp_buffer_bytes: usize,
    pub(super) listeners: Vec<TcpListener>,
    pub(super) https_listeners: Vec<TcpListener>,
    pub(super) admins: Vec<TcpListener>,
    pub(super) datagrams: Vec<UdpSocket>,
}

/// Why a socket was not bound.
#[derive(Debug)]
pub struct BindFault {
    /// `http`, `https`, `admin` or `udp`: the flag that sets the address.
    pub flag: &'static str,
    /// The address asked for.
    pub addr: SocketAddr,
    /// The kernel's reason.
    pub source: io::Error,
}

impl std::fmt::Display for BindFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let BindFault { flag, addr, source } = self;
        write!(f, "--{flag} {addr}: {source}")?;
        match source.kind() {
            io::ErrorKind::AddrInUse => write!(
                f,
                "; another process has it: stop that one, or choose another port with --{flag}"
            ),
            io::ErrorKind::AddrNotAvailable => {
                write!(f, "; no interface of this machine has that address")
            }
            io::ErrorKind::PermissionDenied => {
                write!(f, "; ports below 1024 need CAP_NET_BIND_SERVICE")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for BindFault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Binds everything or nothing.
///
/// Errors: an address is taken or not ours, or the kernel lacks what sockets of shards need.
pub fn bind(options: &BindOptions) -> Result<Bound, BindFault> {
    let (http, listeners) = bind_listeners("http", options.http, options)?;
    let some = |flag, addr: Option<SocketAddr>| match addr {
        Some(addr) => {
            bind_listeners(flag, addr, options).map(|(addr, sockets)| (Some(addr), sockets))
        }
        None => Ok((None, Vec::new())),
    };
    let (https, https_listeners) = some("https", options.https)?;
    let (admin, admins) = some("admin", options.admin)?;
    let mut bound = Bound {
        http,
        https,
        admin,
        udp: None,
        udp_buffer_bytes: 0,
        listeners,
        https_listeners,
        admins,
        datagrams: Vec::new(),
    };
    if let Some(addr) = options.udp {
        let udp = |source| BindFault {
            flag: "udp",
            addr,
            source,
        };
        bound.bind_datagrams(addr, options).map_err(udp)?;
    }
    Ok(bound)
}

/// A listener for each shard, and where they listen.
fn bind_listeners(
    flag: &'static str,
    addr: SocketAddr,
    options: &BindOptions,
) -> Result<(SocketAddr, Vec<TcpListener>), BindFault> {
    let fault = |source| BindFault { flag, addr, source };
    let bind_one = |addr, share| listener(addr, share, options);
    let sockets = bind_group(addr, options.shards, bind_one).map_err(fault)?;
    let listeners: Vec<TcpListener> = sockets.into_iter().map(TcpListener::from).collect();
    let bound = listeners[0].local_addr().map_err(fault)?;
    Ok((bound, listeners))
}

impl Bound {
    fn bind_datagrams(&mut self, addr: SocketAddr, options: &BindOptions) -> io::Result<()> {
        let sockets = bind_group(addr, options.shards, |addr, share| {
            datagram(addr, share, options)
        })?;
        if options.shards > 1 {
            // Linux 4.5; a sandbox may forbid it. Without it all works, and some shards have more
            // to do.
            if let Err(error) = steer_by_source_port(&sockets[0], options.shards) {
                tracing::warn!(%error, "the kernel does not spread datagrams by their source \
                                        ports, but by a hash of their addresses: less evenly");
            }
        }
        self.udp_buffer_bytes = sockets[0].recv_buffer_size()?;
        self.datagrams = sockets.into_iter().map(UdpSocket::from).collect();
        self.udp = Some(self.datagrams[0].local_addr()?);
        Ok(())
    }
}

/// Spreads datagrams over a group's sockets by their source port, modulo the number of sockets
/// (socket(7), SO_ATTACH_REUSEPORT_CBPF). What one socket sends stays on one shard, so it is taken
/// in the order in which it arrives: a beat behind a goodbye undoes it, however short the time
/// between the two. So many ports in a row spread evenly, which the kernel's own choice, a hash of
/// the addresses, does not; real-time nodes send from ports in a row (`links/beats.rs`).
fn steer_by_source_port(socket: &Socket, sockets: u16) -> io::Result<()> {
    // Classic BPF (linux/filter.h). The data is the datagram's payload by then; its IP header is
    // found from SKF_NET_OFF on. An index beyond the sockets leaves the choice to the kernel's
    // hash: an IP header with options or extensions, behind which the ports are elsewhere.
    let byte = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    let half = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    let equals = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let at = |offset: i32| (libc::SKF_NET_OFF + offset) as u32;
    let mut program = [
        instruction(byte, at(0)),
        // IPv4 with a header of 20 bytes: the source port is behind it.
        jump(equals, 0x45, 0, 2),
        instruction(half, at(20)),
        jump(libc::BPF_JMP | libc::BPF_JA, 5, 0, 0),
        // IPv6 with UDP right behind its header of 40 bytes.
        instruction(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 4),
        jump(equals, 6, 0, 5),
        instruction(byte, at(6)),
        jump(equals, libc::IPPROTO_UDP as u32, 0, 3),
        instruction(half, at(40)),
        // A %= sockets; return A, the index in the order of binding.
        instruction(
            libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K,
            u32::from(sockets),
        ),
        instruction(libc::BPF_RET | libc::BPF_A, 0),
        instruction(libc::BPF_RET | libc::BPF_K, u32::MAX),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `filter` and the program it points to live until the call returns, which copies them;
    // the length is the struct's.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            std::ptr::from_ref(&filter).cast(),
            size_of_val(&filter) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn instruction(code: u32, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

/// Goes on so many instructions further if the condition holds, or if it does not.
fn jump(code: u32, k: u32, if_true: u8, if_false: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: if_true,
        jf: if_false,
        k,
    }
}

/// Whether a socket shares its port from the start.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Share {
    /// Bound without SO_REUSEPORT, which is set afterwards: the port is claimed against every other
    /// process, where SO_REUSEPORT from the start would quietly join another server of the same
    /// user and take half of its clients.
    Afterwards,
    /// Bound with SO_REUSEPORT, beside the first.
    FromTheStart,
}

/// Binds `shards` sockets to one port. The first claims it (or chooses it, for port 0), the others
/// join it.
fn bind_group(
    addr: SocketAddr,
    shards: u16,
    bind_one: impl Fn(SocketAddr, Share) -> io::Result<Socket>,
) -> io::Result<Vec<Socket>> {
    let first = bind_one(addr, Share::Afterwards)?;
    let chosen = first
        .local_addr()?
        .as_socket()
        .ok_or(io::ErrorKind::AddrNotAvailable)?;
    let mut sockets = vec![first];
    for _ in 1..shards {
        sockets.push(bind_one(chosen, Share::FromTheStart)?);
    }
    Ok(sockets)
}

fn listener(addr: SocketAddr, share: Share, options: &BindOptions) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(addr),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    // Binds beside connections of a previous process that are still in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    socket.set_tcp_user_timeout(Some(Duration::from_millis(options.write_stall_max_ms)))?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
    socket.set_reuse_port(share == Share::FromTheStart)?;
    socket.bind(&addr.into())?;
    // With SO_REUSEADDR it is listening, not binding, that claims the port.
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    socket.set_reuse_port(true)?;
    Ok(socket)
}

fn datagram(addr: SocketAddr, share: Share, options: &BindOptions) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(addr),
        Type::DGRAM.nonblocking().cloexec(),
        Some(Protocol::UDP),
    )?;
    socket.set_recv_buffer_size(options.udp_buffer_bytes)?;
    socket.set_reuse_port(share == Share::FromTheStart)?;
    socket.bind(&addr.into())?;
    socket.set_reuse_port(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use socket2::SockRef;

    use super::*;

    fn options(shards: u16) -> BindOptions {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        BindOptions {
            http: any,
            https: Some(any),
            admin: Some(any),
            udp: Some(any),
            shards,
            backlog: 128,
            udp_buffer_bytes: 65_536,
            write_stall_max_ms: 30_000,
        }
    }

    fn accept_one(bound: &Bound) -> (usize, TcpStream) {
        loop {
            for (shard, listener) in bound.listeners.iter().enumerate() {
                match listener.accept() {
                    Ok((stream, _)) => return (shard, stream),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
        }
    }

    #[test]
    fn accepted_sockets_inherit_the_listeners_options() {
        let bound = bind(&options(2)).unwrap();
        // Connections of the first listener, which shares its port afterwards, and of the second.
        let mut seen = [false; 2];
        while seen != [true; 2] {
            let _client = TcpStream::connect(bound.http).unwrap();
            let (shard, stream) = accept_one(&bound);
            seen[shard] = true;
            let socket = SockRef::from(&stream);
            assert!(socket.tcp_nodelay().unwrap());
            assert!(socket.keepalive().unwrap());
            assert_eq!(
                socket.tcp_user_timeout().unwrap(),
                Some(Duration::from_millis(30_000))
            );
            assert_eq!(socket.tcp_notsent_lowat().unwrap(), NOTSENT_LOWAT_BYTES);
        }
    }

    /// The shard that gets what this client sends.
    fn reached(bound: &Bound, client: &UdpSocket) -> usize {
        client.send_to(b"beat", bound.udp.unwrap()).unwrap();
        let mut buffer = [0; 8];
        loop {
            let mut sockets = bound.datagrams.iter();
            if let Some(shard) = sockets.position(|socket| socket.recv(&mut buffer).is_ok()) {
                return shard;
            }
        }
    }

    #[test]
    fn datagrams_reach_every_shard() {
        let bound = bind(&options(3)).unwrap();
        let mut seen = [false; 3];
        while seen != [true; 3] {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            seen[reached(&bound, &client)] = true;
        }
    }

    #[test]
    fn what_one_socket_sends_stays_on_one_shard() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            for shards in [1, 2, 3, 4] {
                let any: SocketAddr = any.parse().unwrap();
                let options = BindOptions {
                    http: any,
                    udp: Some(any),
                    ..options(shards)
                };
                let Ok(bound) = bind(&options) else {
                    assert!(any.is_ipv6(), "a machine has IPv4, and may have no IPv6");
                    continue;
                };
                for _ in 0..8 {
                    let client = UdpSocket::bind(any).unwrap();
                    let port = client.local_addr().unwrap().port();
                    for _ in 0..8 {
                        assert_eq!(reached(&bound, &client), usize::from(port % shards));
                    }
                }
            }
        }
    }

    #[test]
    fn a_port_that_another_server_shares_is_refused() {
        let first = bind(&options(2)).unwrap();
        let again = BindOptions {
            http: first.http,
            ..options(2)
        };
        let fault = bind(&again).unwrap_err();
        assert_eq!(
            (fault.flag, fault.source.kind()),
            ("http", io::ErrorKind::AddrInUse)
        );
        let again = BindOptions {
            https: first.https,
            ..options(2)
        };
        let fault = bind(&again).unwrap_err();
        assert_eq!(fault.flag, "https", "{fault}");
        let again = BindOptions {
            admin: first.admin,
            ..options(2)
        };
        let fault = bind(&again).unwrap_err();
        assert_eq!(fault.flag, "admin", "{fault}");
        let again = BindOptions {
            udp: first.udp,
            ..options(2)
        };
        let fault = bind(&again).unwrap_err();
        assert_eq!(
            (fault.flag, fault.source.kind()),
            ("udp", io::ErrorKind::AddrInUse)
        );
        assert!(
            fault.to_string().contains("choose another port with --udp"),
            "{fault}"
        );
    }
}
