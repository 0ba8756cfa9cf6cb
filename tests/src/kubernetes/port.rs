//! Ports for programs that cannot be told to take any free one.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, getsockname, setsockopt, socket, sockopt::ReusePort};

/// A TCP port that the system chose and gives to nobody else while this lives. A program that sets SO_REUSEPORT can listen on it, also after it
/// was started again.
#[derive(Debug)]
pub(super) struct ReservedPort {
    /// Where to listen.
    pub(super) address: SocketAddr,
    // Bound and never listening: nothing is ever connected to it.
    _socket: OwnedFd,
}

impl ReservedPort {
    /// A port of an address of this machine.
    pub(super) fn of(ip: IpAddr) -> io::Result<Self> {
        let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, ReusePort, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(ip, 0)))?;
        let bound: SockaddrStorage = getsockname(fd.as_raw_fd())?;
        let port = bound.as_sockaddr_in().map(|a| a.port()).or_else(|| bound.as_sockaddr_in6().map(|a| a.port()));
        let port = port.ok_or_else(|| io::Error::other("a TCP socket without a port"))?;
        Ok(Self { address: SocketAddr::new(ip, port), _socket: fd })
    }
}
