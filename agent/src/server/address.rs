//! The addresses at which the agent listens, and what helps where one cannot be had.

use std::{io, net::SocketAddr, time::Duration};

use nix::errno::Errno;
use tokio::net::TcpListener;

use crate::error::Error;

/// How long an address may be in use by somebody who is about to end, and how often it is tried meanwhile: nobody tells when it is free.
const RELEASED: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(50);

/// Makes the socket at which the API is served.
///
/// # Errors
/// `Start` when the address cannot be bound.
pub async fn bind(address: SocketAddr) -> Result<std::net::TcpListener, Error> {
    let end = tokio::time::Instant::now() + RELEASED;
    loop {
        let bound = async { TcpListener::bind(address).await?.into_std() };
        match bound.await {
            // Who listened there may be ending, or systemd may be about to close the socket that it kept at an address that overlaps.
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && tokio::time::Instant::now() < end => tokio::time::sleep(RETRY).await,
            other => return other.map_err(|e| unbound("listen", address, &e)),
        }
    }
}

/// Why the address of a key of the configuration cannot be bound, and what helps.
pub(super) fn unbound(key: &str, address: SocketAddr, error: &io::Error) -> Error {
    let port = address.port();
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => format!("is another agent running? `ss -ltnp 'sport = :{port}'` tells who listens there"),
        io::ErrorKind::AddrNotAvailable => {
            format!("no interface of this host has {} (`ip -brief address`); give one that it has, or 0.0.0.0 for all", address.ip())
        }
        io::ErrorKind::PermissionDenied => "run the agent as root, or give a port of 1024 or more".to_owned(),
        _ if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) && address.is_ipv6() => {
            format!("this host has no IPv6: {key} = \"0.0.0.0:{port}\"")
        }
        _ => "give another address".to_owned(),
    };
    Error::Start(format!("{key} = \"{address}\" cannot be bound ({error}); {remedy}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_that_cannot_be_had_is_told_with_what_helps() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind(address).await.unwrap_err().to_string();
        assert!(error.contains(&format!("listen = \"{address}\"")) && error.contains("another agent"), "{error}");
        assert!(error.contains(&format!("ss -ltnp 'sport = :{}'", address.port())), "{error}");
        // Kept for documentation: no host has it.
        let error = bind("192.0.2.1:7443".parse().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("no interface of this host has 192.0.2.1") && !error.contains("another agent"), "{error}");
    }

    #[test]
    fn the_remedy_is_one_for_what_is_wrong() {
        let table = [
            (Errno::EAFNOSUPPORT, "[::]:7443", "this host has no IPv6: listen = \"0.0.0.0:7443\""),
            (Errno::EADDRNOTAVAIL, "[2001:db8::1]:7443", "no interface of this host has 2001:db8::1"),
            (Errno::EADDRINUSE, "[::]:7443", "is another agent running?"),
            (Errno::EACCES, "0.0.0.0:443", "a port of 1024 or more"),
            (Errno::EAFNOSUPPORT, "0.0.0.0:7443", "give another address"),
        ];
        for (errno, address, remedy) in table {
            let error = unbound("listen", address.parse().unwrap(), &errno.into()).to_string();
            assert!(error.contains(remedy) && error.contains(&format!("listen = \"{address}\"")), "{error}");
        }
    }
}
