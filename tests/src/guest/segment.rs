//! An Ethernet segment between guests: a hub for frames in datagrams. It needs no privilege and nothing of the host's network.

use std::{
    collections::BTreeSet,
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use tempfile::TempDir;
use uuid::Uuid;

/// A cable that any number of guests can be plugged into; clones are the same cable. Frames pass as they are, VLAN tags and all.
#[derive(Debug, Clone)]
pub struct Segment(Arc<Hub>);

#[derive(Debug)]
struct Hub {
    dir: TempDir,
}

impl Segment {
    /// A segment with nobody on it.
    pub fn new() -> io::Result<Self> {
        let dir = TempDir::with_prefix("net")?;
        let socket = UnixDatagram::bind(dir.path().join("hub"))?;
        // Not the hub's socket: what is sent must never wait for a guest that does not read.
        let out = UnixDatagram::unbound()?;
        out.set_nonblocking(true)?;
        thread::spawn(move || carry(&socket, &out));
        Ok(Self(Arc::new(Hub { dir })))
    }

    /// Where frames go to.
    pub(super) fn hub(&self) -> PathBuf {
        self.0.dir.path().join("hub")
    }

    /// A new place to receive frames at.
    pub(super) fn port(&self) -> PathBuf {
        self.0.dir.path().join(&Uuid::new_v4().simple().to_string()[..8])
    }
}

/// Gives every frame to all but its sender. Who has not sent anything yet is found in the folder, so that nobody has to begin.
fn carry(socket: &UnixDatagram, out: &UnixDatagram) {
    let mut frame = vec![0; 1 << 17];
    while let Ok((n, from)) = socket.recv_from(&mut frame) {
        let Some(from) = from.as_pathname() else { return };
        let ports = ports(from.parent().unwrap_or(from));
        for port in ports.iter().filter(|p| p.as_path() != from) {
            // A full queue or a guest that is off loses the frame, as a cable would.
            let _ = out.send_to(&frame[..n], port);
        }
    }
}

fn ports(dir: &Path) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| !p.ends_with("hub")).collect()
}

impl Drop for Hub {
    fn drop(&mut self) {
        // A datagram from nowhere ends the thread.
        let _ = UnixDatagram::unbound().and_then(|s| s.send_to(&[], self.dir.path().join("hub")));
    }
}
