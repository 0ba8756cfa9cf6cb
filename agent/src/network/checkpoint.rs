//! The checkpoint of a change: what stands on the disk before anything is touched, and is enough to undo it without the agent.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pvelet_proto::v1;
use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::{
    error::Error,
    host::net::{Boot, Kernel, Network},
};

/// Grows when an older agent could not undo what a newer one began.
const VERSION: u32 = 1;

/// Where a change stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The checkpoint is written; the host is as it was.
    Prepared,
    /// The own file is the new one; the steps are run and verified.
    Applying,
    /// It is verified and waits for its confirmation.
    Waiting,
    /// It is final.
    Confirmed,
    /// It is being undone.
    RollingBack,
    /// It was undone, and the old state verified.
    RolledBack,
    /// It could not be undone: nothing is changed until a person has looked.
    RollbackFailed,
}

impl Phase {
    /// Whether something is left to be done about it.
    pub fn unfinished(self) -> bool {
        matches!(self, Self::Prepared | Self::Applying | Self::Waiting | Self::RollingBack)
    }

    /// As the API has it.
    pub fn shown(self) -> v1::NetworkChangeState {
        use v1::NetworkChangeState as S;
        match self {
            Self::Prepared => S::Prepared,
            Self::Applying => S::Applying,
            Self::Waiting => S::Waiting,
            Self::Confirmed => S::Confirmed,
            Self::RollingBack => S::RollingBack,
            Self::RolledBack => S::RolledBack,
            Self::RollbackFailed => S::RollbackFailed,
        }
    }
}

/// A gateway that answered before the change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    /// Where it is.
    pub link: String,
    /// Its address.
    pub address: IpAddr,
}

/// A change, from its preparation to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The format.
    version: u32,
    /// `operations/<uuid>`
    pub operation: String,
    /// The network that is changed.
    pub network: String,
    /// Where it stands.
    pub phase: Phase,
    /// When it was begun, milliseconds since the Unix epoch.
    pub begun_ms: u64,
    /// The boot in which it was begun.
    pub boot: String,
    /// When it is undone unless it is confirmed before, milliseconds since that boot.
    pub deadline_ms: u64,
    /// The same for people, milliseconds since the Unix epoch.
    pub deadline_unix_ms: u64,
    /// When it was applied and verified, milliseconds since that boot: a connection that confirms it must be younger.
    #[serde(default)]
    pub applied_ms: Option<u64>,
    /// What it does.
    pub plan: Plan,
    /// The kernel before.
    pub before: Kernel,
    /// Gateways that answered before.
    pub gateways: Vec<Gateway>,
    /// Whether the steps may have been begun.
    #[serde(default)]
    pub touched: bool,
    /// Why it was undone, or could not be.
    #[serde(default)]
    pub detail: String,
    /// Who undid it: "agent", "timer", "boot".
    #[serde(default)]
    pub undone_by: String,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since the Unix epoch.
pub fn unix_millis() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn timestamp(ms: u64) -> prost_types::Timestamp {
    (UNIX_EPOCH + Duration::from_millis(ms)).into()
}

impl Checkpoint {
    /// A change that is about to be made. It is undone at the latest `patience` from now.
    pub fn new(
        operation: &str,
        network: &str,
        plan: Plan,
        before: Kernel,
        gateways: Vec<Gateway>,
        boot: &Boot,
        patience: Duration,
    ) -> Self {
        let now = unix_millis();
        let mut this = Self {
            version: VERSION,
            operation: operation.to_owned(),
            network: network.to_owned(),
            phase: Phase::Prepared,
            begun_ms: now,
            boot: boot.id.clone(),
            deadline_ms: 0,
            deadline_unix_ms: 0,
            applied_ms: None,
            plan,
            before,
            gateways,
            touched: false,
            detail: String::new(),
            undone_by: String::new(),
        };
        this.set_deadline(boot, patience);
        this
    }

    fn set_deadline(&mut self, boot: &Boot, after: Duration) {
        self.deadline_ms = millis(boot.time + after);
        self.deadline_unix_ms = unix_millis().saturating_add(millis(after));
    }

    /// It is applied and verified now, and waits so long for its confirmation.
    pub fn applied(&mut self, boot: &Boot, confirm: Duration) {
        self.phase = Phase::Waiting;
        self.applied_ms = Some(millis(boot.time));
        self.set_deadline(boot, confirm);
    }

    /// How long it may still wait; `None`: its time is over, or it is of another boot.
    pub fn left(&self, boot: &Boot) -> Option<Duration> {
        let left = self.deadline_ms.saturating_sub(millis(boot.time));
        (self.boot == boot.id && left > 0).then(|| Duration::from_millis(left))
    }

    /// Whether a connection that was opened then (since boot) is younger than the change.
    pub fn older_than(&self, opened: Duration, boot: &Boot) -> bool {
        self.boot == boot.id && self.applied_ms.is_some_and(|applied| millis(opened) > applied)
    }

    /// As the API shows it.
    pub fn shown(&self) -> v1::NetworkChange {
        v1::NetworkChange {
            operation: self.operation.clone(),
            network: self.network.clone(),
            state: self.phase.shown().into(),
            begin_time: Some(timestamp(self.begun_ms)),
            deadline: self.applied_ms.map(|_| timestamp(self.deadline_unix_ms)),
            detail: self.detail.clone(),
            undone_by: self.undone_by.clone(),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let head: Head = serde_json::from_slice(bytes).map_err(|e| format!("it is damaged ({e})"))?;
        if head.version > VERSION {
            return Err(format!("it has version {}, this agent knows up to {VERSION}; install the newer one again", head.version));
        }
        serde_json::from_slice(bytes).map_err(|e| format!("it is damaged ({e})"))
    }
}

/// What stands on the disk.
#[derive(Debug)]
pub enum Found {
    /// No change was ever made.
    None,
    /// The last change.
    One(Box<Checkpoint>),
    /// Something that this agent cannot read, and why: as good as a change that cannot be undone.
    Unreadable(String),
}

/// Reads the checkpoint. Errors: `NetworkFailed` when the disk cannot be read.
pub async fn find(net: &dyn Network) -> Result<Found, Error> {
    Ok(match net.read_checkpoint().await? {
        None => Found::None,
        Some(bytes) => Checkpoint::parse(&bytes).map_or_else(Found::Unreadable, |c| Found::One(Box::new(c))),
    })
}

/// The last change, when there is one. Errors: `NetworkLatched` when it cannot be read; `NetworkFailed`.
pub async fn load(net: &dyn Network) -> Result<Option<Box<Checkpoint>>, Error> {
    match find(net).await? {
        Found::None => Ok(None),
        Found::One(checkpoint) => Ok(Some(checkpoint)),
        Found::Unreadable(why) => Err(Error::NetworkLatched { operation: "the checkpoint of the last change".into(), why }),
    }
}

/// Writes it. Errors: `NetworkFailed`.
pub async fn save(net: &dyn Network, checkpoint: &Checkpoint) -> Result<(), Error> {
    let bytes = serde_json::to_vec(checkpoint).map_err(|e| Error::Internal(format!("a checkpoint cannot be encoded: {e}")))?;
    net.write_checkpoint(&bytes).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn boot(id: &str, seconds: u64) -> Boot {
        Boot { id: id.into(), time: Duration::from_secs(seconds) }
    }

    fn checkpoint() -> Checkpoint {
        let patience = Duration::from_secs(90);
        Checkpoint::new("operations/x", "n", Plan::default(), Kernel::default(), Vec::new(), &boot("a", 100), patience)
    }

    #[test]
    fn deadlines_count_within_one_boot() {
        let mut c = checkpoint();
        assert_eq!(c.left(&boot("a", 130)), Some(Duration::from_secs(60)));
        assert_eq!((c.left(&boot("a", 190)), c.left(&boot("a", 500)), c.left(&boot("b", 1))), (None, None, None));
        // Not applied yet: no connection is young enough.
        assert!(!c.older_than(Duration::from_secs(1000), &boot("a", 1000)));
        c.applied(&boot("a", 120), Duration::from_secs(60));
        assert_eq!(c.left(&boot("a", 170)), Some(Duration::from_secs(10)));
        for (opened, id, good) in [(119, "a", false), (120, "a", false), (121, "a", true), (121, "b", false)] {
            assert_eq!(c.older_than(Duration::from_secs(opened), &boot(id, 130)), good, "{opened} {id}");
        }
    }

    #[test]
    fn what_is_damaged_or_newer_is_told() {
        let good = serde_json::to_vec(&checkpoint()).unwrap();
        assert_eq!(Checkpoint::parse(&good).unwrap(), checkpoint_like(&good));
        let newer = String::from_utf8(good.clone()).unwrap().replace("\"version\":1", "\"version\":2,\"more\":true");
        assert!(Checkpoint::parse(newer.as_bytes()).unwrap_err().contains("version 2"));
        assert!(Checkpoint::parse(&good[..good.len() / 2]).unwrap_err().contains("damaged"));
        // Written into a larger file.
        Checkpoint::parse(&[good.as_slice(), b"\n\n\n"].concat()).unwrap();
    }

    fn checkpoint_like(bytes: &[u8]) -> Checkpoint {
        serde_json::from_slice(bytes).unwrap()
    }
}
