//! Packet sockets: Ethernet frames of one type, in and out of one link.

use std::{
    collections::BTreeSet,
    io,
    net::Ipv6Addr,
    os::fd::{AsFd, AsRawFd},
};

use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::socket::{LinkAddr, MsgFlags, SockaddrStorage, bind, recvfrom, send},
};
use smoltcp::wire::EthernetAddress;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{error::Error, host::process::async_fd};

/// `sll_pkttype` of frames for this host: to itself, broadcast, multicast. Others were sent to somebody else, or carry the tag of a VLAN that
/// the link has no interface for.
const FOR_US: std::ops::RangeInclusive<u8> = 0..=2;

/// A link as sockets see it, and what is needed to tell its host's own answers from those of others.
#[derive(Debug, Clone)]
pub(super) struct Interface {
    /// Its MAC address.
    pub(super) mac: EthernetAddress,
    /// Its IPv6 link-local address.
    pub(super) link_local: Option<Ipv6Addr>,
    /// The MAC addresses of all links of this host.
    pub(super) own: BTreeSet<EthernetAddress>,
    name: String,
    address: LinkAddr,
}

impl Interface {
    /// Looks it up. Blocks for a moment. Errors: `InterfaceNotFound`, `NetworkFailed`.
    pub(super) fn find(name: &str) -> Result<Self, Error> {
        let addresses = getifaddrs().map_err(|e| failed(name, &e.into()))?;
        let (mut found, mut link_local, mut own) = (None, None, BTreeSet::new());
        for entry in addresses {
            let Some(address) = &entry.address else { continue };
            if let Some(link) = address.as_link_addr() {
                own.extend(ethernet(link));
                if entry.interface_name == name {
                    found = Some(*link);
                }
            }
            if entry.interface_name == name {
                link_local = link_local.or_else(|| local(address));
            }
        }
        let address = found.ok_or_else(|| Error::InterfaceNotFound { interface: name.to_owned() })?;
        let mac = ethernet(&address)
            .ok_or_else(|| Error::NetworkFailed { message: format!("{name} has no MAC address; only Ethernet links can be probed") })?;
        Ok(Self { mac, link_local, own, name: name.to_owned(), address })
    }

    /// What went wrong with it, as an error.
    pub(super) fn failed(&self, error: &io::Error) -> Error {
        failed(&self.name, error)
    }
}

fn failed(name: &str, error: &io::Error) -> Error {
    let message = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => format!("{name} cannot be probed: {error}; the agent needs CAP_NET_RAW"),
        Some(Errno::ENXIO | Errno::ENODEV) => return Error::InterfaceNotFound { interface: name.to_owned() },
        _ => format!("{name} cannot be probed: {error}"),
    };
    Error::NetworkFailed { message }
}

/// The address of an Ethernet link (ARPHRD_ETHER).
fn ethernet(link: &LinkAddr) -> Option<EthernetAddress> {
    (link.hatype() == 1 && link.halen() == 6).then(|| link.addr()).flatten().map(EthernetAddress)
}

fn local(address: &SockaddrStorage) -> Option<Ipv6Addr> {
    address.as_sockaddr_in6().map(|a| a.ip()).filter(Ipv6Addr::is_unicast_link_local)
}

/// A socket for Ethernet frames of one type on one link. It does not see what this host itself sends there, nor what the link hands on to a
/// bridge or bond it is a port of.
#[derive(Debug)]
pub(super) struct PacketSocket {
    fd: AsyncFd<Socket>,
    index: usize,
}

impl PacketSocket {
    /// Opens it. `filter`: a classic BPF program over the whole frame; empty: every frame of the type.
    pub(super) async fn open(interface: &Interface, ethertype: u16, filter: fn() -> Vec<SockFilter>) -> Result<Self, Error> {
        let address = interface.address;
        // Binding waits for the kernel's readers of its list of sockets, which may take some milliseconds.
        let opened = tokio::task::spawn_blocking(move || {
            let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), Some(Protocol::from(i32::from(ethertype.to_be()))))?;
            let filter = filter();
            if !filter.is_empty() {
                socket.attach_filter(&filter)?;
            }
            // The address holds no type: the socket's own stays.
            bind(socket.as_raw_fd(), &address)?;
            io::Result::Ok(socket)
        });
        let socket = opened.await.unwrap_or_else(|e| Err(io::Error::other(e))).and_then(async_fd);
        Ok(Self { fd: socket.map_err(|e| interface.failed(&e))?, index: interface.address.ifindex() })
    }

    /// The next frame for this host; what does not fit the buffer is cut off. May be dropped at any time without losing a frame.
    pub(super) async fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        loop {
            // A link that goes down is told as an error of the socket, which alone does not make it readable.
            let mut ready = self.fd.ready(Interest::READABLE | Interest::ERROR).await?;
            let received = ready.try_io(|fd| Ok(recvfrom::<LinkAddr>(fd.as_raw_fd(), buffer)?));
            match received {
                Ok(Ok((length, Some(from)))) if from.ifindex() == self.index && FOR_US.contains(&from.pkttype()) => {
                    return Ok(&buffer[..length]);
                }
                // Of another link (between opening and binding, or of a VLAN on this one), or for somebody else.
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                // Not ready after all.
                Err(_) => {}
            }
        }
    }

    /// Sends a frame. `false`: there was no room for it, or it is larger than the link takes.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<bool> {
        match send(self.fd.as_fd().as_raw_fd(), frame, MsgFlags::empty()) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EMSGSIZE | Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
