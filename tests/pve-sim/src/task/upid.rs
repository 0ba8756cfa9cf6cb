//! UPID: the name of a task.

use std::{fmt, fs, str::FromStr};

/// `UPID:<node>:<pid>:<pstart>:<start time>:<type>:<id>:<user>:`, numbers in hex.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Upid {
    /// The node that runs it.
    pub node: String,
    /// The worker's process id.
    pub pid: u32,
    /// The worker's start time in clock ticks after boot (field 22 of `/proc/<pid>/stat`).
    pub pstart: u64,
    /// When it started, in seconds since 1970.
    pub starttime: u64,
    /// `qmclone`, `qmstart` ...
    pub kind: String,
    /// What it works on: a VMID, `<vmid>@<storage>`, or nothing.
    pub id: String,
    /// Who started it, `root@pam`.
    pub user: String,
}

/// A text that is no UPID.
#[derive(Debug, thiserror::Error)]
#[error("unable to parse worker upid")]
pub struct NotAUpid;

impl Upid {
    /// Whether its worker runs: a process of this pid that started at this tick and is no zombie.
    pub fn is_running(&self) -> bool {
        process_start(self.pid) == Some(self.pstart)
    }

    /// The tail of the log's path: `<last hex digit of the start time>/<UPID>`.
    pub fn log_name(&self) -> String {
        format!("{:X}/{self}", self.starttime & 0xf)
    }
}

impl fmt::Display for Upid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, pid, pstart, starttime, kind, id, user } = self;
        write!(f, "UPID:{node}:{pid:08X}:{pstart:08X}:{starttime:08X}:{kind}:{id}:{user}:")
    }
}

impl FromStr for Upid {
    type Err = NotAUpid;

    fn from_str(text: &str) -> Result<Self, NotAUpid> {
        let parts: Vec<&str> = text.split(':').collect();
        let [tag, node, pid, pstart, starttime, kind, id, user, end] = parts[..] else { return Err(NotAUpid) };
        let hex = |text: &str| {
            let digits = (8..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
            u64::from_str_radix(text, 16).ok().filter(|_| digits).ok_or(NotAUpid)
        };
        let word = |text: &str, empty: bool| (empty || !text.is_empty()) && !text.contains(['/', '\0', '\n']) && !text.contains(' ');
        if tag != "UPID" || !end.is_empty() || !word(node, false) || !word(kind, false) || !word(id, true) || !word(user, false) {
            return Err(NotAUpid);
        }
        Ok(Self {
            node: node.to_owned(),
            pid: u32::try_from(hex(pid)?).map_err(|_| NotAUpid)?,
            pstart: hex(pstart)?,
            starttime: hex(starttime)?,
            kind: kind.to_owned(),
            id: id.to_owned(),
            user: user.to_owned(),
        })
    }
}

impl TryFrom<String> for Upid {
    type Error = NotAUpid;

    fn try_from(text: String) -> Result<Self, NotAUpid> {
        text.parse()
    }
}

impl From<Upid> for String {
    fn from(upid: Upid) -> Self {
        upid.to_string()
    }
}

/// The start tick of a process that lives; none for a zombie.
pub fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold blanks and parentheses: the fields begin after its last one.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_recorded_upid_is_read_and_written() {
        let text = "UPID:pve1:00004407:0006DC4F:6B03E91A:qmdestroy:500:root@pam!rig:";
        let upid: Upid = text.parse().unwrap();
        assert_eq!((upid.pid, upid.pstart, upid.starttime), (17415, 449_615, 1_795_418_394));
        assert_eq!((upid.kind.as_str(), upid.id.as_str(), upid.user.as_str()), ("qmdestroy", "500", "root@pam!rig"));
        assert_eq!(upid.to_string(), text);
        assert_eq!(upid.log_name(), format!("A/{text}"));
    }

    #[test]
    fn what_is_no_upid_is_refused() {
        for text in [
            "foo",
            "UPID:pve1:1:2:3:a:b:c:",
            "UPID:pve1:00004407:0006DC4F:6B03E91A:qmdestroy:500:root@pam",
            "UPID:../x:00004407:0006DC4F:6B03E91A:a:b:c:",
        ] {
            assert!(text.parse::<Upid>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_own_process_runs_and_a_recycled_pid_does_not_count() {
        let pid = std::process::id();
        let mut upid: Upid = "UPID:n:00000001:00000001:00000001:a:b:c:".parse().unwrap();
        upid.pid = pid;
        assert!(!upid.is_running());
        upid.pstart = process_start(pid).unwrap();
        assert!(upid.is_running());
    }
}
