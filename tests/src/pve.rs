//! What people do to a simulated host behind the agent's back, by PVE's own API: what the web interface does.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use pve_sim::layout::NodeLayout;
use serde_json::Value;

use crate::agent::SOON;

/// An answer of PVE's local API.
#[derive(Debug)]
pub struct Answer {
    /// HTTP's status.
    pub status: u16,
    /// The reason of the status line, where PVE puts its message.
    pub reason: String,
    /// The JSON body; null when there is none.
    pub body: Value,
}

/// The local API of one node, as somebody else uses it.
#[derive(Debug)]
pub struct Pve {
    layout: NodeLayout,
}

impl Pve {
    /// That of a node.
    pub fn new(layout: NodeLayout) -> Self {
        Self { layout }
    }

    /// Makes a call below `/api2/json/nodes/<node>` with a ticket for root@pam; `form` is `key=value&...`, encoded.
    pub fn call(&self, method: &str, path: &str, form: &str) -> io::Result<Answer> {
        self.send(method, path, form, false)
    }

    /// As [`Self::call`], with header and body in segments of their own.
    pub fn call_split(&self, method: &str, path: &str, form: &str) -> io::Result<Answer> {
        self.send(method, path, form, true)
    }

    fn send(&self, method: &str, path: &str, form: &str, split: bool) -> io::Result<Answer> {
        let ticket = pve_sim::ticket::assemble(&self.layout, "root@pam")?;
        let quoted: String =
            ticket.bytes().map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") }).collect();
        let head = format!(
            "{method} /api2/json/nodes/{}{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nCookie: PVEAuthCookie={quoted}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n",
            self.layout.node(),
            form.len()
        );
        let address = std::fs::read_to_string(self.layout.api_address())?;
        let mut stream = TcpStream::connect(address.trim())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SOON))?;
        if split {
            stream.write_all(head.as_bytes())?;
            // What follows comes when the daemon has read the header: it asks nobody, so the only sign of it is that the socket is drained.
            drained(&stream)?;
            stream.write_all(form.as_bytes())?;
        } else {
            stream.write_all(format!("{head}{form}").as_bytes())?;
        }
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| io::Error::other(format!("no answer: {text:?}")))?;
        let mut line = head.lines().next().unwrap_or_default().splitn(3, ' ').skip(1);
        let status = line.next().and_then(|s| s.parse().ok()).ok_or_else(|| io::Error::other(format!("no status: {head}")))?;
        let reason = line.next().unwrap_or_default().to_owned();
        Ok(Answer { status, reason, body: serde_json::from_str(body).unwrap_or_default() })
    }

    /// Makes a call that starts a task and waits for the task's end line.
    pub fn task(&self, method: &str, path: &str, form: &str) -> String {
        let answer = self.call(method, path, form).expect("PVE answers");
        assert_eq!(answer.status, 200, "{answer:?}");
        let upid = answer.body["data"].as_str().expect("a UPID").to_owned();
        self.task_end(&upid)
    }

    /// Waits for the end line of a task.
    pub fn task_end(&self, upid: &str) -> String {
        let start = upid.split(':').nth(4).expect("a UPID");
        let log = self.layout.tasks().join(&start[start.len() - 1..]).join(upid);
        wait_file(log, SOON, |text| text.lines().last().filter(|l| l.starts_with("TASK ")).map(str::to_owned)).expect("the task ends")
    }
}

fn drained(stream: &TcpStream) -> io::Result<()> {
    // Linux tells nobody when the peer has read; an acknowledged segment is as good, since the peer reads from a queue of its own. A
    // second connection that is answered proves that its event loop has had a turn since.
    let address = stream.peer_addr()?;
    let mut other = TcpStream::connect(address)?;
    other.set_read_timeout(Some(SOON))?;
    other.write_all(b"OPTIONS / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    other.read_to_end(&mut Vec::new()).map(drop)
}

/// Waits, by inotify, until a file's text is as wanted; returns what `wanted` made of it.
pub fn wait_file<T>(path: PathBuf, limit: Duration, wanted: impl Fn(&str) -> Option<T>) -> io::Result<T> {
    let end = Instant::now() + limit;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let folder = path.parent().ok_or_else(|| io::Error::other("no folder"))?;
    inotify.add_watch(
        folder,
        AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE,
    )?;
    loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if let Some(found) = wanted(&text) {
            return Ok(found);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::other(format!("{} is not as wanted within {limit:?}:\n{text}", path.display())));
        }
        let millis = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
        poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(&inotify), PollFlags::POLLIN)], millis)?;
        while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}
