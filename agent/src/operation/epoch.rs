//! Which leader of which controller is the newest.

use std::collections::HashMap;

use prost::Message;
use pvelet_proto::{
    id, reason,
    v1::{self, ControllerEpoch},
};

use super::{Operations, journal::Write};
use crate::error::{Error, Violation};

/// The newest epoch of each controller.
#[derive(Debug, Default)]
pub(super) struct Epochs {
    newest: HashMap<String, ControllerEpoch>,
}

fn validate(epoch: &ControllerEpoch) -> Result<(), Error> {
    let mut violations = Vec::new();
    if let Err(e) = id::tenant(&epoch.controller) {
        violations.push(Violation::new("controller_epoch.controller", reason::INVALID_FIELD, e.to_string()));
    }
    if let Err(e) = id::uuid(&epoch.lease_uid) {
        violations.push(Violation::new("controller_epoch.lease_uid", reason::INVALID_UUID, e.to_string()));
    }
    if epoch.transitions == 0 {
        violations.push(Violation::new("controller_epoch.transitions", reason::INVALID_FIELD, "0 is not an epoch: they count from 1"));
    }
    if violations.is_empty() { Ok(()) } else { Err(Error::Invalid(violations)) }
}

impl Epochs {
    pub(super) fn restore(&mut self, epoch: ControllerEpoch) {
        self.newest.insert(epoch.controller.clone(), epoch);
    }

    /// Checks an epoch. `Ok(true)`: it is newer than the one known (or the first), and must be recorded. A lease UID compares equal in
    /// whichever form it was written.
    pub(super) fn check(&self, epoch: &ControllerEpoch) -> Result<bool, Error> {
        validate(epoch)?;
        let Some(known) = self.newest.get(&epoch.controller) else { return Ok(true) };
        if id::uuid(&known.lease_uid) != id::uuid(&epoch.lease_uid) {
            return Err(Error::UnknownLease {
                controller: epoch.controller.clone(),
                known: known.lease_uid.clone(),
                given: epoch.lease_uid.clone(),
            });
        }
        if epoch.transitions < known.transitions {
            return Err(Error::StaleEpoch { controller: epoch.controller.clone(), newest: known.transitions, given: epoch.transitions });
        }
        Ok(epoch.transitions > known.transitions)
    }

    /// Makes an epoch the newest, whatever was known; returns what it replaces.
    pub(super) fn set(&mut self, epoch: ControllerEpoch) -> Result<Option<ControllerEpoch>, Error> {
        validate(&epoch)?;
        Ok(self.newest.insert(epoch.controller.clone(), epoch))
    }

    pub(super) fn get(&self, controller: &str) -> Option<&ControllerEpoch> {
        self.newest.get(controller)
    }
}

impl Operations {
    /// Makes `epoch` the newest of its controller and returns it. Errors: `StaleEpoch`, `UnknownLease`, `Invalid`, `Journal`.
    pub async fn announce(&self, epoch: &v1::ControllerEpoch) -> Result<v1::ControllerEpoch, Error> {
        let number = {
            let mut inner = self.lock();
            if inner.epochs.check(epoch)? {
                inner.epochs.set(epoch.clone())?;
            }
            self.journal.push([Write::Epoch { controller: epoch.controller.clone(), epoch: epoch.encode_to_vec() }])
        };
        self.journal.durable(number).await?;
        Ok(self.lock().epochs.get(&epoch.controller).cloned().unwrap_or_default())
    }

    /// Makes `epoch` the newest of its controller, whatever was known, and returns what it replaces. Errors: `Invalid`, `Journal`.
    pub async fn accept(&self, epoch: &v1::ControllerEpoch) -> Result<Option<v1::ControllerEpoch>, Error> {
        let (previous, number) = {
            let mut inner = self.lock();
            let previous = inner.epochs.set(epoch.clone())?;
            (previous, self.journal.push([Write::Epoch { controller: epoch.controller.clone(), epoch: epoch.encode_to_vec() }]))
        };
        self.journal.durable(number).await?;
        Ok(previous)
    }

    /// Whether a call comes from the newest leader. Errors: `StaleEpoch`, `UnknownLease`, `Invalid`.
    pub fn check_epoch(&self, meta: &v1::RequestMeta) -> Result<(), Error> {
        match &meta.controller_epoch {
            Some(epoch) => self.lock().epochs.check(epoch).map(drop),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LEASE: &str = "11111111-1111-1111-1111-111111111111";
    const OTHER: &str = "22222222-2222-2222-2222-222222222222";

    fn epoch(lease: &str, transitions: u64) -> ControllerEpoch {
        ControllerEpoch { controller: "main".into(), lease_uid: lease.into(), transitions }
    }

    #[test]
    fn epochs_compare_within_one_lease() {
        let mut epochs = Epochs::default();
        assert_eq!(epochs.check(&epoch(LEASE, 3)), Ok(true));
        epochs.set(epoch(LEASE, 3)).unwrap();
        for (given, expected) in [
            (epoch(LEASE, 3), Ok(false)),
            (epoch(LEASE, 4), Ok(true)),
            (epoch(LEASE, 2), Err(reason::STALE_EPOCH)),
            (epoch(OTHER, 9), Err(reason::UNKNOWN_LEASE)),
            (epoch("x", 9), Err(reason::INVALID_UUID)),
            (epoch(LEASE, 0), Err(reason::INVALID_FIELD)),
        ] {
            assert_eq!(epochs.check(&given).map_err(|e| e.reason()), expected, "{given:?}");
        }
        assert_eq!(epochs.set(epoch(OTHER, 1)).unwrap(), Some(epoch(LEASE, 3)));
        assert_eq!(epochs.check(&epoch(LEASE, 4)).unwrap_err().reason(), reason::UNKNOWN_LEASE);
    }
}
