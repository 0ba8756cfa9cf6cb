//! One operation per thing at a time. A second one is refused with the holder's name and age; it never queues.

use std::{collections::HashMap, time::Instant};

use pvelet_proto::volume::VolumeId;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// What an operation works on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guards {
    /// Things that it changes: nobody else may touch them, such as "VM 100".
    pub exclusive: Vec<String>,
    /// Things that it only needs to stay as they are: others may use them too, but not change them, such as a clone's template.
    pub shared: Vec<String>,
}

impl Guards {
    /// The name under which a VM is guarded.
    pub fn vm(vmid: u32) -> String {
        format!("VM {vmid}")
    }

    /// The name under which the host's network is guarded: one change at a time.
    pub fn network() -> String {
        "the host's network".to_owned()
    }

    /// The name under which repairs are guarded: one at a time.
    pub fn repair() -> String {
        "a repair of the host".to_owned()
    }

    /// The name under which a volume is guarded.
    pub fn volume(id: VolumeId) -> String {
        format!("volume {id}")
    }
}

#[derive(Debug)]
struct Holder {
    operation: String,
    since: Instant,
    exclusive: bool,
}

/// Who holds what.
#[derive(Debug, Default)]
pub(super) struct GuardMap {
    held: HashMap<String, Vec<Holder>>,
}

impl GuardMap {
    /// Takes all of `guards` for `operation`, or none.
    pub(super) fn take(&mut self, operation: &str, guards: &Guards, now: Instant) -> Result<(), Error> {
        let wanted = guards.exclusive.iter().map(|t| (t, true)).chain(guards.shared.iter().map(|t| (t, false)));
        for (target, exclusive) in wanted.clone() {
            if let Some(holder) = self.held.get(target).and_then(|h| h.iter().find(|h| h.exclusive || exclusive)) {
                return Err(Error::OperationInProgress {
                    target: target.clone(),
                    holder: holder.operation.clone(),
                    age: now.saturating_duration_since(holder.since),
                });
            }
        }
        for (target, exclusive) in wanted {
            self.held.entry(target.clone()).or_default().push(Holder { operation: operation.to_owned(), since: now, exclusive });
        }
        Ok(())
    }

    /// Gives back all that `operation` holds.
    pub(super) fn release(&mut self, operation: &str) {
        self.held.retain(|_, holders| {
            holders.retain(|h| h.operation != operation);
            !holders.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn guards(exclusive: &[&str], shared: &[&str]) -> Guards {
        Guards { exclusive: exclusive.iter().map(|s| (*s).to_owned()).collect(), shared: shared.iter().map(|s| (*s).to_owned()).collect() }
    }

    #[test]
    fn the_second_is_told_who_holds_it_and_since_when() {
        let mut map = GuardMap::default();
        let t0 = Instant::now();
        map.take("operations/a", &guards(&["VM 100"], &["VM 9000"]), t0).unwrap();
        assert_eq!(
            map.take("operations/b", &guards(&["VM 200", "VM 100"], &[]), t0 + Duration::from_secs(7)),
            Err(Error::OperationInProgress { target: "VM 100".into(), holder: "operations/a".into(), age: Duration::from_secs(7) })
        );
        // Nothing of a refused set is held.
        map.take("operations/c", &guards(&["VM 200"], &["VM 9000"]), t0).unwrap();
        assert!(map.take("operations/d", &guards(&["VM 9000"], &[]), t0).is_err());
        map.release("operations/a");
        map.release("operations/c");
        map.take("operations/d", &guards(&["VM 9000", "VM 100"], &[]), t0).unwrap();
        assert!(map.take("operations/e", &guards(&[], &["VM 9000"]), t0).is_err());
    }
}
