//! Pools: LVM's thin ones, and those of ZFS.

use std::sync::Arc;

use super::{
    source::{Look, check},
    words::{Limits, Worst, list, percent, unknown},
};
use crate::{
    error::Error,
    health::{Check, Finding, Pace, Source, State},
    host::machine::{Machine, ThinPool, ZfsPool},
};

const THIN: Check = check(
    "host.lvm-thin",
    "A thin pool whose data or metadata is full makes the disks of all its VMs read-only or broken; its metadata fills up unseen.",
);
const ZFS: Check = check(
    "host.zfs",
    "A pool without redundancy loses data with the next disk, one that is suspended stops every VM on it, and a full one can hardly be emptied.",
);

pub(super) fn thin(pace: Pace, machine: &Arc<dyn Machine>, limits: Limits) -> Arc<dyn Source> {
    let machine = Arc::clone(machine);
    let look = move || {
        let machine = Arc::clone(&machine);
        async move { vec![decide_thin(&machine.thin_pools().await, limits)] }
    };
    Look::new("lvm-thin", &[THIN], pace, look).done()
}

fn decide_thin(pools: &Result<Option<Vec<ThinPool>>, Error>, limits: Limits) -> Finding {
    let id = THIN.id;
    let pools = match pools {
        Ok(Some(pools)) if !pools.is_empty() => pools,
        Ok(_) => return Finding::not_applicable(id, "there is no thin pool of LVM"),
        Err(error) => return unknown(id, error),
    };
    let mut worst = Worst::new();
    let mut well = Vec::new();
    for pool in pools {
        let name = pool.name.as_str();
        let mut bad = |state, what: String| worst.add(state, name, format!("{name} {what}"));
        // The ninth letter of `lv_attr` is the health of the pool.
        match pool.attributes.as_bytes().get(8) {
            Some(b'F') => bad(State::Failed, "has failed: the kernel refuses all reads and writes".into()),
            Some(b'D') => bad(State::Failed, "is out of data space".into()),
            Some(b'M') => bad(State::Failed, "has read-only metadata".into()),
            _ => {}
        }
        if pool.check_needed {
            bad(State::Failed, "needs a check of its metadata before it can be used again".into());
        }
        for (what, usage) in [("data", pool.data), ("metadata", pool.metadata)] {
            let Some(usage) = usage else { continue };
            let state = limits.state(usage);
            if state != State::Ok {
                bad(state, format!("has {usage:.0} % of its {what} used"));
            }
        }
        well.push(match (pool.data, pool.metadata) {
            (Some(data), Some(metadata)) => format!("{name}: data {data:.0} %, metadata {metadata:.0} %"),
            _ => format!("{name}: not active"),
        });
    }
    let remedy = "extend it: `lvextend -L +10G VG/POOL` for data, `lvextend --poolmetadatasize +256M VG/POOL` for metadata; or remove volumes and snapshots, or \
                  trim in the guests (discard=on); one that needs a check: `lvconvert --repair VG/POOL` after a backup";
    worst.finding(id, || list(&well), remedy)
}

pub(super) fn zfs(pace: Pace, machine: &Arc<dyn Machine>, limits: Limits) -> Arc<dyn Source> {
    let machine = Arc::clone(machine);
    let look = move || {
        let machine = Arc::clone(&machine);
        async move { vec![decide_zfs(&machine.zfs_pools().await, limits)] }
    };
    Look::new("zfs", &[ZFS], pace, look).done()
}

fn decide_zfs(pools: &Result<Option<Vec<ZfsPool>>, Error>, limits: Limits) -> Finding {
    let id = ZFS.id;
    let pools = match pools {
        Ok(Some(pools)) if !pools.is_empty() => pools,
        Ok(_) => return Finding::not_applicable(id, "there is no pool of ZFS"),
        Err(error) => return unknown(id, error),
    };
    let mut worst = Worst::new();
    let mut well = Vec::new();
    for pool in pools {
        let name = pool.name.as_str();
        let mut bad = |state, what: String| worst.add(state, name, format!("{name} {what}"));
        let health = if pool.state.is_empty() { pool.usage.as_ref().map_or("", |u| u.health.as_str()) } else { pool.state.as_str() };
        match health {
            "ONLINE" | "" => {}
            "DEGRADED" => bad(State::Degraded, "is DEGRADED: a disk is missing or faulty".into()),
            health => bad(State::Failed, format!("is {health}")),
        }
        let Some(usage) = &pool.usage else {
            well.push(format!("{name}: {health}"));
            continue;
        };
        let full = percent(usage.allocated, usage.size);
        let state = limits.state(full);
        if state != State::Ok {
            bad(state, format!("is {full:.0} % full"));
        }
        for (vdev, size, allocated) in &usage.special {
            let full = percent(*allocated, *size);
            // A full one spills over to the ordinary disks: slow, not broken.
            if limits.state(full) != State::Ok {
                bad(State::Degraded, format!("has {full:.0} % of {vdev} used: further metadata goes to the slow disks"));
            }
        }
        well.push(format!("{name}: {health}, {full:.0} % full"));
    }
    let remedy = "`zpool status -v` names the disk: replace it (`zpool replace`), or after its return `zpool clear`; of a full pool remove volumes, snapshots \
                  (`zfs list -t snapshot`) and backups, or add disks";
    worst.finding(id, || list(&well), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Trouble, host::machine::ZfsUsage};

    const LIMITS: Limits = Limits { warning: 85, critical: 95 };

    fn pool(data: f64, metadata: f64) -> ThinPool {
        ThinPool {
            name: "pve/data".into(),
            attributes: "twi-aotz--".into(),
            data: Some(data),
            metadata: Some(metadata),
            check_needed: false,
        }
    }

    #[test]
    fn each_state_of_a_thin_pool_has_a_meaning() {
        let attributes = |a: &str| ThinPool { attributes: a.into(), ..pool(10.0, 10.0) };
        let table = [
            (pool(10.0, 1.0), State::Ok),
            (pool(85.0, 1.0), State::Degraded),
            (pool(96.0, 1.0), State::Failed),
            (pool(10.0, 86.0), State::Degraded),
            (pool(10.0, 95.1), State::Failed),
            (attributes("twi-aotzD-"), State::Failed),
            (attributes("twi-aotzM-"), State::Failed),
            (attributes("twi-aotzF-"), State::Failed),
            (ThinPool { check_needed: true, ..pool(1.0, 1.0) }, State::Failed),
            // Not active: nothing uses it.
            (ThinPool { data: None, metadata: None, ..attributes("twi---tz--") }, State::Ok),
        ];
        for (pool, expected) in table {
            assert_eq!(decide_thin(&Ok(Some(vec![pool.clone()])), LIMITS).state, expected, "{pool:?}");
        }
        assert_eq!(decide_thin(&Ok(None), LIMITS).state, State::NotApplicable);
        assert_eq!(decide_thin(&Ok(Some(vec![])), LIMITS).state, State::NotApplicable);
        let late = Error::Look { trouble: Trouble::Silent, message: "lvs did not end within 20 s".into() };
        assert_eq!(decide_thin(&Err(late), LIMITS).state, State::Unknown);
    }

    #[test]
    fn full_metadata_is_named_as_such() {
        let found = decide_thin(&Ok(Some(vec![pool(10.0, 97.25)])), LIMITS);
        assert_eq!((found.seen.as_str(), found.subjects), ("pve/data has 97 % of its metadata used", vec!["pve/data".to_owned()]));
    }

    fn zpool(state: &str, allocated: u64) -> ZfsPool {
        let usage = ZfsUsage { size: 100, allocated, health: "ONLINE".into(), special: vec![] };
        ZfsPool { name: "rpool".into(), state: state.into(), usage: Some(usage) }
    }

    #[test]
    fn each_state_of_a_zfs_pool_has_a_meaning() {
        let special = |allocated| {
            let mut pool = zpool("ONLINE", 10);
            if let Some(usage) = &mut pool.usage {
                usage.special.push(("special mirror-1".into(), 100, allocated));
            }
            pool
        };
        let table = [
            (zpool("ONLINE", 10), State::Ok),
            (zpool("ONLINE", 90), State::Degraded),
            (zpool("ONLINE", 97), State::Failed),
            (zpool("DEGRADED", 10), State::Degraded),
            (zpool("FAULTED", 10), State::Failed),
            (ZfsPool { usage: None, ..zpool("SUSPENDED", 0) }, State::Failed),
            (ZfsPool { usage: None, ..zpool("ONLINE", 0) }, State::Ok),
            (special(50), State::Ok),
            (special(99), State::Degraded),
        ];
        for (pool, expected) in table {
            assert_eq!(decide_zfs(&Ok(Some(vec![pool.clone()])), LIMITS).state, expected, "{pool:?}");
        }
        assert_eq!(decide_zfs(&Ok(None), LIMITS).state, State::NotApplicable);
        // The module is loaded, and no pool is imported.
        assert_eq!(decide_zfs(&Ok(Some(vec![])), LIMITS).state, State::NotApplicable);
    }
}
