//! Connections of TCP, from the kernel's lists.

use std::path::Path;

use super::{Connections, read};
use crate::error::Error;

/// The kernel's number of the state "established".
const ESTABLISHED: &str = "01";
/// That of "listen".
const LISTEN: &str = "0A";

/// Connections to these ports of this host, of both families.
pub(super) fn count(proc: &Path, ports: &[u16]) -> Result<Connections, Error> {
    let mut all = Connections::default();
    for file in ["net/tcp", "net/tcp6"] {
        // No such list: that family is switched off.
        if let Some(text) = read::text(&proc.join(file), read::LARGEST)? {
            add(&mut all, &text, ports);
        }
    }
    Ok(all)
}

fn add(all: &mut Connections, text: &str, ports: &[u16]) {
    for line in text.lines().skip(1) {
        let mut fields = line.split_whitespace().skip(1);
        let (Some(local), Some(state)) = (fields.next(), fields.nth(1)) else { continue };
        let port = local.rsplit_once(':').and_then(|(_, p)| u16::from_str_radix(p, 16).ok());
        if !port.is_some_and(|p| ports.contains(&p)) {
            continue;
        }
        match state {
            ESTABLISHED => all.established = all.established.saturating_add(1),
            LISTEN => all.listening = true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn listeners_and_connections_of_this_host_are_counted() {
        let count = |port: u16| count(Path::new("/proc"), &[port]).unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A machine without IPv6.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            assert_eq!(count(port), Connections { listening: true, established: 0 });
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let _served = listener.accept().unwrap();
            assert_eq!(count(port), Connections { listening: true, established: 1 });
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(sl|\n| |0100007F:0016|0A|01|:|\\PC){0,40}") {
            add(&mut Connections::default(), &text, &[22]);
        }
    }
}
