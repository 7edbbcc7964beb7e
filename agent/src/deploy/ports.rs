//! The host's ports: which a service publishes, which are taken, and when two get in each other's way. Pure.

use std::fmt;
use std::net::IpAddr;

/// A port of the host that a service publishes, or a range of which any one will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPorts {
    /// The host's address; none: all of them, IPv4 and IPv6.
    pub address: Option<IpAddr>,
    /// The port, or the first of the range.
    pub first: u16,
    /// The same port, or the last of the range.
    pub last: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// A port of the host that somebody has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenPort {
    /// The address; none: all of them.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

impl HostPorts {
    /// Reads what Compose or the Engine says: an address (empty for all), a port or a range `8000-8010`, a protocol
    /// (empty for tcp). None for a port that the Engine chooses, and for what cannot be read.
    pub fn read(address: &str, published: &str, protocol: &str) -> Option<Self> {
        let (first, last) = published.split_once('-').unwrap_or((published, published));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (0 < first && first <= last).then(|| Self {
            address: address_of(address),
            first,
            last,
            protocol: protocol_of(protocol),
        })
    }

    /// The port, where it is one and not a range.
    pub fn fixed(&self) -> Option<u16> {
        (self.first == self.last).then_some(self.first)
    }

    /// Whether it, or one of its range, cannot be had beside this one.
    pub fn collides(&self, taken: &TakenPort) -> bool {
        (self.first..=self.last).contains(&taken.port)
            && self.protocol == taken.protocol
            && overlap(self.address, taken.address)
    }

    /// The same port as one that is taken: none for a range.
    pub fn as_taken(&self) -> Option<TakenPort> {
        Some(TakenPort {
            address: self.address,
            port: self.fixed()?,
            protocol: self.protocol.clone(),
        })
    }
}

impl TakenPort {
    /// Reads what the Engine says of a container's port.
    pub fn read(address: &str, port: u16, protocol: &str) -> Self {
        Self {
            address: address_of(address),
            port,
            protocol: protocol_of(protocol),
        }
    }
}

impl fmt::Display for TakenPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) if !address.is_unspecified() => write!(f, "{address} port {}", self.port)?,
            Some(_) | None => write!(f, "port {}", self.port)?,
        }
        match self.protocol.as_str() {
            "tcp" => Ok(()),
            other => write!(f, "/{other}"),
        }
    }
}

fn address_of(text: &str) -> Option<IpAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

fn protocol_of(text: &str) -> String {
    if text.is_empty() {
        "tcp".to_owned()
    } else {
        text.to_lowercase()
    }
}

/// Whether one port cannot be bound at both. `0.0.0.0` is every IPv4 address and `::` every IPv6 one: a socket at `::`
/// that takes IPv4 too is told as two.
fn overlap(one: Option<IpAddr>, other: Option<IpAddr>) -> bool {
    let (Some(one), Some(other)) = (one, other) else {
        return true;
    };
    one.is_ipv4() == other.is_ipv4() && (one == other || one.is_unspecified() || other.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_collide_where_address_port_and_protocol_do() {
        for (address, published, protocol, taken, collides) in [
            ("", "8080", "tcp", ("0.0.0.0", 8080, "tcp"), true),
            ("", "8080", "tcp", ("::", 8080, "tcp"), true),
            ("", "8080", "tcp", ("127.0.0.1", 8080, "tcp"), true),
            ("127.0.0.1", "8080", "", ("0.0.0.0", 8080, "tcp"), true),
            ("127.0.0.1", "8080", "tcp", ("127.0.0.1", 8080, "tcp"), true),
            (
                "127.0.0.1",
                "8080",
                "tcp",
                ("::ffff:127.0.0.1", 8080, "tcp"),
                true,
            ),
            ("127.0.0.1", "8080", "tcp", ("127.0.0.2", 8080, "tcp"), false),
            ("127.0.0.1", "8080", "tcp", ("::", 8080, "tcp"), false),
            ("::1", "8080", "tcp", ("::", 8080, "tcp"), true),
            ("", "8080", "tcp", ("", 8080, "udp"), false),
            ("", "8080", "tcp", ("", 8081, "tcp"), false),
            ("", "8000-8090", "tcp", ("", 8080, "tcp"), true),
        ] {
            let ports = HostPorts::read(address, published, protocol).unwrap();
            let (other, port, protocol) = taken;
            let taken = TakenPort::read(other, port, protocol);
            assert_eq!(ports.collides(&taken), collides, "{ports:?} beside {taken:?}");
        }
    }

    #[test]
    fn a_port_that_the_engine_chooses_is_none() {
        for published in ["", "0", "x", "9-8"] {
            assert_eq!(HostPorts::read("", published, "tcp"), None, "{published}");
        }
        assert_eq!(HostPorts::read("", "8000-8010", "tcp").unwrap().as_taken(), None);
    }

    #[test]
    fn a_taken_port_is_named_with_its_address_only_where_that_says_something() {
        for (taken, shown) in [
            (TakenPort::read("0.0.0.0", 53, "udp"), "port 53/udp"),
            (TakenPort::read("", 80, "tcp"), "port 80"),
            (TakenPort::read("127.0.0.1", 80, "tcp"), "127.0.0.1 port 80"),
        ] {
            assert_eq!(taken.to_string(), shown);
        }
    }
}
