//! Which VMID a new VM gets: inside the host's range, used by nobody, leased by nobody else, and not freed a moment ago.

use std::collections::{BTreeMap, BTreeSet};

use pvelet_proto::reason;

use crate::error::Error;

/// What VMID is wanted.
#[derive(Debug, Clone)]
pub struct LeaseRequest {
    /// First and last of the host's range.
    pub range: (u32, u32),
    /// This one; 0 for any.
    pub vmid: u32,
    /// VMIDs of the PVE cluster with their nodes: never given out.
    pub used: BTreeMap<u32, String>,
}

/// Leases and quarantine.
#[derive(Debug, Default)]
pub(super) struct Leases {
    leased: BTreeSet<u32>,
    /// VMID and the millisecond (Unix time) until which it is not given out.
    quarantine: BTreeMap<u32, u64>,
}

impl Leases {
    /// Picks a VMID and leases it.
    pub(super) fn take(&mut self, request: &LeaseRequest, now: u64) -> Result<u32, Error> {
        let (first, last) = request.range;
        let vmid = match request.vmid {
            0 => (first..=last)
                .find(|v| self.free(*v, now) && !request.used.contains_key(v))
                .ok_or(Error::VmidRangeExhausted { first, last })?,
            vmid if !(first..=last).contains(&vmid) => {
                return Err(Error::invalid(
                    "vmid",
                    reason::VMID_OUT_OF_RANGE,
                    format!("{vmid} is outside this host's range {first} to {last}; choose one inside it, or 0 to let the agent choose"),
                ));
            }
            vmid => match request.used.get(&vmid) {
                Some(node) => return Err(Error::VmidInUse { vmid, node: Some(node.clone()) }),
                // Freed a moment ago: PVE may still be cleaning up after the last VM with this id.
                None if !self.free(vmid, now) => return Err(Error::VmidInUse { vmid, node: None }),
                None => vmid,
            },
        };
        self.leased.insert(vmid);
        Ok(vmid)
    }

    fn free(&self, vmid: u32, now: u64) -> bool {
        !self.leased.contains(&vmid) && self.quarantine.get(&vmid).is_none_or(|until| *until <= now)
    }

    /// Leases a VMID that an operation of the journal holds.
    pub(super) fn restore(&mut self, vmid: u32) {
        self.leased.insert(vmid);
    }

    /// Ends the lease; the VMID rests until `until`.
    pub(super) fn release(&mut self, vmid: u32, until: u64) {
        self.leased.remove(&vmid);
        let entry = self.quarantine.entry(vmid).or_default();
        *entry = until.max(*entry);
    }

    /// Forgets what has rested long enough and returns it.
    pub(super) fn expire(&mut self, now: u64) -> Vec<u32> {
        let over: Vec<u32> = self.quarantine.iter().filter(|(_, until)| **until <= now).map(|(v, _)| *v).collect();
        for vmid in &over {
            self.quarantine.remove(vmid);
        }
        over
    }

    /// VMIDs that are leased now.
    pub(super) fn leased(&self) -> impl Iterator<Item = u32> {
        self.leased.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn request(vmid: u32, used: &[u32]) -> LeaseRequest {
        LeaseRequest { range: (200, 203), vmid, used: used.iter().map(|v| (*v, "pve2".to_owned())).collect() }
    }

    #[test]
    fn a_vmid_is_given_out_once_and_rests_after_use() {
        let mut leases = Leases::default();
        assert_eq!(leases.take(&request(0, &[200]), 0), Ok(201));
        assert_eq!(leases.take(&request(0, &[200]), 0), Ok(202));
        assert_eq!(leases.take(&request(202, &[]), 0), Err(Error::VmidInUse { vmid: 202, node: None }));
        assert_eq!(leases.take(&request(200, &[200]), 0), Err(Error::VmidInUse { vmid: 200, node: Some("pve2".into()) }));
        leases.release(201, 1000);
        assert_eq!(leases.take(&request(0, &[200]), 999), Ok(203));
        assert_eq!(leases.take(&request(0, &[200]), 999), Err(Error::VmidRangeExhausted { first: 200, last: 203 }));
        assert_eq!(leases.take(&request(0, &[200]), 1000), Ok(201));
        assert_eq!(leases.take(&request(99, &[]), 0).unwrap_err().reason(), reason::VMID_OUT_OF_RANGE);
        assert_eq!(leases.expire(1000), [201]);
        assert_eq!(leases.leased().collect::<Vec<_>>(), [201, 202, 203]);
    }
}
