//! Which of the host's ports processes listen on: what the kernel tells in `/proc/self/net`. Published ports of
//! containers are among them, for the Engine's proxies listen there.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use tokio::net::{TcpSocket, UnixStream};

use crate::deploy::ports::TakenPort;

/// The kernel's tables, with the protocol and the state of a socket that takes what comes (`include/net/tcp_states.h`):
/// a TCP socket listens, a UDP socket is bound and not connected.
const TABLES: [(&str, &str, &str); 4] = [
    ("tcp", "tcp", "0A"),
    ("tcp6", "tcp", "0A"),
    ("udp", "udp", "07"),
    ("udp6", "udp", "07"),
];

/// Who listens on these ports. None when the Engine has a network of its own, which cannot be seen from here, or the
/// kernel does not tell.
pub(super) async fn on(ports: &BTreeSet<u16>, docker_socket: &Path) -> Option<Vec<TakenPort>> {
    if ports.is_empty() {
        return Some(Vec::new());
    }
    if !shares_our_network(docker_socket).await {
        return None;
    }
    let mut found = Vec::new();
    for (table, protocol, state) in TABLES {
        // A host without IPv6 has no tables of it.
        let text = match tokio::fs::read_to_string(format!("/proc/self/net/{table}")).await {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound && table.ends_with('6') => continue,
            Err(_) => return None,
        };
        let listening = text.lines().filter_map(|line| socket_of(line, state));
        found.extend(
            listening
                .filter(|socket| ports.contains(&socket.port()))
                .map(|socket| TakenPort {
                    address: Some(socket.ip().to_canonical()),
                    port: socket.port(),
                    protocol: protocol.to_owned(),
                }),
        );
    }
    let both: Vec<TakenPort> = found.iter().filter_map(also_on_ipv4).collect();
    found.extend(both);
    Some(found)
}

/// Whether the Engine's network is ours, as it is unless one of them was put elsewhere. What cannot be compared (the
/// agent may not look at the Engine's process) is taken for the usual.
async fn shares_our_network(docker_socket: &Path) -> bool {
    let Ok(stream) = UnixStream::connect(docker_socket).await else {
        return false;
    };
    // Of a socket that systemd opened it is systemd, which has the host's network too.
    let Some(pid) = stream.peer_cred().ok().and_then(|peer| peer.pid()) else {
        return false;
    };
    // 0: a process that is not in our sight at all, in another machine's or container's.
    if pid == 0 {
        return false;
    }
    let theirs = tokio::fs::read_link(format!("/proc/{pid}/ns/net")).await;
    let ours = tokio::fs::read_link("/proc/self/ns/net").await;
    match (theirs, ours) {
        (Ok(theirs), Ok(ours)) => theirs == ours,
        (Err(_), _) | (_, Err(_)) => true,
    }
}

/// The local address of a line of `/proc/net/tcp`, when its state is this one: `0: 0100007F:1F90 00000000:0000 0A ...`,
/// each 32-bit word of the address in the machine's byte order.
fn socket_of(line: &str, state: &str) -> Option<SocketAddr> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, _remote, found) = (words.next()?, words.next()?, words.next()?);
    if found != state {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let mut bytes = Vec::new();
    for at in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// The IPv4 half of a TCP socket at `::`, which the tables do not tell apart from one for IPv6 alone: it is there when
/// nobody else can bind that port. Bound and let go at once, never listened on: nobody can connect to it.
fn also_on_ipv4(taken: &TakenPort) -> Option<TakenPort> {
    if taken.address != Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) || taken.protocol != "tcp" {
        return None;
    }
    let address = Ipv4Addr::UNSPECIFIED;
    let socket = TcpSocket::new_v4().ok()?;
    // Without it a port with old connections that are being closed would look taken.
    socket.set_reuseaddr(true).ok()?;
    let bound = socket.bind(SocketAddr::from((address, taken.port)));
    let is_taken = bound.is_err_and(|error| error.kind() == ErrorKind::AddrInUse);
    is_taken.then(|| TakenPort {
        address: Some(address.into()),
        ..taken.clone()
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_kernels_lines_are_read() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1526 1";
        let read = socket_of(line, "0A").unwrap();
        assert_eq!(read, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(socket_of(line, "01"), None);
        let line = "   1: 00000000000000000000000001000000:0050 0:0 0A 0";
        assert_eq!(socket_of(line, "0A").unwrap(), "[::1]:80".parse().unwrap());
        assert_eq!(
            socket_of("  sl  local_address rem_address   st tx_queue", "0A"),
            None
        );
    }

    #[test]
    fn a_socket_that_takes_both_is_told_as_two() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        // std's listener at :: takes IPv4 too, as the kernel's default is.
        let Ok(both) = TcpListener::bind("[::]:0") else {
            return;
        };
        let port = both.local_addr().unwrap().port();
        let taken = TakenPort::read("::", port, "tcp");
        let half = runtime.block_on(async { also_on_ipv4(&taken) });
        assert_eq!(half, Some(TakenPort::read("0.0.0.0", port, "tcp")));
        drop(both);
        assert_eq!(runtime.block_on(async { also_on_ipv4(&taken) }), None);
    }
}
